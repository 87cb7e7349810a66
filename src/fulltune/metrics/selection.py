"""Estimate the gain from selecting the best of many trials, on rows that were not used for the selection.

The best of ten trials looks better than it is on the rows that it was selected on (Cawley & Talbot 2010). Here rows are
drawn with replacement repeatedly. Each time, the trial that is best on the drawn rows is scored on the rows that were
not drawn, and so is the default trial (Tsamardinos, Greasidou & Borboudakis 2018, "Bootstrapping the out-of-sample
predictions for efficient and accurate cross-validation").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fulltune.metrics.base import Array, Metric
from fulltune.metrics.resampling import percentile_interval


class Gain(NamedTuple):
    """Gain of the selected trial on rows that did not select it; above 0 is better, whatever the metric's direction."""

    value: float
    low: float
    high: float


def gain_of_choosing(
    tables: Sequence[Array],
    default: int,
    metric: Metric,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 17,
) -> Gain:
    """Return the gain of the best trial over the default one.

    Args:
        tables: Statistics of the same rows under each trial, shape ``(n, k)``.
        default: Index of the trial without a search.
        metric: The metric of the statistics.
        resamples: Number of draws.
        confidence: Confidence level of the interval.
        seed: Seed of the draws.

    Returns:
        The gain; NaN with fewer than two rows, or if no draw gives the metric a value.
    """
    rows = np.stack(tables)
    count = rows.shape[1]
    sign = 1.0 if metric.direction == "higher" else -1.0
    random = np.random.default_rng(seed)
    gains = list[float]()
    for _ in range(resamples if count > 1 else 0):
        drawn = np.bincount(random.integers(count, size=count), minlength=count)
        inside = sign * metric.value(np.tensordot(rows, drawn, axes=(1, 0)))
        outside = sign * metric.value(rows[:, drawn == 0].sum(axis=1))
        if not np.isnan(inside).all():
            gains.append(float(outside[np.nanargmax(inside)] - outside[default]))
    values = np.array(gains)
    if not len(values) or np.isnan(values).all():
        return Gain(math.nan, math.nan, math.nan)
    return Gain(float(np.nanmean(values)), *percentile_interval(values, confidence))
