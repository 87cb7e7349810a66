"""What a metric is: a function of **summed** per-example statistics.

Accuracy is (hits, rows) → hits / rows; BLEU is summed n-gram counts; macro-F1 is summed true positives, predictions
and labels per class. That one form gives everything else for free: scores stream (one short vector a row is kept,
never the row), a bootstrap resample is a weighted sum (``weights @ statistics``), and two systems scored on the same
rows are compared under the same weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fulltune.records.run import MetricInfo, Prediction

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """A named, versioned number with a direction.

    Attributes:
        name: As it stands in records and reports, e.g. ``macro_f1``.
        direction: ``"higher"`` or ``"lower"`` is better.
        version: Raised whenever the same predictions would give another value.
        source: The paper or library that defines the formula.
        statistics: One prediction → a vector of ``k`` floats, or None when the metric does not apply to the row
            (such a row does not count in ``n``).
        value: Sums of shape ``(..., k)`` → values of shape ``(...)``; NaN where it is undefined. Never raises, never
            warns.
        percent: Whether people read it times 100 (accuracy) or as it is (perplexity).
        label: How the report calls it.
    """

    name: str
    direction: Literal["higher", "lower"]
    version: int
    source: str
    statistics: Callable[[Prediction], Array | None]
    value: Callable[[Array], Array]
    percent: bool = True
    label: str = ""

    def info(self) -> MetricInfo:
        return MetricInfo(direction=self.direction, version=self.version, source=self.source)
