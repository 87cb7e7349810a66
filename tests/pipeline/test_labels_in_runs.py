"""Labels from the file to the saved model: the user's spelling, and splits that lack some labels."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import fakes
import pytest

import fulltune
from fulltune.config import Config, load_config
from fulltune.tasks.classification import Classification
from fulltune.tasks.dataset import Data, prepare

QUICK: dict[str, Any] = {
    "guards": {"forgetting": None},
    "evaluation": {"resamples": 100},
    "baselines": {"few_shot": 1},
    "train": {"max_steps": 1},
}


def write(path: Path, labels: list[Any], seed: int, role: str = "label") -> str:
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(fakes.WORDS[:40], k=12)) for _ in labels]
    rows = [{"text": text, role: label} for text, label in zip(texts, labels, strict=True)]
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def config(folder: Path, data: dict[str, Any], model: str = "m") -> Config:
    return load_config({"model": model, "task": "classification", "data": data, **QUICK})


def prepared(data: dict[str, Any]) -> tuple[Classification, Data]:
    settings = config(Path(), data)
    return prepare(settings, Classification(settings))


@pytest.mark.parametrize("role", ["label", "labels"])
def test_labels_of_valid_and_eval_are_classes_too(role: str, tmp_path: Path) -> None:
    def labels(*names: str) -> list[Any]:
        return [[name] if role == "labels" else name for name in names]

    files = {"train": labels("a", "b"), "eval": labels("a", "c"), "valid": labels("b", "d")}
    paths = {name: write(tmp_path / f"{name}.jsonl", rows, 1, role) for name, rows in files.items()}
    task, data = prepared(paths)
    assert task.labels == ("a", "b", "c", "d")
    bundle = fakes.bundle("bert")
    encoded = [features.labels for example in data.shown for features in task.encode(example, bundle)]
    assert encoded == ([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]] if role == "labels" else [1, 3])


@pytest.mark.parametrize("seed", range(4))
def test_our_own_splits_keep_every_label_in_train(seed: int, tmp_path: Path) -> None:
    labels = ["a"] * 30 + ["b"] * 20 + ["once"] + ["twice"] * 2
    path = write(tmp_path / "rows.jsonl", labels, 0)
    _, data = prepared({"train": path, "eval": 0.1, "valid": 0.1, "seed": seed})
    assert {example.target for example in data.train.examples} == set(labels)
    assert data.valid is not None
    assert {len(data.eval.examples), len(data.valid.examples)} <= {4, 5, 6}


def test_a_run_with_labels_that_train_lacks(tmp_path: Path) -> None:
    base = fakes.save("bert", tmp_path / "base")
    names = ["Spam ", "ham"]
    data = {
        "train": write(tmp_path / "train.jsonl", names * 20, 1),
        "eval": write(tmp_path / "eval.jsonl", [*names * 60, "eval only"], 2),
        "valid": write(tmp_path / "valid.jsonl", [*names * 5, "Spam"], 3),
    }
    record = fulltune.run(config(tmp_path, data, str(base)), out=tmp_path / "runs")
    findings = "\n".join(record.data.audit.findings)
    assert "1 row of eval has a label that train lacks (0.83%), which can never be predicted: 'eval only'" in findings
    assert "1 row of valid has a label that train lacks (9.1%), which counts as wrong: 'Spam'" in findings
    assert "1 label is spelled in several ways" in findings
    labels = ["Spam", "Spam ", "eval only", "ham"]
    assert record.details["labels"] == labels
    [saved] = (tmp_path / "runs").glob("*/model/config.json")
    assert list(json.loads(saved.read_text(encoding="utf-8"))["id2label"].values()) == labels
    assert record.details["per_class"][2]["support"] == 1
    again = fulltune.evaluate("latest", out=tmp_path / "runs")
    assert again.scores["macro_f1"] == record.scores["tuned"]["macro_f1"]
