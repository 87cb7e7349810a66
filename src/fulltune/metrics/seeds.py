"""Scores of a system that was trained with several seeds, with intervals over rows and seeds.

A score is the mean over the seeds. Its variance has two parts: other rows, by the jackknife, and other seeds, by the
spread between seeds. Both count, because every seed answers the same rows (two-way random effects; Searle, Casella &
McCulloch 1992, "Variance components"). Few seeds say little about their spread, so limits use Student's t with the
degrees of freedom of Satterthwaite 1946. With one seed, the interval covers the rows only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import stdev

import numpy as np

from fulltune.metrics.accumulate import Accumulator, Rows, common_rows
from fulltune.metrics.base import Array, Metric
from fulltune.metrics.compare import MIN_EFFECT, agreed, paired, smallest_that_counts, verdict_of
from fulltune.metrics.distributions import two_sided_t, two_sided_t_p
from fulltune.metrics.power import least_rows, smallest_detectable
from fulltune.metrics.resampling import Interval, standard_error
from fulltune.records.run import Comparison, Score

#: Fewest seeds of a trained system from which a difference is claimed; fewer describe the trained models alone.
LEAST_SEEDS = 3


def spread(systems: Sequence[Accumulator], metric: Metric) -> float:
    """Return the standard deviation of the score between seeds (sample, k - 1); NaN with one seed."""
    values = _values([system.rows(metric.name) for system in systems], metric)
    return stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else math.nan


def score(
    systems: Sequence[Accumulator], metric: Metric, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 17
) -> Score:
    """Return the mean score of one system over its seeds.

    Args:
        systems: One per seed, scored on the same rows.
        metric: The metric.
        resamples: Number of bootstrap resamples, which only one seed needs.
        confidence: Confidence level of the interval.
        seed: Seed of the bootstrap.

    Raises:
        IncompatibleError: The systems were not scored on the same rows.
    """
    if len(systems) == 1:
        return systems[0].scores(resamples=resamples, confidence=confidence, seed=seed)[metric.name]
    rows = common_rows(systems, metric.name)
    value = _mean(rows, metric)
    low, high = _t_interval(value, *_error([rows], metric))(confidence)
    least, most = metric.bounds or (-math.inf, math.inf)
    return Score(value=value, low=max(least, low), high=min(most, high), n=rows[0].n)


def difference(
    a: Sequence[Accumulator],
    b: Sequence[Accumulator],
    metric: Metric,
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 17,
    min_effect: float = MIN_EFFECT,
) -> Comparison:
    """Return the mean of ``a`` over its seeds minus that of ``b``, paired by row.

    With one seed each this is :func:`~fulltune.metrics.compare.paired`. The seeds of the two are independent, because
    equal seeds of two methods have nothing in common.

    Raises:
        IncompatibleError: The systems were not scored on the same rows.
    """
    if len(a) == len(b) == 1:
        return paired(a[0], b[0], metric, resamples=resamples, confidence=confidence, seed=seed, min_effect=min_effect)
    rows = common_rows([*a, *b], metric.name)
    sides = rows[: len(a)], rows[len(a) :]
    if not rows[0].n:
        nan = math.nan
        return Comparison(metric=metric.name, delta=nan, low=nan, high=nan, p=nan, verdict="too few rows")
    delta = _mean(sides[0], metric) - _mean(sides[1], metric)
    error, freedom = _error(sides, metric)
    p = two_sided_t_p(delta / error, freedom) if error > 0 else float(delta == 0)
    p, low, high = agreed(p, _t_interval(delta, error, freedom), confidence)
    counts = smallest_that_counts(metric, _mean(sides[1], metric), min_effect)
    certain = p <= 1 - confidence and abs(delta) >= counts
    return Comparison(
        metric=metric.name,
        delta=delta,
        low=low,
        high=high,
        p=p,
        verdict="too few rows"
        if rows[0].size < least_rows(confidence)
        else verdict_of(delta, certain, metric.direction),
        n=rows[0].n,
        smallest_detectable=smallest_detectable(error, confidence),
        groups=rows[0].size if rows[0].grouped else 0,
        test="t test of rows and seeds",
        min_effect=counts,
    )


def with_spread(
    values: Sequence[float], intervals: Sequence[tuple[float, float]], confidence: float
) -> tuple[float, float]:
    """Return the interval of a mean over seeds from an interval over rows for each of them.

    On each side the mean reach of the intervals and Student's t of the spread between seeds are added as squares: all
    seeds answer the same rows, so that their mean is not closer to that of other rows.
    """
    middle = sum(values) / len(values)
    of_seeds = two_sided_t(confidence, len(values) - 1) * stdev(values) / math.sqrt(len(values)) if values[1:] else 0.0
    low, high = (sum(limits) / len(limits) for limits in zip(*intervals, strict=True))
    return middle - math.hypot(middle - low, of_seeds), middle + math.hypot(high - middle, of_seeds)


def _t_interval(middle: float, error: float, freedom: float) -> Interval:
    def interval(confidence: float) -> tuple[float, float]:
        half = two_sided_t(confidence, freedom) * error
        return middle - half, middle + half

    return interval


def _error(sides: Sequence[Sequence[Rows]], metric: Metric) -> tuple[float, float]:
    """Return the standard error of a mean over seeds, or of the difference of two, and its degrees of freedom."""
    size = sides[0][0].size
    parts = [(standard_error(_stacked(sides), _contrast(sides, metric)) ** 2, size - 1)]
    for side in sides:
        if len(side) > 1:
            parts.append((stdev(_values(side, metric)) ** 2 / len(side), len(side) - 1))
    variance = sum(part for part, _ in parts)
    if not variance > 0:
        return math.sqrt(variance) if variance == 0 else math.nan, float(max(1, size - 1))
    return math.sqrt(variance), variance**2 / sum(part**2 / max(1, freedom) for part, freedom in parts)


def _stacked(sides: Sequence[Sequence[Rows]]) -> Array:
    return np.hstack([rows.units for side in sides for rows in side])


def _contrast(sides: Sequence[Sequence[Rows]], metric: Metric):  # type: ignore[no-untyped-def]
    """Return the mean over the seeds of the first side, minus that of the second, as a function of stacked sums."""
    width = sides[0][0].units.shape[1]
    factors = [sign / len(side) for sign, side in zip((1, -1), sides, strict=False) for _ in side]

    def value(sums: Array) -> Array:
        parts = (metric.value(sums[..., width * i : width * (i + 1)]) for i in range(len(factors)))
        return np.asarray(sum(factor * part for factor, part in zip(factors, parts, strict=True)))

    return value


def _mean(rows: Sequence[Rows], metric: Metric) -> float:
    values = _values(rows, metric)
    return sum(values) / len(values)


def _values(rows: Sequence[Rows], metric: Metric) -> list[float]:
    return [float(metric.value(one.units.sum(axis=0))) if one.n else math.nan for one in rows]
