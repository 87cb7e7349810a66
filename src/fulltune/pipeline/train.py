"""Train the model of a job, with its guards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fulltune.config import Config, ForgettingConfig
from fulltune.evaluation.evaluate import evaluate as score
from fulltune.evaluation.retention import BaseOutputs
from fulltune.models.bundle import Bundle
from fulltune.pipeline.head_start import with_started_head
from fulltune.pipeline.job import Job
from fulltune.records.run import Step
from fulltune.runtime import distributed
from fulltune.runtime.progress import Bar, Progress
from fulltune.store.runs import RunFolder
from fulltune.tasks.base import Features
from fulltune.training.arguments import total_steps
from fulltune.training.callbacks import StepLog
from fulltune.training.checkpoints import format
from fulltune.training.fit import TrainingResult, fit
from fulltune.training.guards.choosing_metric import choosing_metric
from fulltune.training.guards.forgetting import ForgettingGuard
from fulltune.training.guards.overfitting import OverfittingGuard
from fulltune.training.regularization import costs, general_text
from fulltune.training.regularization.penalties import regularizers

if TYPE_CHECKING:
    from transformers import TrainerCallback


def train(
    job: Job,
    model: Bundle,
    base_outputs: BaseOutputs,
    folder: RunFolder,
    progress: Progress,
    callbacks: Sequence[TrainerCallback] = (),
) -> tuple[Bundle, TrainingResult]:
    """Train a model in place, from the newest checkpoint in the run folder if there is one.

    Every logged step is written to ``steps.jsonl`` and moves the progress bar. Steps in that file that were logged
    after the checkpoint are removed first.

    Args:
        job: The data, the config and the method.
        model: The model, with the head of the task.
        base_outputs: Outputs of the base, which guards compare with.
        folder: The run folder.
        progress: Shows the steps.
        callbacks: Further callbacks of the trainer.

    Returns:
        The trained model, whose facts include how its head was initialized, and the result of the training.
    """
    config = job.config
    resume = distributed.on_main(lambda: format.newest(folder.path))
    if distributed.is_main():
        _cut_steps(folder.path / "steps.jsonl", resume)
    general = general_features(config, base_outputs.base, job.out)
    features = general_text.mixed(job.features, general, costs.replayed(config.regularize, len(job.features)))
    total = total_steps(config.train, len(features), job.micro_batches(features))
    with folder.append("steps.jsonl") as log, progress.stage("train", total=total, unit="step") as bar:
        move = mover(bar)

        def on_step(step: Step, steps: int) -> None:
            log(step)
            move(step, steps)

        started = with_started_head(job, model, job.data.train.examples)
        trained = fit(
            started,
            job.method,
            features,
            job.curve,
            config,
            output_dir=folder.path,
            class_weights=job.task.class_weights(job.data.train.examples),
            on_step=on_step,
            callbacks=[*guards(job, started, base_outputs), *callbacks],
            regularize=lambda prepared: regularizers(config, base_outputs.base, prepared, general),
            checkpoints=config.checkpoints,
            resume=resume,
        )
    known = base_outputs.base.info.reconciled
    own = tuple(fact for fact in started.info.reconciled if fact not in known)
    return started, replace(trained, reconciled=own)


def mover(bar: Bar) -> Callable[[Step, int], None]:
    """Return a function that moves a bar along with the steps that a training logs."""
    seen = 0

    def on_step(step: Step, total: int) -> None:
        nonlocal seen
        bar.advance(step.step - seen, note="" if step.loss is None else f"loss {step.loss:.4g}")
        seen = step.step

    return on_step


def _cut_steps(file: Path, resume: Path | None) -> None:
    """Remove the steps that were logged after the checkpoint: they are logged again."""
    if not file.exists():
        return
    written = 0 if resume is None else StepLog.written_at(resume)
    with file.open("r+b") as lines:
        lines.truncate(sum(len(line) for line, _ in zip(lines, range(written), strict=False)))


def general_features(config: Config, base: Bundle, out: Path) -> list[Features]:
    """Return general text as training sequences if a regularizer needs any."""
    if not costs.needs_general_text(config.regularize):
        return []
    return general_text.encode(base, general_text.general_text(config, base, out))


def guards(job: Job, model: Bundle, base_outputs: BaseOutputs) -> list[TrainerCallback]:
    """Return the guards that watch this training."""
    watching = (overfitting_guard(job, model), forgetting_guard(job.config.guards.forgetting, model, base_outputs))
    return [guard for guard in watching if guard is not None]


def forgetting_guard(
    settings: ForgettingConfig | None, model: Bundle, base_outputs: BaseOutputs
) -> ForgettingGuard | None:
    """Return the guard that stops a training that forgets; None if retention is only scored at the end."""
    if settings is None or settings.action != "stop":
        return None
    return ForgettingGuard(lambda: base_outputs.compare(model), settings.budget)


def overfitting_guard(job: Job, model: Bundle) -> OverfittingGuard | None:
    """Return the guard that keeps the best step on the validation rows; None without such rows."""
    settings = job.config.guards.overfitting
    if settings is None or job.data.valid is None or not job.config.train.evaluations:
        return None
    metric = choosing_metric(job.config.guards, job.task)
    if metric is None:
        return OverfittingGuard("loss", settings.patience, settings.min_delta)

    def scorer() -> dict[str, float]:
        predict = distributed.sharded(job.task.predictor(model, "tuned"))
        evaluation = score(predict, job.data.shown, (metric,), system="tuned")
        return {metric.name: evaluation.value(metric.name)}

    higher = metric.direction == "higher"
    return OverfittingGuard(metric.name, settings.patience, settings.min_delta, higher, scorer)
