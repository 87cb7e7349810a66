"""A run reports the deciding score by folder, group or database."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fakes
import pytest
from answering import Run, execute, sentence

import fulltune
from fulltune.records.run import Record, read_record


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    for index in range(40):
        file = tmp_path / "texts" / ("epics", "legends")[index % 2] / f"{index:02}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{index}: {sentence(index)}. " * 3, encoding="utf-8")
    return tmp_path / "texts"


def run(place: Path, kind: str, task: str, data: dict[str, Any]) -> Record:
    fakes.save(kind, place / "base")
    return fulltune.run(
        model=str(place / "base"),
        task=task,
        data=data,
        train={"max_steps": 2, "batch_size": 4, "evaluations": 0},
        baselines={"few_shot": 1},
        evaluation={"resamples": 100, "max_new_tokens": 4, "continuations": 1},
        guards={"forgetting": None},
        out=place / "runs",
    )


def test_folders_of_texts(texts: Path) -> None:
    record = run(texts.parent, "gpt2", "causal-lm", {"train": str(texts), "eval": 0.4})

    parts = record.parts
    assert parts is not None
    assert parts.by == "folder"
    assert {one.name for one in parts.worst} == {"epics", "legends"}
    assert sum(one.n for one in parts.worst) == record.scores["tuned"]["bits_per_byte"].n
    assert parts.worst[0].difference >= parts.worst[1].difference
    assert read_record(record.folder).parts == parts
    assert "Scores by folder" in record.report.read_text(encoding="utf-8")
    assert record.recommendation is not None
    assert "not to write one that makes sense: for that, choose a larger base" in record.recommendation.sentence


def test_folders_that_are_the_labels_are_no_parts(texts: Path) -> None:
    assert run(texts.parent, "bert", "classification", {"train": str(texts), "label": "folder"}).parts is None


def test_databases(queries: Run) -> None:
    parts = queries.record.parts
    assert parts is not None
    assert (parts.by, parts.count) == ("database", 2)
    assert {(one.name, one.n) for one in parts.worst} == {("zoo", 6), ("park", 6)}


def test_groups(tmp_path: Path) -> None:
    rows = [
        {"text": f"{sentence(i)} {i}", "label": ("law", "film")[i % 2], "firm": f"firm {i // 6}"} for i in range(36)
    ]
    parts = execute(tmp_path / "job", "bert", "classification", rows, group="firm").record.parts
    assert parts is not None
    assert (parts.by, {one.name for one in parts.worst}) == ("firm", {"firm 4", "firm 5"})
