"""Scores over seeds: the mean, an interval of rows and seeds, and the paired difference of two systems."""

from __future__ import annotations

import math

import numpy as np
import pytest
from matrix import often

from fulltune.errors import IncompatibleError
from fulltune.metrics import known, seeds
from fulltune.metrics.accumulate import Accumulator
from fulltune.metrics.base import Metric
from fulltune.metrics.compare import paired
from fulltune.records.run import Prediction

LABELS = ("no", "yes")
ACCURACY, F1 = (known(LABELS)[name] for name in ("accuracy", "macro_f1"))


def system(hits: np.ndarray, order: list[int] | None = None) -> Accumulator:
    found = Accumulator((F1, ACCURACY))
    for row in order or range(len(hits)):
        output = "yes" if hits[row] else "no"
        found.add(Prediction(system="tuned", id=f"r{row:03}", input="", reference="yes", output=output))
    return found


def drawn(random: np.random.Generator, seeds: int, rows: int, level: float, between: float) -> list[Accumulator]:
    """Return systems whose rows are right with their own probability, and whose seeds vary."""
    ease = random.normal(size=rows)
    levels = level + random.normal(0, between, seeds)
    return [system(ease + random.normal(size=rows) < one) for one in levels]


def test_one_seed_is_the_plain_score_and_the_plain_pair() -> None:
    random = np.random.default_rng(0)
    a, b = (system(random.random(60) < share) for share in (0.8, 0.6))
    for metric in (ACCURACY, F1):
        assert seeds.score([a], metric) == a.scores()[metric.name]
        assert seeds.difference([a], [b], metric) == paired(a, b, metric)
    assert math.isnan(seeds.spread([a], ACCURACY))


def test_the_score_is_the_mean_over_seeds_and_the_spread_is_reported() -> None:
    found = [system(np.arange(50) < right) for right in (30, 40, 35)]
    score = seeds.score(found, ACCURACY)
    assert (score.value, score.n) == (pytest.approx(0.7), 50)
    assert score.low < 0.7 < score.high
    assert seeds.spread(found, ACCURACY) == pytest.approx(0.1)


def test_a_difference_is_that_of_the_means_whatever_the_order_of_rows() -> None:
    shuffled = list(np.random.default_rng(2).permutation(50))
    a = [system(np.arange(50) < right) for right in (40, 42)]
    b = [system(np.arange(50) < right, shuffled) for right in (30, 26, 28)]
    found = seeds.difference(a, b, ACCURACY)
    assert found.delta == pytest.approx(0.82 - 0.56)
    assert found.verdict == "improved"
    turned = seeds.difference(b, a, ACCURACY)
    assert (turned.delta, turned.verdict) == (pytest.approx(-found.delta), "worse")


def test_equal_systems_do_not_differ() -> None:
    a = [system(np.arange(40) < right) for right in (30, 20, 25)]
    found = seeds.difference(a, a, F1)
    assert found.delta == 0
    assert found.verdict == "no detectable change"
    assert found.p == 1


def test_other_rows_are_refused() -> None:
    with pytest.raises(IncompatibleError, match="the rows differ"):
        seeds.difference([system(np.ones(4))] * 2, [system(np.ones(5))] * 2, ACCURACY)


def test_seeds_that_differ_widen_the_interval() -> None:
    random = np.random.default_rng(3)
    calm, wild = ([system(random.random(300) < 0.8 + shift) for shift in (-s, 0, s)] for s in (0.0, 0.1))
    widths = [score.high - score.low for score in (seeds.score(found, ACCURACY) for found in (calm, wild))]
    assert widths[1] > 1.5 * widths[0]


@pytest.mark.parametrize(
    "metric", often([ACCURACY, F1], lambda metric: metric is ACCURACY), ids=lambda metric: metric.name
)
def test_chance_between_seeds_and_rows_is_seldom_called_a_difference(metric: Metric) -> None:
    """About 5% of the intervals of two equal systems exclude 0, far fewer than with one seed only."""
    random = np.random.default_rng(4)
    wrong = 0
    blind = 0
    for _ in range(120):
        a, b = (drawn(random, 3, 150, 1.0, 0.25) for _ in range(2))
        wrong += seeds.difference(a, b, metric, resamples=200).verdict != "no detectable change"
        blind += paired(a[0], b[0], metric, resamples=200).verdict != "no detectable change"
    assert wrong <= 14
    assert blind > wrong


def test_an_interval_over_rows_gets_the_spread_between_seeds() -> None:
    assert seeds.with_spread([0.1], [(0.05, 0.2)], 0.95) == pytest.approx((0.05, 0.2))
    low, high = seeds.with_spread([0.1, 0.1, 0.1], [(0.0, 0.3), (0.05, 0.2), (0.1, 0.1)], 0.95)
    assert (low, high) == pytest.approx((0.05, 0.2))
    values = [0.1, 0.2, 0.3]
    wide = seeds.with_spread(values, [(value, value) for value in values], 0.95)
    reach = 4.302652729911275 * 0.1 / math.sqrt(3)  # Student's t, 2 degrees of freedom
    assert wide == pytest.approx((0.2 - reach, 0.2 + reach))
