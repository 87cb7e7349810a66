"""Confidence intervals of metrics: of one score, of a difference, of a relative loss.

Scores that are 0 or 1 on every row have intervals of their own (:mod:`fulltune.metrics.fractions`), unless rows come in
groups. All others are resampled (:mod:`fulltune.metrics.resampling`).
"""

from __future__ import annotations

import math

import numpy as np

from fulltune.metrics.base import Array, Metric
from fulltune.metrics.distributions import two_sided_t, two_sided_z
from fulltune.metrics.fractions import tango, wilson
from fulltune.metrics.resampling import Interval, interval_of, standard_error


def is_fraction(metric: Metric, *tables: Array) -> bool:
    """Return True if the metric is 0 or 1 on every row of these tables ``(n, k)``."""
    if metric.ratio is None:
        return False
    above, below = metric.ratio
    return all(np.isin(rows[:, above], (0.0, 1.0)).all() and (rows[:, below] == 1).all() for rows in tables)


def of_score(
    metric: Metric, units: Array, *, confidence: float, resamples: int, seed: int, rows: bool = True
) -> tuple[float, float]:
    """Return the interval of one score; NaN for fewer than two units, and where the score is a convention.

    An interval of a bounded score is at least as wide as Wilson's for an effective number of units, the number whose
    fraction would have the same standard error (Korn & Graubard 1998, "Confidence intervals for proportions with small
    expected number of positive counts estimated from survey data"; Dean & Pagano 2015). If all units have the same
    extreme value, it is their number: that no row of ten is wrong does not mean that none ever is.

    Args:
        metric: The metric.
        units: Vectors of rows, or sums of groups, ``(n, k)``.
        confidence: Confidence level.
        resamples: Bootstrap resamples.
        seed: Seed of the resamples.
        rows: True if units are rows, False if they are groups.
    """
    if len(units) < 2:
        return math.nan, math.nan
    total = units.sum(axis=0)
    if metric.undefined is not None and metric.undefined(total):
        return math.nan, math.nan
    value = float(metric.value(total))
    if rows and is_fraction(metric, units):
        return wilson(value * len(units), len(units), confidence)
    low, high = interval_of(units, metric.value, resamples=resamples, seed=seed)(confidence)
    if metric.bounds is None or not metric.bounds[0] <= value <= metric.bounds[1]:
        return low, high
    least, most = metric.bounds
    width = most - least
    error = standard_error(units, metric.value) / width
    outer = _effective_wilson((value - least) / width, error, len(units), confidence)
    return max(least, min(low, least + width * outer[0])), min(most, max(high, least + width * outer[1]))


def of_difference(
    metric: Metric, a: Array, b: Array, *, resamples: int, seed: int, rows: bool = True, p: float = math.nan
) -> Interval:
    """Return the interval of a paired difference, ``a`` minus ``b``, as a function of the confidence level.

    Args:
        metric: The metric.
        a, b: Vectors of the same rows, or sums of the same groups, ``(n, k)`` each.
        resamples: Bootstrap resamples.
        seed: Seed of the resamples.
        rows: True if units are rows, False if they are groups.
        p: P-value of the test that the two are equal, see :mod:`fulltune.metrics.resampling`; NaN if there is none.
    """
    n, width = a.shape
    if n < 2:
        return lambda confidence: (math.nan, math.nan)
    if rows and is_fraction(metric, a, b):
        wins, losses = wins_and_losses(metric, a, b)
        return lambda confidence: tango(wins, losses, n, confidence)
    if metric.bounds is not None and (a == b).all():
        return _unseen(n, metric.bounds[1] - metric.bounds[0])

    def value(sums: Array) -> Array:
        with np.errstate(invalid="ignore"):  # inf - inf, if both perplexities overflow
            return np.asarray(metric.value(sums[..., :width]) - metric.value(sums[..., width:]))

    return _within(interval_of(np.hstack([a, b]), value, resamples=resamples, seed=seed, p=p), metric)


def of_relative_loss(
    metric: Metric, tuned: Array, base: Array, *, resamples: int, seed: int, rows: bool = True
) -> Interval:
    """Return the interval of the loss of a score as a fraction of the base's, above 0 if it is worse.

    That of a score of 0 and 1 is at least as wide as Tango's for the difference (:mod:`fulltune.metrics.fractions`), as
    a fraction of the base's score: answers that are all the same exclude a loss only as far as their number does.

    Args:
        metric: The metric.
        tuned, base: Vectors of the same rows, or sums of the same groups, ``(n, k)`` each.
        resamples: Bootstrap resamples.
        seed: Seed of the resamples.
        rows: True if units are rows, False if they are groups.
    """
    n, width = base.shape
    if n < 2:
        return lambda confidence: (math.nan, math.nan)
    before = abs(float(metric.value(base.sum(axis=0))))
    if metric.bounds is not None and (tuned == base).all() and before > 0:
        return _unseen(n, (metric.bounds[1] - metric.bounds[0]) / before)

    def loss(sums: Array) -> Array:
        return relative_loss(metric, sums[..., :width], sums[..., width:])

    found = interval_of(np.hstack([tuned, base]), loss, resamples=resamples, seed=seed)
    if not (rows and before > 0 and is_fraction(metric, tuned, base)):
        return found
    wins, losses = wins_and_losses(metric, tuned, base)
    lost, gained = (losses, wins) if metric.direction == "higher" else (wins, losses)

    def outer(confidence: float) -> tuple[float, float]:
        low, high = found(confidence)
        least, most = tango(lost, gained, n, confidence)
        return min(low, least / before), max(high, most / before)

    return outer


def relative_loss(metric: Metric, tuned: Array, base: Array) -> Array:
    """Return the loss of a score as a fraction of the base's, from sums ``(..., k)``; NaN if the base's is 0."""
    with np.errstate(invalid="ignore"):  # inf - inf, as in `of_difference`
        now, before = np.asarray(metric.value(tuned)), np.asarray(metric.value(base))
        worse = now - before if metric.direction == "lower" else before - now
    return np.asarray(np.divide(worse, abs(before), out=np.full(worse.shape, np.nan), where=before != 0))


def wins_and_losses(metric: Metric, a: Array, b: Array) -> tuple[int, int]:
    """Return the numbers of rows that only the first and only the second system has right (0/1 scores)."""
    assert metric.ratio is not None
    gaps = a[:, metric.ratio[0]] - b[:, metric.ratio[0]]
    return int((gaps > 0).sum()), int((gaps < 0).sum())


def _effective_wilson(value: float, error: float, n: int, confidence: float) -> tuple[float, float]:
    effective = float(n)
    if error > 0 and 0 < value < 1:
        effective = value * (1 - value) / error**2
    effective *= (two_sided_z(confidence) / two_sided_t(confidence, n - 1)) ** 2
    return wilson(value * effective, effective, confidence)


def _unseen(n: int, width: float) -> Interval:
    """Return the interval of a difference that none of ``n`` units shows, by the limits of paired fractions."""

    def interval(confidence: float) -> tuple[float, float]:
        low, high = tango(0, 0, n, confidence)
        return width * low, width * high

    return interval


def _within(interval: Interval, metric: Metric) -> Interval:
    """Limit the differences of a bounded metric to those that are possible."""
    if metric.bounds is None:
        return interval
    most = metric.bounds[1] - metric.bounds[0]

    def limited(confidence: float) -> tuple[float, float]:
        low, high = interval(confidence)
        return (low, high) if abs(low + high) > 2 * most else (max(-most, low), min(most, high))

    return limited
