"""Scores of a system that was trained several times: rows and seeds both vary, and an interval tells of both.

A score is the mean over the seeds. Its interval resamples rows and seeds independently of each other: the pigeonhole
bootstrap (Owen 2007, "The pigeonhole bootstrap", Annals of Applied Statistics 1), for every seed answers the same rows.
Of ``k`` seeds ``k - 1`` are drawn with replacement (McCarthy & Snowden 1985, "The bootstrap and finite population
sampling"): the plain bootstrap of three values would see two thirds of their variance. With one seed the interval is
that of the rows alone, as everywhere else here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import stdev

import numpy as np

from fulltune.metrics.accumulate import (
    Accumulator,
    bootstrap_p,
    paired,
    percentile_interval,
    resampled_values,
    verdict_of,
)
from fulltune.metrics.base import Array, Metric
from fulltune.records.run import Comparison, Score


def spread(systems: Sequence[Accumulator], metric: Metric) -> float:
    """The standard deviation of the score between seeds (of the sample, k - 1); NaN with one seed."""
    values = [_value(system, metric) for system in systems]
    return stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else math.nan


def score(
    systems: Sequence[Accumulator], metric: Metric, *, resamples: int = 1000, confidence: float = 0.95, seed: int = 17
) -> Score:
    """The mean score of one system over its seeds.

    Args:
        systems: One a seed, on the same rows.
        metric: Of theirs.
        resamples: Bootstrap resamples.
        confidence: Of the interval.
        seed: Of the bootstrap.

    Raises:
        IncompatibleError: They were not scored on the same rows.
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
    """The mean of ``a`` over its seeds minus that of ``b``, paired by row.

    With one seed each this is :func:`~fulltune.metrics.accumulate.paired`. Seeds of the two are drawn apart, for equal
    seeds of two methods have nothing in common. The p-value and the verdict are made as there.

    Raises:
        IncompatibleError: They were not scored on the same rows.
    """
    if len(a) == len(b) == 1:
        return paired(a[0], b[0], metric, resamples=resamples, confidence=confidence, seed=seed)
    draws = resampled_values([*a, *b], metric, resamples=resamples, seed=seed)
    random = np.random.default_rng(seed + 1)
    deltas = _over_seeds(draws[: len(a)], random) - _over_seeds(draws[len(a) :], random)
    delta = _mean_value(a, metric) - _mean_value(b, metric)
    low, high = percentile_interval(deltas, confidence)
    p = bootstrap_p(deltas, _differing(a, b, metric))
    certain = p <= 1 - confidence and (low > 0 or high < 0)
    verdict = verdict_of(delta, certain, metric.direction)
    return Comparison(metric=metric.name, delta=delta, low=low, high=high, p=p, verdict=verdict)


def _over_seeds(draws: Array, random: np.random.Generator) -> Array:
    """``(seeds, resamples)`` → ``(resamples,)``: the mean over ``seeds - 1`` seeds drawn anew for each resample."""
    seeds, resamples = draws.shape
    if seeds == 1:
        return np.asarray(draws[0])
    chosen = random.integers(seeds, size=(seeds - 1, resamples))
    return np.asarray(np.take_along_axis(draws, chosen, axis=0).mean(axis=0))


def _differing(a: Sequence[Accumulator], b: Sequence[Accumulator], metric: Metric) -> int:
    """Rows on which the means over the seeds differ."""
    one, two = (_mean_rows(systems, metric) for systems in (a, b))
    return int((one != two).any(axis=1).sum())


def _mean_rows(systems: Sequence[Accumulator], metric: Metric) -> Array:
    """Vectors of each row, the mean over the seeds, sorted by the row's id."""
    rows = [system.statistics(metric.name)[0][np.argsort(system.ids, kind="stable")] for system in systems]
    return np.asarray(np.mean(rows, axis=0))


def _mean_value(systems: Sequence[Accumulator], metric: Metric) -> float:
    return sum(_value(system, metric) for system in systems) / len(systems)


def _value(system: Accumulator, metric: Metric) -> float:
    rows, applies = system.statistics(metric.name)
    return float(metric.value(rows[applies].sum(axis=0))) if applies.any() else math.nan
