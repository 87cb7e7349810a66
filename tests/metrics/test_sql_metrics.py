"""Fractions of the execution results in ``values``, and the lookup by name."""

from __future__ import annotations

import math

import pytest

from fulltune.errors import ConfigError
from fulltune.metrics import INFORMATIONAL, get, known, sql
from fulltune.metrics.accumulate import Accumulator
from fulltune.metrics.base import Metric
from fulltune.records.run import Prediction

KEYS = {
    sql.execution_accuracy: "match",
    sql.spider_accuracy: "match",
    sql.executes: "executes",
    sql.sql_exact_match: "exact",
    sql.empty_results: "empty",
}


@pytest.mark.parametrize(("metric", "key"), KEYS.items(), ids=lambda found: getattr(found, "name", found))
def test_fraction_of_rows(metric: Metric, key: str) -> None:
    accumulator = Accumulator([metric])
    assert math.isnan(accumulator.scores()[metric.name].value)
    for index, values in enumerate(({key: True}, {key: False}, {key: True}, {})):
        accumulator.add(Prediction(system="tuned", id=str(index), input="", reference="", output="", values=values))
    score = accumulator.scores()[metric.name]
    assert score.value == pytest.approx(2 / 3)
    assert score.n == 3


def test_metrics_by_name() -> None:
    metrics = known(["a", "b"])
    assert len(metrics) >= 24
    assert all(name == metric.name for name, metric in metrics.items())
    assert all(metric.version >= 1 and metric.source and metric.label for metric in metrics.values())
    assert get("execution_accuracy") is sql.execution_accuracy
    assert get("macro_f1", ["a", "b"]).name == "macro_f1"
    assert "mcc" not in known(["a"], multi_label=True)
    assert metrics.keys() >= INFORMATIONAL


def test_an_unknown_name_suggests_the_closest() -> None:
    with pytest.raises(ConfigError, match=r"unknown metric 'blue'.*Did you mean 'bleu'"):
        get("blue")
