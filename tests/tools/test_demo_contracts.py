"""Generated clauses: repeatable, clean, and too hard to be solved by counting words."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from demo import make
from demo.contracts import LABELS, make_contracts
from demo.grammar import Grammar, Writer, polish
from demo.make import CLAUSES
from fulltune.data.demo.__main__ import main
from fulltune.data.demo.files import write_contracts

ROWS = make_contracts(1500)


def test_the_same_seed_gives_the_same_rows_in_every_process() -> None:
    script = "import json; from demo.contracts import make_contracts; print(json.dumps(make_contracts(60)))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    outputs = [
        subprocess.run(
            [sys.executable, "-c", script], env=environment | {"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    assert json.loads(outputs[0]) == make_contracts(60) == ROWS[:60]


def test_another_seed_gives_other_rows() -> None:
    assert not {row["text"] for row in make_contracts(200, seed=1)} & {
        row["text"] for row in make_contracts(200, seed=2)
    }


def test_no_clause_occurs_twice_and_every_type_is_there() -> None:
    counts = Counter(row["label"] for row in ROWS)
    assert len(ROWS) == len({row["text"] for row in ROWS}) == 1500
    assert sorted(counts) == sorted(LABELS)
    assert len(LABELS) >= 12
    assert min(counts.values()) > 60
    assert 80 < len({row["contract"] for row in ROWS}) < 130


def test_the_texts_are_clean() -> None:
    for row in ROWS:
        text = row["text"]
        assert not re.search(r"[{}\[\]|_]|\(n\)|  | [,.;:]|,[.,;]|\.\.|\ba [aeio]\w", text), text
        assert text.endswith(".")
        assert text[0].isupper() or text[0].isdigit()
        assert 5 <= len(text.split()) <= 150


def test_label_noise_changes_labels_and_nothing_else() -> None:
    noisy = make_contracts(1500, label_noise=0.2)
    assert [row["text"] for row in noisy] == [row["text"] for row in ROWS]
    assert sum(a["label"] != b["label"] for a, b in zip(ROWS, noisy, strict=True)) == 300


def test_the_package_ships_the_generated_rows(tmp_path: Path) -> None:
    written = write_contracts(tmp_path, n=CLAUSES)
    assert sum(written.values()) == CLAUSES
    shipped = [line for path in written for line in path.read_bytes().splitlines(keepends=True)]
    assert set(make.lines(ROWS).splitlines(keepends=True)) <= set(shipped)
    write_contracts(tmp_path)
    train, evaluation = ((tmp_path / f"{name}.jsonl").read_bytes() for name in ("train", "eval"))
    in_training = {json.loads(line)["contract"] for line in train.splitlines()}
    assert train == make.lines(row for row in ROWS if row["contract"] in in_training)
    assert evaluation == make.lines(row for row in ROWS if row["contract"] not in in_training)


def test_counting_words_solves_only_a_part(tmp_path: Path) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score

    main(["contracts", str(tmp_path)])
    train, evaluation = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("train", "eval")
    )
    assert len(train) + len(evaluation) == 1500
    assert not {row["contract"] for row in train} & {row["contract"] for row in evaluation}
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    known = vectorizer.fit_transform([row["text"] for row in train])
    model = LogisticRegression(C=30.0, max_iter=1000).fit(known, [row["label"] for row in train])
    predicted = model.predict(vectorizer.transform([row["text"] for row in evaluation]))
    score = f1_score([row["label"] for row in evaluation], predicted, average="macro")
    assert 0.75 < score < 0.90


def test_the_command_lists_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["contracts", str(tmp_path / "new")])
    assert re.fullmatch(r".*train\.jsonl: \d+ rows\n.*eval\.jsonl: \d+ rows\n", capsys.readouterr().out)


@pytest.mark.parametrize("name", ["contracts"])
def test_every_reference_of_a_grammar_is_a_rule_or_a_value(name: str) -> None:
    values = {"A", "B", "A_s", "B_s", "X", "Y", "agreement", "products", "territory", "role"}
    grammar = Grammar.load(name)
    text = "\n".join(line for alternatives in grammar.rules.values() for line in alternatives)
    assert set(re.findall(r"\{(.*?)\}", text)) <= set(grammar.rules) | values
    assert all(line.count("[") == line.count("]") and line.count("{") == line.count("}") for line in text.splitlines())
    assert all(len(set(lines)) == len(lines) or name == "contracts" for lines in grammar.rules.values())


def test_a_grammar_expands_choices_references_and_values() -> None:
    grammar = Grammar.parse(
        "# a comment\n\nstart:\n  {who} saw [a(n) {thing}|a(n) {thing}]{end}\nthing: owl\nend:\n  _\n"
    )
    assert Writer(grammar, Random(1), {"who": "she"}).write("start") == "She saw an owl"


def test_each_writer_has_a_style() -> None:
    grammar = Grammar.parse("word:\n" + "".join(f"  w{index}\n" for index in range(20)))
    writer = Writer(grammar, Random(1), share=0.2)
    assert len({writer.expand("{word}") for _ in range(200)}) == 4
    assert len({Writer(grammar, Random(1)).expand("{word}{word}") for _ in range(3)}) == 1


@pytest.mark.parametrize("text", ["  outside", "a:\n  x\na:\n  y\n", "a:\n"])
def test_a_broken_grammar_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"outside|twice|without"):
        Grammar.parse(text)


@pytest.mark.parametrize(
    ("rough", "polished"),
    [
        ("a(n) hour , a(n) unit. the end", "An hour, a unit. The end"),
        ("4.2 the buyer pays", "4.2 The buyer pays"),
        ("with leave,, and more,.", "With leave, and more."),
        ("«нет!» — сказал он. «да»", "«Нет!» — сказал он. «Да»"),
    ],
)
def test_polish(rough: str, polished: str) -> None:
    assert polish(rough) == polished
