"""The model card: metadata that the hub reads, every score, and nothing about the machine it was made on."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fakes
import pytest
from report import samples

from fulltune.models.licenses import license_of
from fulltune.records.data import DataSummary, Leaks, Truncation
from fulltune.records.run import ModelInfo, Prediction, Record
from fulltune.report.card import Licenses, bare, card
from fulltune.report.worse_rows import worse_rows
from fulltune.runtime.config_file import read_value
from fulltune.store.registry.registry import Lineage, Version


def version(record: Record, source: str = "owner/base", **changes: Any) -> Version:
    base = ModelInfo(source=source, sha256="b" * 64, family=record.model.family, architecture=record.model.architecture)
    origin = {"source": "run", "task": record.task, "method": "full", "base": base, "fulltune": "0"}
    lineage = Lineage.model_validate(origin | {"train_sha256": "t", "eval_sha256": "e", "config_sha256": "c"})
    facts = {"name": "classification-base", "number": 3, "sha256": "a" * 64, "created": "", "outcome": "accepted"}
    return Version.model_validate(facts | {"lineage": lineage} | changes)


def metadata(text: str) -> dict[str, Any]:
    _, head, _ = text.split("---\n", 2)
    found: dict[str, Any] = read_value(head, "card")
    return found


def test_every_system_and_every_row_of_the_record_is_there() -> None:
    record = samples.record()
    text = card(version(record), record)
    for system in ("Majority class", "TF-IDF", "Zero-shot", "Few-shot", "Tuned"):
        assert f"| {system} |" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len(tables) > 15
    assert "\n\n|---" not in text, "a table whose head is torn from its body"
    assert f"{record.data.train.rows:,}" in text
    assert metadata(text)["base_model"] == "owner/base"


def test_a_score_of_nan_is_not_a_result() -> None:
    record = samples.record()
    scores = {**record.scores, "tuned": {**record.scores["tuned"], "ece": samples.score(math.nan)}}
    results = metadata(card(version(record), samples.record(scores=scores)))["model-index"][0]["results"][0]["metrics"]
    assert [one["type"] for one in results] == ["macro_f1", "accuracy"]


@pytest.mark.parametrize("source", ["/home/me/secret/base", "C:\\secret\\base", "./secret/base", "~/secret/base/model"])
def test_folders_of_the_machine_are_not_included(source: str) -> None:
    record = samples.record()
    text = card(version(record, source), record)
    assert "secret" not in text
    assert "`base`" in text
    assert "base_model" not in metadata(text)


@pytest.mark.parametrize(
    ("source", "expected"), [("owner/base", "owner/base"), ("gpt2", "gpt2"), ("/", "/"), ("/a/model", "a")]
)
def test_bare_names(source: str, expected: str) -> None:
    assert bare(source) == expected


@pytest.mark.parametrize("source", ["starter:gpt2", "package:weights/model", "causal-lm-gpt2@3"])
def test_only_hub_ids_are_given_as_hub_ids(source: str) -> None:
    record = samples.record()
    assert "base_model" not in metadata(card(version(record, source), record))


def test_text_of_a_record_cannot_break_the_page() -> None:
    record = samples.record(headline="a | b\n# <b>c", outcome="rejected", reasons=("worse\nthan few-shot",))
    text = card(version(record), record)
    assert "a \\| b # &lt;b>c" in text
    assert "This run was rejected: worse than few-shot" in text


def test_averaged_models_have_no_scores_and_adapters_are_named_as_such() -> None:
    record = samples.record()
    text = card(version(record, outcome="unjudged"), None)
    assert "## Scores" not in text
    assert "not scored against baselines" in text
    assert "are an adapter for the base model" in card(version(record), record, is_adapter=True)


def test_what_the_model_saw_of_the_data_is_stated() -> None:
    leaks = Leaks(rows=2, of=100, kinds={"near": 2}, ids=("e:1", "e:2"))
    summary = DataSummary(truncation={"train": Truncation(rows=207, of=900)}, max_length=64, leaks=leaks)
    record = samples.record(data=samples.data(leaked=2).model_copy(update={"summary": summary}))
    text = card(version(record), record)

    assert "\n- Truncated: 23% of train rows (207 of 900) to data.max_length: 64\n" in text
    assert "\n- Leaks: 2 of 100 eval rows (2%) also occur in train: left out of the deciding scores\n" in text
    assert "\n- Truncated" not in card(version(samples.record()), samples.record())


def answers(**systems: Sequence[str]) -> list[Prediction]:
    """Return the answers of systems to rows whose right label is ``a``; the third row is longer than a card quotes."""
    texts = ["one", "two | three", "long " * 100, "leaked"]
    return [
        Prediction(system=name, id=f"e:{row}", input=text, reference="a", output=output, values={})
        for name, outputs in systems.items()
        for row, (text, output) in enumerate(zip(texts, outputs, strict=True))
    ]


def test_rows_that_got_worse_are_counted_and_quoted_unless_the_card_is_published() -> None:
    record = samples.record()
    given = answers(majority="aaaa", zero_shot="baaa", tuned="abbb")
    worse = worse_rows("classification", given, frozenset({"e:3"}))
    text = card(version(record), record, worse=worse, has_texts=True)
    assert "Zero-shot answers 2 of 3 evaluation rows better than this model, and 1 worse." in text
    assert "\n| e:1 | two \\| three | a | a | b |\n" in text
    assert f"\n| e:2 | {('long ' * 20).strip()} … | a | a | b |\n" in text
    assert "e:3" not in text
    published = card(version(record), record, worse=worse)
    assert "2 of 3 evaluation rows" in published
    assert "e:1" not in published

    none = worse_rows("classification", answers(zero_shot="baba", tuned="aaaa"), frozenset())
    assert "None of 4 evaluation rows got worse than with Zero-shot; 2 got better." in card(
        version(record), record, worse=none
    )
    assert "got worse" not in card(version(record), record)


def test_licenses_are_stated_where_they_are_known(tmp_path: Path) -> None:
    record = samples.record()
    text = card(version(record), record, licenses=Licenses(license_of(None, "starter:bert"), ""))
    assert "Base: apache-2.0. Data: not known to the program that wrote this card." in text
    (tmp_path / "README.md").write_text("---\nlicense: [mit, cc0-1.0]\n---\n")
    assert license_of(tmp_path) == "mit, cc0-1.0"
    for damaged in (b"---\nlicense: \xff\n---\n", b"---\nlicense: [: {\n---\n", b"---\n- mit\n---\n", b"none"):
        (tmp_path / "README.md").write_bytes(damaged)
        assert license_of(tmp_path) == license_of(tmp_path / "missing") == ""


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")  # a run saves its own limit
@pytest.mark.parametrize(
    ("task", "kind", "head", "shown"),
    [
        ("classification", "bert", "classification", "score"),
        ("causal-lm", "llama", "lm", "Once upon a time"),
        ("seq2seq", "t5", "lm", ""),
        ("text2sql", "gpt2", "lm", "How many are there?"),
    ],
)
def test_the_lines_that_show_its_use_run_without_fulltune(
    task: str,
    kind: str,
    head: str,
    shown: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = fakes.save(kind, tmp_path / "model", head)
    base = ModelInfo(source="owner/base", sha256="b" * 64, family=fakes.FAMILIES[kind], architecture="Model")
    lineage = version(samples.record()).lineage.model_copy(update={"task": task, "base": base})
    text = card(version(samples.record()).model_copy(update={"lineage": lineage}), None)
    code = text.split("```python\n")[1].split("```")[0].replace("path/or/repo", folder.as_posix())
    assert "fulltune" not in code
    assert len([line for line in code.splitlines() if line]) <= 5
    monkeypatch.setitem(sys.modules, "fulltune", None)
    exec(compile(code, "README.md", "exec"), {})
    assert shown in capsys.readouterr().out
