"""Passages that recur in many texts are named with an example; what texts share by their nature is not."""

from __future__ import annotations

import random

import pytest

from fulltune.config import Config
from fulltune.data.audit import audit
from fulltune.data.boilerplate import boilerplate_finding
from fulltune.data.findings import Finding
from fulltune.data.load import Row, Table
from fulltune.tasks.base import Example

HEADER = "This tale was digitized by the Free Library, 1999. You may copy it\nas long as you name the source."
FOOTER = "Page {page} of 12 - printed for the members of the society only, not for sale"
WORDS = (
    "river",
    "castle",
    "winter",
    "thread",
    "mill",
    "old",
    "salt",
    "candle",
    "story",
    "wolf",
    "bell",
    "stone",
    "king",
)


def text(number: int, words: int = 60) -> str:
    draw = random.Random(number)
    return "Once upon a time there was a " + " ".join(draw.choices(WORDS, k=words)) + "."


def found(texts: list[str], learned: bool = True) -> list[Finding]:
    return list(boilerplate_finding([(f"t:{n}", one) for n, one in enumerate(texts)], learned=learned))


def test_headers_and_footers_with_other_numbers_are_named() -> None:
    texts = [text(n) for n in range(40)]
    texts = [f"{HEADER}\n\n{one}" if n < 30 else one for n, one in enumerate(texts)]
    texts = [f"{one}\n{FOOTER.format(page=n)}" if n % 2 else one for n, one in enumerate(texts)]
    [finding] = found(texts)
    assert (finding.level, finding.count, finding.ids[:2]) == ("warning", 30, ("t:0", "t:1"))
    assert finding.message.startswith(
        "30 of 40 texts of train (75%) have the same passage, 'This tale was digitized by"
    )
    assert finding.message.endswith("; 2 such passages are 31% of the words")
    assert finding.fix.startswith("remove it from the texts if it does not belong to them: the model learns it")
    (header, headers), (footer, footers) = finding.details["passages"]
    assert " ".join(HEADER.split())[:-1] in header
    assert (headers, footers) == (30, 20)
    assert footer.endswith("printed for the members of the society only, not for sale")


@pytest.mark.parametrize(
    "texts",
    [
        [text(n) for n in range(40)],  # a formula of a few words
        [text(n) if n > 4 else f"{text(n)} {HEADER}" for n in range(40)],  # an eighth of the texts
        [text(n) if n > 3 else f"{text(n)} {HEADER}" for n in range(6)],  # four texts
        [HEADER] * 40,  # the same text again is a duplicate
        [],
    ],
    ids=["formula", "seldom", "few", "duplicates", "none"],
)
def test_what_is_no_boilerplate_is_not_named(texts: list[str]) -> None:
    assert found(texts) == []


def test_texts_that_are_only_read_give_no_warning() -> None:
    [finding] = found([f"{text(n)} {HEADER}" for n in range(10)], learned=False)
    assert (finding.level, finding.count) == ("info", 10)
    assert "takes space and time" in finding.fix


def test_long_texts_are_read_at_their_ends_and_many_in_part() -> None:
    middle = [f"{text(n, 3000)} {HEADER} {text(n + 99, 3000)}" for n in range(6)]
    assert found(middle) == []
    end = [f"{text(n, 3000)} {HEADER}" for n in range(6)]
    assert found(end)[0].count == 6
    many = found([f"{text(n, 20)} {HEADER}" for n in range(1500)])
    assert many[0].message.startswith("750 of 750 texts of train that were compared (100%)")


@pytest.mark.parametrize(
    ("role", "level"), [("documents", "warning"), ("text", "info"), ("source", "info"), ("question", "")]
)
def test_the_audit_reads_documents_and_inputs_but_no_prompts(role: str, level: str) -> None:
    texts = [f"{HEADER} {text(n)}" for n in range(20)]
    field = "text" if role == "documents" else role
    rows = tuple(Row(f"r:{n}", f"r:{n}", {field: one}) for n, one in enumerate(texts))
    examples = [
        Example(f"r:{n}", "", one) if role == "documents" else Example(f"r:{n}", one, f"answer {n}")
        for n, one in enumerate(texts)
    ]
    table = Table("train", rows)
    config = Config(model="m", task="causal-lm", data={"train": "t", "eval": "e"})
    result = audit(train=table, evaluation=table, train_examples=examples, eval_examples=[], config=config)
    assert [one.level for one in result.findings if one.kind == "boilerplate"] == ([level] if level else [])
