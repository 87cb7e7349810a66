"""Building blocks of metrics: ratios of two sums, and fractions of rows with a property."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from fulltune.metrics.base import Array, Metric
from fulltune.records.run import Prediction


def ratio(numerator: Array, denominator: Array) -> Array:
    """Divide element by element; NaN where the denominator is 0. Shapes broadcast."""
    numerator, denominator = np.broadcast_arrays(
        np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    )
    result = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=result, where=denominator != 0)
    return result


def mean(sums: Array) -> Array:
    """Return the mean per row from sums of ``[amount, rows]``."""
    return ratio(sums[..., 0], sums[..., 1])


def numbers(prediction: Prediction, *keys: str) -> Array | None:
    """Return these ``values`` of a prediction as a vector, or None if one is missing.

    A NaN that was stored in a file is read back as the text ``"NaN"``; it is converted to NaN here.
    """
    stored = [prediction.values.get(key) for key in keys]
    return None if any(value is None for value in stored) else np.array([float(value) for value in stored])  # type: ignore[arg-type]


def mean_of(
    statistics: Callable[[Prediction], Array | None],
    *,
    name: str,
    direction: Literal["higher", "lower"],
    source: str,
    label: str = "",
    version: int = 1,
    percent: bool = True,
    reads_answers: bool = True,
) -> Metric:
    """Return a metric: the mean per row, or per unit, from statistics ``[amount, rows]``; arguments as of a metric."""
    return Metric(
        name,
        direction,
        version,
        source,
        statistics,
        mean,
        percent=percent,
        label=label,
        ratio=(0, 1),
        reads_answers=reads_answers,
    )


def fraction_of(
    key: str, *, name: str, direction: Literal["higher", "lower"], source: str, label: str, version: int = 1
) -> Metric:
    """Return a metric: the fraction of rows whose ``values[key]`` is true; rows without the key do not count."""

    def statistics(prediction: Prediction) -> Array | None:
        value = prediction.values.get(key)
        return None if value is None else np.array([float(bool(value)), 1.0])

    return mean_of(
        statistics,
        name=name,
        direction=direction,
        source=source,
        label=label,
        version=version,
        reads_answers=False,
    )
