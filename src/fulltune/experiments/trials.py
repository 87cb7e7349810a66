"""A trial: one training that is judged on validation rows and thrown away. Searches for settings are made of trials.

No baseline, no retention, no checkpoint, and never a row of the evaluation set.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fulltune.config import Config, OverfittingConfig, ready_to_choose
from fulltune.evaluation.evaluate import evaluate
from fulltune.metrics.accumulate import Accumulator
from fulltune.metrics.base import Metric
from fulltune.models.bundle import Bundle
from fulltune.pipeline import job
from fulltune.pipeline.job import choosing_metric
from fulltune.pipeline.planning import measured_plan
from fulltune.pipeline.planning.plan import total_steps
from fulltune.pipeline.train import general_features, overfitting_guard
from fulltune.records.run import Step
from fulltune.runtime import plugins
from fulltune.runtime.progress import Bar, Progress
from fulltune.tasks import dataset
from fulltune.tasks.base import Features, Task
from fulltune.tasks.dataset import Data
from fulltune.training.fit import TrainingResult, fit
from fulltune.training.guards.overfitting import OverfittingGuard
from fulltune.training.regularization import costs, general_text
from fulltune.training.regularization.penalties import regularizers

#: Told of each evaluation after the first step: its number from 1, and the value. True ends the training.
Report = Callable[[int, float], bool]


@dataclass(frozen=True)
class Objective:
    """What trials are judged by: the metric that chooses the best step of a run, or the evaluation loss (no metric)."""

    metric: Metric | None

    @property
    def name(self) -> str:
        return self.metric.name if self.metric else "eval_loss"

    @property
    def direction(self) -> Literal["higher", "lower"]:
        return self.metric.direction if self.metric else "lower"


@dataclass(frozen=True)
class Trial:
    """What came of a training.

    Attributes:
        value: The best value on the validation rows after the first step; NaN where training broke before one.
        step: Where that was.
        seconds: Wall time of training.
        tokens: Input tokens seen.
        broke: Why training was stopped; empty where it was not.
        ended_early: Whether the report asked for that.
        answers: The objective's statistics of each validation row; None where the objective is the loss.
    """

    value: float
    step: int
    seconds: float
    tokens: int
    broke: str = ""
    ended_early: bool = False
    answers: Accumulator | None = None


def objective(config: Config) -> Objective:
    """What trials of the config are judged by; its metric knows no labels yet, for no row has been read.

    Raises:
        ConfigError: ``guards.overfitting.metric`` is no metric of the task.
    """
    return Objective(choosing_metric(config, plugins.load("task", config.task)(config)))


@dataclass(frozen=True)
class _Rows:
    """A config's rows as its model reads them."""

    data: Data
    base: Bundle
    features: list[Features]
    curve: list[Features]


