"""The one function that scores anything: baselines, checks during training and the tuned model all go through it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

from fulltune.config import EvaluationConfig
from fulltune.metrics.accumulate import Accumulator
from fulltune.metrics.base import Metric
from fulltune.records import Prediction, Score
from fulltune.tasks.base import Example, Predictor


@dataclass(frozen=True)
class Evaluation:
    """What one system scored: per-row statistics (for paired comparison) and the seconds it took."""

    system: str
    accumulator: Accumulator
    seconds: float

    def scores(self, settings: EvaluationConfig, exclude: Container[str] = ()) -> dict[str, Score]:
        """Every metric with its bootstrap interval, without the rows in ``exclude``."""
        return self.accumulator.scores(resamples=settings.resamples, confidence=settings.confidence, exclude=exclude)

    def value(self, name: str) -> float:
        """One metric alone, without an interval; NaN without rows that it applies to."""
        rows, applies = self.accumulator.statistics(name)
        return float(self.accumulator.metrics[name].value(rows[applies].sum(axis=0))) if applies.any() else math.nan


def evaluate(
    predict: Predictor,
    examples: Sequence[Example],
    metrics: Sequence[Metric],
    *,
    system: str,
    sink: Callable[[Prediction], object] = lambda prediction: None,
    advance: Callable[[], object] = lambda: None,
) -> Evaluation:
    """Score a system on examples, one prediction at a time: nothing but a short vector a row is kept.

    Args:
        predict: The system.
        examples: Rows to answer; predictions come back in this order.
        metrics: What to compute.
        system: Its name in records.
        sink: Gets every prediction as it comes (a file, say).
        advance: Called once a row (a progress bar).
    """
    started, accumulator = time.perf_counter(), Accumulator(metrics)
    for prediction in predict(examples):
        accumulator.add(prediction)
        sink(prediction)
        advance()
    return Evaluation(system, accumulator, time.perf_counter() - started)
