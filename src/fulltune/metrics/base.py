"""Define a metric: a function of **summed** statistics per example.

Accuracy is (hits, rows) → hits / rows; BLEU is summed n-gram counts; macro-F1 is summed true positives, predictions
and labels per class. This form has three advantages: scores are computed in one pass (one short vector per row is kept,
not the row), a bootstrap resample is a weighted sum (``weights @ statistics``), and two systems scored on the same
rows can be compared under the same weights.
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
        name: Name in records and reports, e.g. ``macro_f1``.
        direction: ``"higher"`` or ``"lower"`` is better.
        version: Incremented whenever the same predictions would give another value.
        source: The paper or library that defines the formula.
        statistics: Function from a prediction to a vector of ``k`` floats, or None if the metric does not apply to the
            row (such rows do not count in ``n``).
        value: Function from sums of shape ``(..., k)`` to values of shape ``(...)``; NaN where it is undefined. Never
            raises or warns.
        percent: True if the value is shown times 100 (accuracy), False if it is shown as it is (perplexity).
        label: Name in texts.
        worthless: Value of a system that knows nothing; None: 0 if higher is better, otherwise there is none.
        ratio: Columns of numerator and denominator if the value is their ratio times a constant; None for any other
            function. It selects the test and the interval (:mod:`fulltune.metrics.compare`).
        bounds: Lowest and highest value; by default 0 and 1 for a percentage, and none for others.
        reads_answers: False if the value is computed from ``values`` alone, without output and reference.
        undefined: Function from sums ``(k,)`` to True where the value is a convention, such as an MCC of 0 for a
            constant answer; such a value has no interval. None if there is no such case.
    """

    name: str
    direction: Literal["higher", "lower"]
    version: int
    source: str
    statistics: Callable[[Prediction], Array | None]
    value: Callable[[Array], Array]
    percent: bool = True
    label: str = ""
    worthless: float | None = None
    ratio: tuple[int, int] | None = None
    bounds: tuple[float, float] | None = None
    undefined: Callable[[Array], bool] | None = None
    reads_answers: bool = True

    def __post_init__(self) -> None:
        if self.bounds is None and self.percent:
            object.__setattr__(self, "bounds", (0.0, 1.0))

    def knows_nothing(self, value: float) -> bool:
        """Return True if a value is no better than that of a system that knows nothing."""
        if self.direction == "higher":
            return value <= (self.worthless or 0.0)
        return self.worthless is not None and value >= self.worthless

    def info(self) -> MetricInfo:
        return MetricInfo(direction=self.direction, version=self.version, source=self.source)
