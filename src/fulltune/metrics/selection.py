"""What choosing the best of many trials is worth, judged on rows that did not choose.

The best of ten trials looks better than it is on the rows that it was chosen on (Cawley & Talbot 2010). Here rows are
drawn with replacement again and again; each time the trial that is best on the drawn rows is scored on those that were
not drawn, beside the trial that would have been taken without a search (Tsamardinos, Greasidou & Borboudakis 2018,
"Bootstrapping the out-of-sample predictions for efficient and accurate cross-validation").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fulltune.metrics.accumulate import percentile_interval
from fulltune.metrics.base import Array, Metric


class Gain(NamedTuple):
    """How much better (in the metric's direction, above 0) the chosen trial is on rows that did not choose it."""

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
    """The gain of the best trial over the default one.

    Args:
        tables: Statistics of the same rows under each trial, ``(n, k)``.
        default: Index of the trial that stands for no search.
        metric: Of theirs.
        resamples: Draws.
        confidence: Of the interval.
        seed: Of the draws.

    Returns:
        NaN without two rows, or where no draw gives the metric a value.
    """
    rows = np.stack(tables)
    count, sign = rows.shape[1], 1.0 if metric.direction == "higher" else -1.0
    random, gains = np.random.default_rng(seed), []
    for _ in range(resamples if count > 1 else 0):
        drawn = np.bincount(random.integers(count, size=count), minlength=count)
        inside = sign * metric.value(np.tensordot(rows, drawn, axes=(1, 0)))
        outside = sign * metric.value(rows[:, drawn == 0].sum(axis=1))
        if not np.isnan(inside).all():
            gains.append(float(outside[np.nanargmax(inside)] - outside[default]))
    found = np.array(gains)
    if not len(found) or np.isnan(found).all():
        return Gain(math.nan, math.nan, math.nan)
    return Gain(float(np.nanmean(found)), *percentile_interval(found, confidence))
