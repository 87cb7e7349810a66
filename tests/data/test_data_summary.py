"""The summary of the data in plans and records, against counts made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import fakes
from rich.console import Console

import fulltune
from fulltune.cli.render import runs
from fulltune.data.findings import Audit
from fulltune.data.summary import data_summary
from fulltune.records.data import ClassRows, DataSummary

WORDS = ("state", "king", "fox", "law", "film", "dog", "river", "movie", "cat", "house")
LABELS = ("Payment", "payment", "Payment ", "Delay")


def text(number: int, length: int) -> str:
    """Return a text of ``length`` words that no other number has."""
    return " ".join(f"{WORDS[(number * 7 + place * place) % 10]}{number}" for place in range(length))


def write(path: Path, rows: list[tuple[str, str]]) -> str:
    path.write_text("".join(json.dumps({"text": a, "label": b}) + "\n" for a, b in rows), encoding="utf-8")
    return str(path)


def plan(place: Path) -> fulltune.Plan:
    model, tokenizer = fakes.bert()
    model.save_pretrained(place / "base")
    tokenizer.save_pretrained(place / "base")
    # Ten of 40 rows of train are longer than the window.
    train = [(text(row, 40 if row % 4 == 0 else 2), LABELS[row % 4]) for row in range(40)]
    evaluation = [(text(row, 2), LABELS[row % 4]) for row in range(100, 140)]
    data = {
        "train": write(place / "train.jsonl", train),
        "eval": write(place / "eval.jsonl", [*evaluation[:-1], train[1]]),
        "max_length": 16,
    }
    config = {"model": str(place / "base"), "task": "classification", "data": data, "train": {"max_steps": 1}}
    return fulltune.plan(config, out=place / "runs")


def test_a_plan_counts_what_the_model_gets_to_see(tmp_path: Path) -> None:
    found = plan(tmp_path)
    data = found.data
    assert data.rows == {"train": 40, "eval": 40}
    assert (data.truncation["train"].rows, data.truncation["train"].of, data.truncation["train"].fraction) == (
        10, 40, 0.25,
    )  # fmt: skip
    assert set(data.truncation) == {"train"}
    assert data.truncation["train"].tokens["input"] > 0
    assert data.lengths["train"].max > 16 >= data.lengths["eval"].max
    assert [row.train for row in data.classes] == [10, 10, 10, 10]
    assert ClassRows(label="Delay", train=10, eval=9) in data.classes
    assert data.labels is not None
    assert (data.labels.written, data.labels.distinct, data.labels.padded) == (4, 2, ("Payment ",))
    assert data.labels.spellings == ({"payment": 21, "Payment": 20, "Payment ": 20},)
    assert data.padding == found.padding
    assert data.leaks is not None
    assert (data.leaks.rows, data.leaks.of, data.leaks.kinds, data.leaks.counted) == (1, 40, {"exact": 1}, False)

    console = Console(width=80)
    with console.capture() as capture:
        console.print(runs.plan(found))
    shown = " ".join(capture.get().split())
    assert "25% of train rows (10 of 40) to data.max_length: 16" in shown
    assert "4 as written, 2 if case, spaces and punctuation are ignored: 'payment' (21) = 'Payment' (20)" in shown
    assert "1 of 40 eval rows (2.5%) also occur in train: left out of the deciding scores" in shown


def test_data_without_findings_has_an_empty_summary() -> None:
    found = data_summary(Audit(findings=()), {"train": 3, "eval": 2})
    assert found == DataSummary(rows={"train": 3, "eval": 2})
