"""Zero-shot with the classification head of the checkpoint: its classes are matched to the labels by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fakes
import pytest

import fulltune
from fulltune.records.run import Prediction, Record
from fulltune.runtime.json_lines import Lines

WORDS = {"no": "bad poor movie", "yes": "good great film"}
ROWS = [{"text": f"{WORDS[label]} {n}", "label": label} for n in range(12) for label in WORDS]


def run(base: Path | str, out: Path, *, rows: list[dict[str, Any]] = ROWS, **train: Any) -> Record:
    return fulltune.run(
        model=str(base),
        task="classification",
        data={"train": rows[6:], "eval": rows[:6]},
        train={"max_steps": 4, "evaluations": 0, **train},
        guards={"forgetting": None},
        evaluation={"resamples": 100},
        baselines={"skip": ["few_shot", "tfidf", "linear_probe"]},
        out=out,
    )


def outputs(record: Record, out: Path, system: str) -> list[Prediction]:
    lines = Lines(out / record.run_id / "predictions.jsonl", Prediction)
    return [line for line in lines if line.system == system]


def facts(record: Record) -> list[str]:
    return [fact for fact in record.model.reconciled if fact.startswith("zero_shot")]


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_tuned_model_has_its_tuned_score_as_zero_shot_score(kind: str, tmp_path: Path) -> None:
    """The second run gives the labels other names, in another order."""
    first = run(fakes.save(kind, tmp_path / kind), tmp_path, learning_rate=1e-3)
    model = tmp_path / first.run_id / "model"
    config = json.loads((model / "config.json").read_text())
    config["id2label"] = {"0": "Without", "1": "with"}
    (model / "config.json").write_text(json.dumps(config))
    other = [{**row, "label": {"no": "without", "yes": "WITH"}[row["label"]]} for row in ROWS]
    again = run(model, tmp_path, rows=other, learning_rate=1e-12)
    assert again.scores["zero_shot"]["accuracy"] == first.scores["tuned"]["accuracy"]
    before, now = outputs(first, tmp_path, "tuned"), outputs(again, tmp_path, "zero_shot")
    known = {row.input: row.values["confidence"] for row in before}
    assert {row.input: row.values["confidence"] for row in now} == pytest.approx(known, abs=1e-5)
    assert "own classification head" in facts(again)[0]
    assert "own classification head" in (tmp_path / again.run_id / "report.html").read_text()


def test_a_head_that_lacks_a_label_is_not_used(tmp_path: Path) -> None:
    base = fakes.save("bert", tmp_path / "base", "classification", labels=("yes", "maybe"))
    assert facts(run(base, tmp_path)) == [
        "zero_shot asks by the names of the labels: the checkpoint's classification head lacks 'no'"
    ]


def test_a_single_label_head_is_not_used_for_several_labels(tmp_path: Path) -> None:
    base = fakes.save("bert", tmp_path / "base", "classification", labels=("yes", "no"))
    several = [{"text": row["text"], "labels": [row["label"]]} for row in ROWS]
    [fact] = facts(run(base, tmp_path, rows=several))
    assert fact.endswith("head was made for one label per row")


def test_evaluate_uses_the_same_head(tmp_path: Path) -> None:
    first = run(fakes.save("bert", tmp_path / "base"), tmp_path, learning_rate=1e-3)
    folder = tmp_path / first.run_id
    copy = (folder / "model").rename(tmp_path / "elsewhere")
    found = fulltune.evaluate(str(copy), str(folder / "config.yaml"), out=tmp_path)
    assert found.system == "zero_shot"
    assert found.scores["accuracy"] == first.scores["tuned"]["accuracy"]
    assert any("own classification head" in fact for fact in found.model.reconciled)