class Bench:
    """Trains trials; rows are prepared once for all that share data, model and task.

    Args:
        out: Where runs live (a config's model may be one of them).
        progress: Gets a stage a trial.
    """

    def __init__(self, out: str | Path, progress: Progress) -> None:
        self.out, self.progress = Path(out), progress
        self._kept: tuple[str, _Rows] | None = None

    def judge(self, config: Config) -> tuple[Objective, int]:
        """What trials of this config are judged by, for the labels of its rows, and on how many rows.

        Raises:
            FulltuneError: All that would stop a run of it before its first step.
        """
        config = ready_to_choose(config)
        data = self._rows(config).data
        return Objective(choosing_metric(config, _task(config, data))), len(data.shown)

    def train(self, config: Config, name: str, report: Report = lambda number, value: False) -> Trial:
        """One trial.

        Raises:
            FulltuneError: All that would stop a run before its first step. Training that breaks is no error.
        """
        config = _thin(ready_to_choose(config))
        rows = self._rows(config)
        task = _task(config, rows.data)
        measured_plan.make_plan(config, task, rows.data, rows.base, rows.features)
        student = job.load(config, task, self.out, head=task.head)
        task.begin(student, rows.data.train.examples)
        guard = overfitting_guard(config, task, student, rows.data)
        if guard is None:
            raise TypeError("a trial has validation rows and evaluations")
        watch = _Watch(guard, report)
        result = self._fit(config, task, student, rows, [guard, watch], name)
        value, step = _best(guard)
        return Trial(
            value=value,
            step=step,
            seconds=round(result.train_seconds, 3),
            tokens=result.training.tokens,
            broke=str(result.stopped) if result.stopped else "",
            ended_early=watch.ended_early,
            answers=self._answers(config, task, student, rows.data),
        )

    def _fit(
        self,
        config: Config,
        task: Task,
        student: Bundle,
        rows: _Rows,
        callbacks: Sequence[TrainerCallback],
        name: str,
    ) -> TrainingResult:
        general = general_features(config, rows.base, self.out)
        features = general_text.mixed(rows.features, general, costs.replayed(config, len(rows.features)))
        stage = self.progress.stage(name, total=total_steps(config, len(features)), unit="step")
        with tempfile.TemporaryDirectory(prefix="fulltune-") as folder, stage as bar:
            return fit(
                student,
                plugins.load("method", config.method)(config),
                features,
                rows.curve,
                config,
                output_dir=Path(folder),
                class_weights=task.class_weights(rows.data.train.examples),
                on_step=mover(bar),
                callbacks=callbacks,
                regularize=lambda prepared: regularizers(config, rows.base, prepared, general),
            )

    def _answers(self, config: Config, task: Task, student: Bundle, data: Data) -> Accumulator | None:
        metric = choosing_metric(config, task)
        if metric is None:
            return None
        return evaluate(task.predictor(student, "tuned"), data.shown, (metric,), system="tuned").accumulator

    def _rows(self, config: Config) -> _Rows:
        seed = config.train.seed if config.data.seed is None else config.data.seed
        key = json.dumps([config.model_dump(mode="json", include={"model", "task", "data"}), seed])
        if self._kept is None or self._kept[0] != key:
            task, _ = job.parts(config)
            data = dataset.prepare(config, task)
            base = job.load(config, task, self.out)
            audit, features, curve = dataset.inspect(config, task, data, base)
            audit.raise_if_broken(config.data.allow_leaks)
            measured_plan.make_plan(config, task, data, base, features)
            self._kept = (key, _Rows(data, base, features, curve))
        return self._kept[1]


def mover(bar: Bar) -> Callable[[Step, int], None]:
    """What moves a bar along with the steps that a training logs."""
    seen = 0

    def on_step(step: Step, total: int) -> None:
        nonlocal seen
        bar.advance(step.step - seen, note="" if step.loss is None else f"loss {step.loss:.4g}")
        seen = step.step

    return on_step


class _Watch(TrainerCallback):
    """Reports the guard's values as they come."""

    def __init__(self, guard: OverfittingGuard, report: Report) -> None:
        self.guard, self.report, self.ended_early = guard, report, False

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        after = [value for step, value in self.guard.history if step > 0]
        if after and self.guard.history[-1][0] == state.global_step and self.report(len(after), after[-1]):
            self.ended_early = control.should_training_stop = True
        return control


def _task(config: Config, data: Data) -> Task:
    task: Task = plugins.load("task", config.task)(config)
    task.fit(data.train.examples, data.held_out)
    return task


def _thin(config: Config) -> Config:
    """Nothing is written, nothing is asked of the base, and there is a curve to choose by."""
    guards = {"forgetting": None, "overfitting": config.guards.overfitting or OverfittingConfig(patience=0)}
    train = {"evaluations": max(1, config.train.evaluations)}
    return config.model_copy(
        update={
            "train": config.train.model_copy(update=train),
            "guards": config.guards.model_copy(update=guards),
            "checkpoints": None,
            "trainer": config.trainer | {"save_strategy": "no", "report_to": "none"},
        }
    )


def _best(guard: OverfittingGuard) -> tuple[float, int]:
    """The best value after the first step: the base competes with the winner, not with each trial."""
    after = [(value, step) for step, value in guard.history if step > 0 and math.isfinite(value)]
    if not after:
        return math.nan, 0
    return max(after) if guard.higher_is_better else min(after)
