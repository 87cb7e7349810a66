"""Estimate the gain from more data: train on growing parts of the rows, and extrapolate the scores."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fulltune.config import ConfigSource, load_config, refuse_folds
from fulltune.evaluation.evaluate import Evaluation, score_system
from fulltune.metrics.accumulate import Rows, common_rows
from fulltune.metrics.base import Array, Metric
from fulltune.metrics.compare import smallest_that_counts
from fulltune.metrics.power import least_rows
from fulltune.metrics.power_law import SIZES, Doubling, doubling, gain_of_doubling
from fulltune.metrics.resampling import Interval, interval_of
from fulltune.pipeline.head_start import with_started_head
from fulltune.pipeline.job import Job, prepare_job
from fulltune.pipeline.planning.measured_plan import make_plan
from fulltune.pipeline.train import mover, overfitting_guard
from fulltune.records.learning_curve import Change, LearningCurve, Point
from fulltune.runtime.progress import Progress, progress_of
from fulltune.tasks.base import Example
from fulltune.training.fit import fit

#: Fractions of the training rows; each part contains the one before it.
SHARES = (1 / 8, 1 / 4, 1 / 2, 1.0)

#: Fewest rows of a part.
FEWEST = 8


def learning_curve(
    config: ConfigSource | Job | None = None,
    *,
    out: str | Path = "runs",
    overrides: Sequence[str] = (),
    progress: Progress | bool | None = None,
    **options: Any,
) -> LearningCurve:
    """Train on an eighth, a quarter, a half and all of the rows, and estimate the gain from twice the rows.

    Every part is trained for as many optimizer steps as the complete job, so that only the data differs; with
    ``data.valid`` each keeps its best step. All are scored on the evaluation rows, as in a run. No model is kept. It
    costs about as much as one run per part.

    Args:
        config: As in :func:`fulltune.run`, or a job that is prepared.
        overrides, progress, options: As in :func:`fulltune.run`; a job has them already.
        out: The runs folder.

    Raises:
        FulltuneError: Anything that would stop the run before its first step, or a training that was stopped.
    """
    job = config if isinstance(config, Job) else prepare_job(load_config(config, overrides, options=options), out)
    refuse_folds(job.config, "a learning curve")
    steps = make_plan(job).total_steps
    train = job.config.train.model_copy(update={"max_steps": steps})
    whole = job.config.model_copy(update={"train": train})
    parts = nested(job.data.train.examples, train.seed)
    progress = progress_of(progress)
    # Each part gets a method of its own: a method remembers the model that it prepared.
    scored = [_trained_on(job.with_config(whole), part, progress) for part in parts]
    return _curve(job, steps, [len(part) for part in parts], scored)


def nested(examples: Sequence[Example], seed: int) -> list[Sequence[Example]]:
    """Draw nested parts of the examples with the fractions of :data:`SHARES`."""
    order = np.random.default_rng(seed).permutation(len(examples))
    sizes = {min(len(examples), max(FEWEST, round(share * len(examples)))) for share in SHARES}
    return [[examples[index] for index in sorted(order[:size])] for size in sorted(sizes)]


def _trained_on(job: Job, part: Sequence[Example], progress: Progress) -> Evaluation:
    """Train on a part of the rows and score the model on all evaluation rows."""
    config, kept = job.config, {example.id for example in part}
    model = with_started_head(job, job.another_model(), part)
    guard = overfitting_guard(job, model)
    name = f"{len(part):,} rows"
    steps = progress.stage(f"train, {name}", total=config.train.max_steps, unit="step")
    with tempfile.TemporaryDirectory(prefix="fulltune-") as folder, steps as bar:
        result = fit(
            model,
            job.method,
            [features for features in job.features if features.row_id in kept],
            job.curve if job.data.valid else [],
            config,
            output_dir=Path(folder),
            class_weights=job.task.class_weights(part),
            on_step=mover(bar),
            callbacks=[guard] if guard else [],
        )
    if result.stopped is not None:
        raise result.stopped
    return score_system(job.task, model, f"tuned, {name}", job.data, progress)


def _curve(job: Job, steps: int, rows: Sequence[int], scored: Sequence[Evaluation]) -> LearningCurve:
    """Return the learning curve of scored parts, each with ``rows`` rows."""
    config, metric = job.config, job.task.metrics[0]
    settings = config.evaluation
    values = [evaluation.value(metric.name) for evaluation in scored]
    found = common_rows([item.accumulator for item in scored], metric.name)
    errors = [float(error) for error in _errors(metric, np.array(values))]
    law = doubling(rows, errors, _over_rows(rows, found, metric, settings.resamples), settings.confidence)
    counts = smallest_that_counts(metric, values[-1], settings.min_effect)
    few = found[0].size < least_rows(settings.confidence)
    helps = law is not None and law.low > 0 and law.gain >= counts and not few
    points = [
        Point(rows=count, score=item.scores(settings)[metric.name]) for count, item in zip(rows, scored, strict=True)
    ]
    return LearningCurve(
        task=config.task,
        model=config.model,
        metric=metric.name,
        direction=metric.direction,
        steps=steps,
        confidence=settings.confidence,
        points=tuple(points),
        doubled=None if law is None else _change(law, 2 * rows[-1]),
        verdict="more data helps" if helps else "undecided",
        headline=_headline(metric, rows[-1], values[-1], law, settings.confidence, counts, few),
    )


def _errors(metric: Metric, values: Array) -> Array:
    """Return errors, which a power law needs: of a score with a best value of 1, the fraction that is missing."""
    return 1 - values if metric.direction == "higher" else values


def _over_rows(rows: Sequence[int], scored: Sequence[Rows], metric: Metric, resamples: int) -> Interval:
    """Return the interval of the gain from twice the training rows, over evaluation rows (or their groups)."""
    if scored[0].size < 2:
        return lambda confidence: (math.nan, math.nan)
    units, width = np.hstack([one.units for one in scored]), scored[0].units.shape[1]

    def gain(sums: Array) -> Array:
        values = [metric.value(sums[..., width * part : width * (part + 1)]) for part in range(len(scored))]
        return gain_of_doubling(rows, _errors(metric, np.stack(values, axis=-1)))

    return interval_of(units, gain, resamples=resamples, seed=17)


def _change(law: Doubling, rows: int) -> Change:
    return Change(rows=rows, value=law.gain, low=law.low, high=law.high, exponent=law.exponent)


def _headline(
    metric: Metric, rows: int, value: float, law: Doubling | None, confidence: float, counts: float, few: bool
) -> str:
    name = metric.label or metric.name
    if law is None:
        needed = f"a power law needs {SIZES} sizes, each with some error left"
        why = needed if math.isfinite(value) else f"{name} is not a number"
        return f"The gain from twice the rows cannot be estimated: {why}."
    better = "higher" if metric.direction == "higher" else "lower"
    interval = f"{law.low:.3g} to {law.high:.3g} at {confidence:.0%}"
    if law.low <= 0 or few:
        return (
            f"The gain in {name} from twice the rows ({2 * rows:,}) cannot be estimated: {law.gain:.3g} {better} by "
            f"the fitted power law, with an interval from {interval}. More evaluation rows narrow it."
        )
    if law.gain < counts:
        return (
            f"Twice the rows ({2 * rows:,}) would change {name} by {law.gain:.3g} ({interval}), less than the "
            f"{counts:.3g} that count (evaluation.min_effect)."
        )
    return (
        f"Twice the rows ({2 * rows:,}) would make {name} about {law.gain:.3g} {better} than {value:.3g} ({interval}), "
        f"if the power law of these {rows:,} rows continues."
    )
