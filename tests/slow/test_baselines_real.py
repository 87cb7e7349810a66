"""Baselines on real data: as strong as the figures in docs/baselines.md, in bounded time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from real import DATA, real_data

from fulltune.config import load_config
from fulltune.evaluation.baselines.base import Given
from fulltune.evaluation.baselines.catalog import answers
from fulltune.evaluation.evaluate import evaluate
from fulltune.pipeline.job import checked_task_and_method
from fulltune.tasks import dataset

pytestmark = real_data


def scored(config: dict[str, Any], name: str, rows: int | None = None) -> dict[str, float]:
    checked = load_config({"model": "none"} | config)
    task, data = dataset.prepare(checked, checked_task_and_method(checked)[0])
    train = data.train.examples
    given = Given(task, None, checked.baselines, train[:rows])  # type: ignore[arg-type]
    found = answers(name, given, data.eval.examples)
    result = evaluate(lambda _: found.predictions, data.eval.examples, task.metrics, system=name)
    return {metric.name: result.value(metric.name) for metric in task.metrics}


def files(folder: str, prefix: str = "") -> dict[str, str]:
    return {part: str(DATA / folder / f"{prefix}{file}.jsonl") for part, file in (("train", "train"), ("eval", "test"))}


@pytest.mark.parametrize(
    ("rows", "accuracy", "macro_f1"), [(None, 0.92, 0.895), (1000, 0.86, 0.83)], ids=["all", "1000"]
)
def test_tfidf_on_clauses(rows: int | None, accuracy: float, macro_f1: float) -> None:
    started = time.process_time()
    scores = scored({"task": "classification", "data": files("contracts", "single.")}, "tfidf", rows)
    assert scores["accuracy"] >= accuracy
    assert scores["macro_f1"] >= macro_f1
    assert scores["ece"] < 0.05
    assert time.process_time() - started < 60


def test_the_nearest_question_with_its_values_swapped() -> None:
    data = files("geoquery") | {"databases": str(Path(DATA) / "geoquery"), "allow_leaks": True}
    config = {"task": "text2sql", "data": data}
    assert scored(config, "nearest_values")["execution_accuracy"] > 0.42
    assert scored(config, "nearest")["execution_accuracy"] > 0.2


def test_the_first_sentences_of_abstracts() -> None:
    config = {"task": "seq2seq", "data": files("summaries") | {"source": "text", "target": "summary"}}
    lead = scored(config, "lead")["rougeLsum"]
    assert lead > max(scored(config, name)["rougeLsum"] for name in ("copy", "nearest"))
    assert lead > 0.17
