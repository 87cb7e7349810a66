"""What most metrics are made of: a ratio of two sums, and the share of rows where something holds."""

from __future__ import annotations

from typing import Literal

import numpy as np

from fulltune.metrics.base import Array, Metric
from fulltune.records.run import Prediction


def ratio(numerator: Array, denominator: Array) -> Array:
    """Element by element; NaN where the denominator is 0. Shapes broadcast."""
    numerator, denominator = np.broadcast_arrays(
        np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    )
    result = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=result, where=denominator != 0)
    return result


def mean(sums: Array) -> Array:
    """Sums of ``[amount, rows]`` → the mean a row."""
    return ratio(sums[..., 0], sums[..., 1])


def numbers(prediction: Prediction, *keys: str) -> Array | None:
    """These ``values`` of a prediction as a vector; None when one is missing.

    A NaN that went through a file comes back as the text ``"NaN"`` and is a NaN again here.
    """
    found = [prediction.values.get(key) for key in keys]
    return None if any(value is None for value in found) else np.array([float(value) for value in found])  # type: ignore[arg-type]


def share_of(
    key: str, *, name: str, direction: Literal["higher", "lower"], source: str, label: str, version: int = 1
) -> Metric:
    """The share of rows whose ``values[key]`` is true; rows without the key do not count."""

    def statistics(prediction: Prediction) -> Array | None:
        value = prediction.values.get(key)
        return None if value is None else np.array([float(bool(value)), 1.0])

    return Metric(name, direction, version, source, statistics, mean, label=label)
