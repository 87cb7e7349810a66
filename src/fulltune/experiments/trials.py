"""Train trials: trainings that are judged on validation rows and thrown away. Searches for settings consist of trials.

A trial has no baselines, no retention and no checkpoints, and never uses a row of the evaluation set.
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

from fulltune.config import Config, OverfittingConfig, with_validation_rows
from fulltune.evaluation.evaluate import evaluate
from fulltune.metrics.accumulate import Accumulator
from fulltune.metrics.base import Metric
from fulltune.models.bundle import Bundle
from fulltune.pipeline.head_start import with_started_head
from fulltune.pipeline.job import Job, prepare_job
from fulltune.pipeline.planning.measured_plan import make_plan
from fulltune.pipeline.train import general_features, mover, overfitting_guard
from fulltune.runtime import plugins
from fulltune.runtime.progress import Progress
from fulltune.training.arguments import total_steps
from fulltune.training.fit import TrainingResult, fit
from fulltune.training.guards.choosing_metric import choosing_metric
from fulltune.training.guards.overfitting import OverfittingGuard
from fulltune.training.regularization import costs, general_text
from fulltune.training.regularization.penalties import regularizers

#: Called after each evaluation but the first with its number, from 1, and the value; returning True ends the training.
Report = Callable[[int, float], bool]


@dataclass(frozen=True)
class Objective:
    """Criterion of trials: the metric that chooses the best step of a run, or the evaluation loss (no metric)."""

    metric: Metric | None

    @property
    def name(self) -> str:
        return self.metric.name if self.metric else "eval_loss"

    @property
    def direction(self) -> Literal["higher", "lower"]:
        return self.metric.direction if self.metric else "lower"


@dataclass(frozen=True)
class Trial:
    """Result of a training.

    Attributes:
        value: The best value on the validation rows after the first step; NaN if the training failed before one.
        step: Step of the best value.
        seconds: Wall time of training.
        tokens: Input tokens that were trained on.
        broke: The reason that training was stopped; empty if it was not.
        ended_early: True if the report function ended it.
        answers: Statistics of the objective per validation row; None if the objective is the loss.
    """

    value: float
    step: int
    seconds: float
    tokens: int
    broke: str = ""
    ended_early: bool = False
    answers: Accumulator | None = None


def objective(config: Config) -> Objective:
    """Return the criterion of trials of a config; its metric has no labels yet because no row has been read.

    Raises:
        ConfigError: ``guards.overfitting.metric`` is not a metric of the task.
    """
    return Objective(choosing_metric(config.guards, plugins.load("task", config.task)(config)))


class Bench:
    """Trains trials; rows are prepared once for all that share data, model and task.

    Args:
        out: The runs folder (a config's model may be one of its runs).
        progress: Shows one stage per trial.
        prepared: A config with validation rows, and its job, if its rows were read already.
    """

    def __init__(self, out: str | Path, progress: Progress, prepared: tuple[Config, Job] | None = None) -> None:
        self.out = Path(out)
        self.progress = progress
        self._kept = None if prepared is None else (_key(prepared[0]), prepared[1])

    def judge(self, config: Config) -> tuple[Objective, int]:
        """Return what trials of this config are judged by, and on how many rows.

        Raises:
            FulltuneError: Anything that would stop a run of the config before its first step.
        """
        job = self._job(with_validation_rows(config))
        make_plan(job)
        return Objective(choosing_metric(job.config.guards, job.task)), len(job.data.shown)

    def train(self, config: Config, name: str, report: Report = lambda number, value: False) -> Trial:
        """Train and judge one trial.

        Args:
            config: The config of the trial.
            name: Its name in the progress display.
            report: Called after each evaluation; returning True ends the trial.

        Raises:
            FulltuneError: Anything that would stop a run before its first step. Training that breaks is no error.
        """
        job = self._job(_thin(with_validation_rows(config)))
        make_plan(job)
        model = with_started_head(job, job.another_model(), job.data.train.examples)
        guard = overfitting_guard(job, model)
        if guard is None:
            raise TypeError("a trial has validation rows and evaluations")
        watch = _Watch(guard, report)
        result = self._fit(job, model, [guard, watch], name)
        value, step = _best(guard)
        return Trial(
            value=value,
            step=step,
            seconds=round(result.train_seconds, 3),
            tokens=result.training.tokens,
            broke=str(result.stopped) if result.stopped else "",
            ended_early=watch.ended_early,
            answers=_answers(job, model),
        )

    def _fit(self, job: Job, model: Bundle, callbacks: Sequence[TrainerCallback], name: str) -> TrainingResult:
        general = general_features(job.config, job.base, self.out)
        features = general_text.mixed(job.features, general, costs.replayed(job.config.regularize, len(job.features)))
        total = total_steps(job.config.train, len(features), job.micro_batches(features))
        stage = self.progress.stage(name, total=total, unit="step")
        with tempfile.TemporaryDirectory(prefix="fulltune-") as folder, stage as bar:
            return fit(
                model,
                job.method,
                features,
                job.curve,
                job.config,
                output_dir=Path(folder),
                class_weights=job.task.class_weights(job.data.train.examples),
                on_step=mover(bar),
                callbacks=callbacks,
                regularize=lambda prepared: regularizers(job.config, job.base, prepared, general),
            )

    def _job(self, config: Config) -> Job:
        """Return the job of a config; its rows and its base are those of the job before if they are the same."""
        key = _key(config)
        if self._kept is None or self._kept[0] != key:
            self._kept = (key, prepare_job(config, self.out))
        return self._kept[1].with_config(config)


def _key(config: Config) -> str:
    """Return what the rows and the base of a job depend on."""
    seed = config.train.seed if config.data.seed is None else config.data.seed
    return json.dumps([config.model_dump(mode="json", include={"model", "task", "data"}), seed])


def _answers(job: Job, model: Bundle) -> Accumulator | None:
    """Return the statistics of each validation row; None if the objective is the loss."""
    metric = choosing_metric(job.config.guards, job.task)
    if metric is None:
        return None
    predict = job.task.predictor(model, "tuned")
    return evaluate(predict, job.data.shown, (metric,), system="tuned").accumulator


class _Watch(TrainerCallback):
    """Report the values of the guard as they are computed."""

    def __init__(self, guard: OverfittingGuard, report: Report) -> None:
        self.guard, self.report, self.ended_early = guard, report, False

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        after = [value for step, value in self.guard.history if step > 0]
        if after and self.guard.history[-1][0] == state.global_step and self.report(len(after), after[-1]):
            self.ended_early = control.should_training_stop = True
        return control


def _thin(config: Config) -> Config:
    """Return the config without checkpoints, retention and trackers, and with an evaluation curve to choose by."""
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
    """Return the best value after the first step: the base competes with the winner, not with each trial."""
    after = [(value, step) for step, value in guard.history if step > 0 and math.isfinite(value)]
    if not after:
        return math.nan, 0
    return max(after) if guard.higher_is_better else min(after)
