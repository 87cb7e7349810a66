"""The stages that :mod:`fulltune.pipeline.run` tells the story with, one function each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fulltune.config import Config
from fulltune.evaluation.evaluate import evaluate as score
from fulltune.evaluation.retention import Memory
from fulltune.models.bundle import Bundle
from fulltune.pipeline.job import _micro_batches, choosing_metric
from fulltune.pipeline.planning import plan as planning
from fulltune.records.run import Step
from fulltune.runtime import distributed
from fulltune.runtime.progress import Progress
from fulltune.store.runs import RunFolder
from fulltune.tasks.base import Features, Task
from fulltune.tasks.dataset import Data
from fulltune.training.checkpoints import format
from fulltune.training.fit import TrainingResult, fit
from fulltune.training.guards.forgetting import ForgettingGuard
from fulltune.training.guards.overfitting import OverfittingGuard
from fulltune.training.methods.base import Method
from fulltune.training.regularization import costs, general_text
from fulltune.training.regularization.penalties import regularizers

if TYPE_CHECKING:
    from transformers import TrainerCallback


def train(
    config: Config,
    task: Task,
    method: Method,
    student: Bundle,
    data: Data,
    features: Sequence[Features],
    curve: Sequence[Features],
    memory: Memory,
    folder: RunFolder,
    progress: Progress,
    callbacks: Sequence[TrainerCallback] = (),
) -> TrainingResult:
    """Train the student in place, from the newest checkpoint in the folder where there is one; every logged step goes
    to ``steps.jsonl`` and moves the bar.
    """
    resume = distributed.once(lambda: format.newest(folder.path))
    if distributed.is_main():
        _cut_steps(folder.path / "steps.jsonl", resume)
    general = general_features(config, memory.base, folder.path.parent)
    features = general_text.mixed(features, general, costs.replayed(config, len(features)))
    total, seen = planning.total_steps(config, len(features), _micro_batches(config, features, student)), 0
    with folder.append("steps.jsonl") as log, progress.stage("train", total=total, unit="step") as bar:

        def on_step(step: Step, steps: int) -> None:
            nonlocal seen
            log(step)
            bar.advance(step.step - seen, note="" if step.loss is None else f"loss {step.loss:.4g}")
            seen = step.step

        task.begin(student, data.train.examples)
        weights = task.class_weights(data.train.examples)
        trained = fit(
            student,
            method,
            features,
            curve,
            config,
            output_dir=folder.path,
            class_weights=weights,
            on_step=on_step,
            callbacks=[*guards(config, task, student, data, memory), *callbacks],
            regularize=lambda prepared: regularizers(config, memory.base, prepared, general),
            checkpoints=config.checkpoints,
            resume=resume,
        )
    known = memory.base.info.reconciled
    return replace(trained, reconciled=tuple(fact for fact in student.info.reconciled if fact not in known))


def _cut_steps(file: Path, resume: Path | None) -> None:
    """What was logged after the checkpoint comes again."""
    if not file.exists():
        return
    written = 0
    if resume is not None:
        state = json.loads((resume / "trainer_state.json").read_text(encoding="utf-8"))
        written = state["stateful_callbacks"]["StepLog"]["attributes"]["written"]
    with file.open("r+b") as lines:
        lines.truncate(sum(len(line) for line, _ in zip(lines, range(written), strict=False)))


def general_features(config: Config, base: Bundle, out: Path) -> list[Features]:
    """General text as training sequences, where a regularizer needs any."""
    if not costs.needs_general_text(config):
        return []
    return general_text.encode(base, general_text.general_text(config, base, out))


def guards(config: Config, task: Task, student: Bundle, data: Data, memory: Memory) -> list[TrainerCallback]:
    """What watches this training."""
    watching = (overfitting_guard(config, task, student, data), forgetting_guard(config, student, memory))
    return [guard for guard in watching if guard is not None]


def forgetting_guard(config: Config, student: Bundle, memory: Memory) -> ForgettingGuard | None:
    """Stops training that forgets; otherwise retention is scored once, at the end."""
    settings = config.guards.forgetting
    if settings is None or settings.action != "stop":
        return None
    return ForgettingGuard(lambda: memory.compare(student), settings.budget)


def overfitting_guard(config: Config, task: Task, student: Bundle, data: Data) -> OverfittingGuard | None:
    """Chooses the best step on the validation rows that the curve is drawn on; none where there are no such rows."""
    settings = config.guards.overfitting
    if settings is None or data.valid is None or not config.train.evaluations:
        return None
    metric = choosing_metric(config, task)
    if metric is None:
        return OverfittingGuard("loss", settings.patience, settings.min_delta)

    def scorer() -> dict[str, float]:
        predict = distributed.together(task.predictor(student, "tuned"))
        found = score(predict, data.shown, (metric,), system="tuned")
        return {metric.name: found.value(metric.name)}

    higher = metric.direction == "higher"
    return OverfittingGuard(metric.name, settings.patience, settings.min_delta, higher, scorer)
