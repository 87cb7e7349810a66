"""Scores of a system that was trained with several seeds, with intervals over rows and seeds.

A score is the mean over the seeds. Its interval resamples rows and seeds independently: the pigeonhole bootstrap (Owen
2007, "The pigeonhole bootstrap", Annals of Applied Statistics 1), because every seed answers the same rows. Of ``k``
seeds, ``k - 1`` are drawn with replacement (McCarthy & Snowden 1985, "The bootstrap and finite population sampling"):
the plain bootstrap of three values would underestimate their variance by a third. With one seed, the interval covers
the rows only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import stdev

import numpy as np

from fulltune.metrics.accumulate import (
    Accumulator,
    judged,
    paired,
    percentile_interval,
    resampled_values,
)
from fulltune.metrics.base import Array, Metric
from fulltune.records.run import Comparison, Score


def spread(systems: Sequence[Accumulator], metric: Metric) -> float:
    """Return the standard deviation of the score between seeds (sample, k - 1); NaN with one seed."""
    values = [_value(system, metric) for system in systems]
    return stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else math.nan


def score(
    systems: Sequence[Accumulator], metric: Metric, *, resamples: int = 1000, confidence: float = 0.95, seed: int = 17
) -> Score:
    """Return the mean score of one system over its seeds.

    Args:
        systems: One per seed, scored on the same rows.
        metric: The metric.
        resamples: Number of bootstrap resamples.
        confidence: Confidence level of the interval.
        seed: Seed of the bootstrap.

    Raises:
        IncompatibleError: The systems were not scored on the same rows.
    """
    if len(systems) == 1:
        return systems[0].scores(resamples=resamples, confidence=confidence, seed=seed)[metric.name]
    draws = resampled_values(systems, metric, resamples=resamples, seed=seed)
    low, high = percentile_interval(_over_seeds(draws, np.random.default_rng(seed + 1)), confidence)
    value = _mean_value(systems, metric)
    return Score(value=value, low=low, high=high, n=int(systems[0].statistics(metric.name)[1].sum()))


def difference(
    a: Sequence[Accumulator],
    b: Sequence[Accumulator],
    metric: Metric,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 17,
) -> Comparison:
    """Return the mean of ``a`` over its seeds minus that of ``b``, paired by row.

    With one seed each this is :func:`~fulltune.metrics.accumulate.paired`. The seeds of the two are drawn
    independently, because equal seeds of two methods have nothing in common. The p-value and the verdict are computed
    as in that function.

    Raises:
        IncompatibleError: The systems were not scored on the same rows.
    """
    if len(a) == len(b) == 1:
        return paired(a[0], b[0], metric, resamples=resamples, confidence=confidence, seed=seed)
    draws = resampled_values([*a, *b], metric, resamples=resamples, seed=seed)
    random = np.random.default_rng(seed + 1)
    deltas = _over_seeds(draws[: len(a)], random) - _over_seeds(draws[len(a) :], random)
    delta = _mean_value(a, metric) - _mean_value(b, metric)
    n = int(a[0].statistics(metric.name)[1].sum())
    return judged(metric, delta, deltas, n=n, differing=_differing(a, b, metric), confidence=confidence)


def _over_seeds(draws: Array, random: np.random.Generator) -> Array:
    """Average ``(seeds, resamples)`` over ``seeds - 1`` seeds drawn per resample; the shape is ``(resamples,)``."""
    seeds, resamples = draws.shape
    if seeds == 1:
        return np.asarray(draws[0])
    chosen = random.integers(seeds, size=(seeds - 1, resamples))
    return np.asarray(np.take_along_axis(draws, chosen, axis=0).mean(axis=0))


def _differing(a: Sequence[Accumulator], b: Sequence[Accumulator], metric: Metric) -> int:
    """Return the number of rows on which the means over the seeds differ."""
    one, two = (_mean_rows(systems, metric) for systems in (a, b))
    return int((one != two).any(axis=1).sum())


def _mean_rows(systems: Sequence[Accumulator], metric: Metric) -> Array:
    """Return the vectors of each row, averaged over the seeds, sorted by row id."""
    rows = [system.statistics(metric.name)[0][np.argsort(system.ids, kind="stable")] for system in systems]
    return np.asarray(np.mean(rows, axis=0))


def _mean_value(systems: Sequence[Accumulator], metric: Metric) -> float:
    return sum(_value(system, metric) for system in systems) / len(systems)


def _value(system: Accumulator, metric: Metric) -> float:
    rows, applies = system.statistics(metric.name)
    return float(metric.value(rows[applies].sum(axis=0))) if applies.any() else math.nan
