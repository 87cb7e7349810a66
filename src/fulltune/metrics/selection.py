"""Estimate the gain from selecting the best of many trials, and test it.

The best of ten trials looks better than it is on the rows that it was selected on (Cawley & Talbot 2010). Here rows are
drawn with replacement repeatedly. Each time, the trial that is best on the drawn rows is scored on the rows that were
not drawn, and so is the default trial (Tsamardinos, Greasidou & Borboudakis 2018, "Bootstrapping the out-of-sample
predictions for efficient and accurate cross-validation").

The test and the interval are those of :mod:`fulltune.metrics.compare` for the selected trial and the default, each at a
level that is divided by the number of trials that could have been selected (Dunn 1961, "Multiple comparisons among
means"), so that they hold whichever trial was selected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fulltune.metrics.accumulate import Rows
from fulltune.metrics.base import Metric
from fulltune.metrics.compare import MIN_EFFECT, PairedRows
from fulltune.records.run import Verdict


class Gain(NamedTuple):
    """Gain of the selected trial over the default; above 0 is better, whatever the metric's direction.

    ``value`` is that on rows that did not select. The interval, the p-value and the verdict hold for the selected one
    of several trials.
    """

    value: float
    low: float
    high: float
    p: float
    verdict: Verdict


def gain_of_choosing(
    trials: Sequence[Rows],
    default: int,
    chosen: int,
    metric: Metric,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 17,
    min_effect: float = MIN_EFFECT,
) -> Gain:
    """Return the gain of the best trial over the default one.

    Args:
        trials: The same rows, in the same order, under each trial.
        default: Index of the trial without a search.
        chosen: Index of the selected trial.
        metric: The metric of the statistics.
        resamples: Number of draws.
        confidence: Confidence level of the interval.
        seed: Seed of the draws.
        min_effect: Smallest gain that counts.

    Returns:
        The gain; NaN with fewer than two rows, or if no draw gives the metric a value.
    """
    value = _elsewhere(trials, default, metric, resamples, seed)
    rivals = max(1, len(trials) - 1)
    found = PairedRows(metric, trials[chosen], trials[default], resamples, seed).comparison(
        1 - (1 - confidence) / rivals, min_effect
    )
    ends = (found.low, found.high) if metric.direction == "higher" else (-found.high, -found.low)
    low, high = float(np.min([ends[0], value])), float(np.max([ends[1], value]))
    return Gain(value, low, high, float(np.minimum(1.0, found.p * rivals)), found.verdict)


def _elsewhere(trials: Sequence[Rows], default: int, metric: Metric, resamples: int, seed: int) -> float:
    """Return the mean gain of the trial that is best on drawn rows, on the rows that were not drawn."""
    rows = np.stack([trial.units for trial in trials])
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
    return float(np.nanmean(values)) if len(values) and not np.isnan(values).all() else math.nan
