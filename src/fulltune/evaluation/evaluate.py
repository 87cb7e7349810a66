"""Score predictions of any system: baselines, checkpoints during training and tuned models."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from fulltune.config import EvaluationConfig
from fulltune.evaluation.baselines.base import Given
from fulltune.evaluation.baselines.cache import CachedAnswers
from fulltune.evaluation.baselines.catalog import answered_rows, answers, chosen, extent
from fulltune.metrics.accumulate import Accumulator
from fulltune.metrics.base import Metric
from fulltune.models.bundle import Bundle
from fulltune.records.run import BaselineUse, Prediction, Score
from fulltune.runtime import distributed
from fulltune.runtime.progress import Progress
from fulltune.tasks.base import Example, Predictor, Task
from fulltune.tasks.dataset import Data


@dataclass(frozen=True)
class Evaluation:
    """Result of one system.

    Attributes:
        system: Name of the system.
        accumulator: Statistics per row, for paired comparison.
        seconds: Time of prediction and scoring.
        use: Time and settings of a baseline; None for the tuned model.
    """

    system: str
    accumulator: Accumulator
    seconds: float
    use: BaselineUse | None = None

    def without(self, ids: Container[str]) -> Evaluation:
        """Return the result on all other rows."""
        return replace(self, accumulator=self.accumulator.without(ids))

    def on(self, ids: Sequence[str]) -> Evaluation:
        """Return the result on some of its rows: those that another system answered."""
        return self.without(frozenset(self.accumulator.ids).difference(ids))

    def scores(self, settings: EvaluationConfig) -> dict[str, Score]:
        """Return every metric with its interval."""
        return self.accumulator.scores(resamples=settings.resamples, confidence=settings.confidence)

    def value(self, name: str) -> float:
        """Return the value of one metric, without an interval; NaN if it applies to no row."""
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
    """Score a system on examples, one prediction at a time; only a short vector per row is stored.

    Args:
        predict: Yields one prediction per example, in order.
        examples: Evaluation examples.
        metrics: Metrics to compute.
        system: Name of the system in records.
        sink: Called with every prediction, e.g. to write it to a file.
        advance: Called once per row, e.g. by a progress bar.
    """
    started = time.perf_counter()
    accumulator = Accumulator(metrics)
    for example, prediction in zip(examples, predict(examples), strict=True):
        if example.group:
            prediction = prediction.model_copy(update={"group": example.group})
        accumulator.add(prediction)
        sink(prediction)
        advance()
    return Evaluation(system, accumulator, time.perf_counter() - started)


Sink = Callable[[Prediction], object]


def score_baselines(
    given: Given, data: Data, key: Mapping[str, Any], out: Path, sink: Sink, progress: Progress
) -> dict[str, Evaluation]:
    """Evaluate every baseline of the task, from the cache if it was computed before; results by name.

    Args:
        given: The inputs of baselines.
        data: All splits.
        key: Everything that predictions depend on, see :func:`~fulltune.evaluation.baselines.cache.cache_parts`.
        out: The runs folder, which contains the cache.
        sink: Called with every prediction.
        progress: Where the stages report.
    """
    systems = dict[str, Evaluation]()
    for name in chosen(given.task, given.settings):
        with progress.stage(name, total=len(data.eval.examples), unit="row") as bar:
            systems[name] = _score_baseline(name, given, data.eval.examples, key, out, sink, bar.advance)
    return systems


def _score_baseline(
    name: str,
    given: Given,
    examples: Sequence[Example],
    key: Mapping[str, Any],
    out: Path,
    sink: Sink,
    advance: Callable[[], object],
) -> Evaluation:
    """Evaluate a baseline on the rows that it answers; arguments as in :func:`score_baselines`."""
    rows, note = answered_rows(name, given, examples)
    known = {**key, "rows": extent(name, given, len(rows))}
    cached = CachedAnswers(partial(answers, name, given), name, known, out, advance)
    scored = evaluate(cached.predictions, rows, given.task.metrics, system=name, sink=sink)
    return replace(scored, use=cached.use.model_copy(update={"sampled": note}) if note else cached.use)


def score_system(
    task: Task, bundle: Bundle, system: str, data: Data, progress: Progress, sink: Sink = lambda prediction: None
) -> Evaluation:
    """Evaluate a model, tuned or not, on the evaluation rows; there are no examples in its context."""
    with progress.stage(system, total=len(data.eval.examples), unit="row") as bar:
        predict = distributed.sharded(task.predictor(bundle, system))
        return evaluate(predict, data.eval.examples, task.metrics, system=system, sink=sink, advance=bar.advance)
