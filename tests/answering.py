"""Small finished runs whose models answer texts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fakes

import fulltune
from fulltune.records.run import Prediction, Record

WORDS = ("court", "state", "party", "term", "film", "star", "good", "great", "king", "fox")


@dataclass(frozen=True)
class Run:
    """A finished run, with its evaluation rows and the predictions of the tuned model."""

    record: Record
    rows: list[dict[str, Any]]
    predictions: list[Prediction]


def sentence(index: int) -> str:
    """Return a text whose length depends on the index, so that batches are padded."""
    return " ".join(WORDS[(index * step) % len(WORDS)] for step in range(1, 3 + index % 7))


def execute(folder: Path, kind: str, task: str, rows: list[dict[str, Any]], **data: Any) -> Run:
    folder.mkdir()
    fakes.save(kind, folder / "base")
    for name, part in (("train", rows[:24]), ("eval", rows[24:])):
        text = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    record = fulltune.run(
        model=str(folder / "base"),
        task=task,
        data={"train": str(folder / "train.jsonl"), "eval": str(folder / "eval.jsonl"), "allow_leaks": True} | data,
        train={"max_steps": 6, "batch_size": 4, "learning_rate": 1e-2, "evaluations": 0},
        baselines={"few_shot": 1},
        evaluation={"resamples": 100, "max_new_tokens": 6, "continuations": 3, "batch_size": 5},
        guards={"forgetting": None},
        out=folder / "runs",
    )
    lines = (record.folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    predictions = [Prediction.model_validate_json(line) for line in lines]
    return Run(record, rows[24:], [one for one in predictions if one.system == "tuned"])
