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
from fulltune.errors import ConfigError
from fulltune.report.dataset import details
from fulltune.tasks.causal_lm import CausalLM
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


SPELLED = {
    "train": ["Pokuta"] * 3
    + ["pokuta ", "POKUTA", "Trvání"]
    + ["Trva\u0301ni\u0301"] * 2
    + ["a  b", "\ta b\u200b", "a b"],
    "eval": ["pokuta ", "trvání", "Only eval ", "Only eval"],
    "valid": ["A B", "pokuta"],
}


@pytest.mark.parametrize("role", ["label", "labels"])
def test_spellings_of_a_label_are_merged_under_the_most_frequent_one_of_train(role: str, tmp_path: Path) -> None:
    spelled = {name: [[label] if role == "labels" else label for label in rows] for name, rows in SPELLED.items()}
    paths = {name: write(tmp_path / f"{name}.jsonl", rows, 1, role) for name, rows in spelled.items()}
    task, data = prepared({**paths, "merge_labels": True})
    assert task.labels == ("Only eval", "Pokuta", "Trvání", "a b")
    assert [example.labels for example in data.train.examples] == [
        *[("Pokuta",)] * 5,
        *[("Trvání",)] * 3,
        *[("a b",)] * 3,
    ]
    assert [example.labels for example in data.eval.examples] == [("Pokuta",), ("Trvání",), *[("Only eval",)] * 2]
    assert data.valid is not None
    assert [example.labels for example in data.valid.examples] == [("a b",), ("Pokuta",)]
    assert len(prepared(paths)[0].labels) == 13


@pytest.mark.parametrize("role", ["label", "labels"])
def test_names_in_the_config_are_those_that_spellings_are_merged_under(role: str, tmp_path: Path) -> None:
    labels = ["Spam", "SPAM ", "spam", "HAM", "ham"]
    rows = [[label] if role == "labels" else label for label in labels] * 8
    data = {"train": write(tmp_path / "rows.jsonl", rows, 1, role), "label_names": ["ham", "spam"]}
    task, read = prepared({**data, "merge_labels": True})
    assert task.labels == ("ham", "spam")
    assert {example.labels for example in read.train.examples} == {("ham",), ("spam",)}
    unmerged = prepared(data)[1].train  # other spellings are problems, which a run reports
    assert len(unmerged.examples) < len(read.train.examples) / 2


def test_a_row_has_a_merged_label_once(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [["Spam", "spam", "ham"], ["Spam"], ["ham"]] * 9, 0, "labels")
    _, data = prepared({"train": path, "merge_labels": True})
    assert {example.target for example in data.train.examples} == {("Spam", "ham"), ("Spam",), ("ham",)}


@pytest.mark.parametrize(
    ("one", "other"), [("Maße", "Masse"), ("x²", "x2"), ("a_b", "a b"), ("C", "C#"), ("пост", "nocm")]
)
def test_labels_that_differ_in_more_are_not_merged(one: str, other: str, tmp_path: Path) -> None:
    task, _ = prepared({"train": write(tmp_path / "rows.jsonl", [one, other] * 20, 0), "merge_labels": True})
    assert set(task.labels) == {one, other}


def test_only_labels_can_be_merged(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ["a", "b"] * 9, 0)
    settings = load_config({"model": "m", "task": "causal-lm", "data": {"train": path, "merge_labels": True}})
    with pytest.raises(ConfigError, match=r"data\.merge_labels.*causal-lm reads no labels"):
        prepare(settings, CausalLM(settings))


def test_a_run_with_merged_labels(tmp_path: Path) -> None:
    base = fakes.save("bert", tmp_path / "base")
    path = write(tmp_path / "rows.jsonl", [*["Pokuta", "ham"] * 40, *["pokuta "] * 20], 1)
    record = fulltune.run(
        config(tmp_path, {"train": path, "eval": 0.3, "merge_labels": True}, str(base)), out=tmp_path / "runs"
    )
    assert record.details["labels"] == ["Pokuta", "ham"]
    summary = record.data.summary.labels
    assert summary is not None
    assert summary.merged == {"Pokuta": {"Pokuta": 40, "pokuta ": 20}}
    assert (summary.written, summary.distinct) == (2, 2)
    findings = "\n".join(record.data.audit.findings)
    assert "data.merge_labels gives 1 label one spelling: 'Pokuta' (40 rows: rows.jsonl:1, " in findings
    assert "spelled in several ways" not in findings
    assert details(record.data.summary)["merged labels"] == "'Pokuta' (40) = 'pokuta ' (20), as 'Pokuta'"
    folder = tmp_path / "runs" / record.run_id
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert {row["reference"] for row in rows} | {row["output"] for row in rows} <= {"Pokuta", "ham"}


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
