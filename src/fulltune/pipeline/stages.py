"""The stages of a run that compute with its model. Importing this module imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fulltune.evaluation import evaluate
from fulltune.evaluation.baselines.cache import cache_parts
from fulltune.evaluation.baselines.catalog import gather
from fulltune.evaluation.evaluate import Evaluation, Sink, score_system
from fulltune.evaluation.retention import BaseOutputs
from fulltune.models.bundle import Bundle
from fulltune.models.fast_kernels import fast_kernels
from fulltune.pipeline import finish, resume, train
from fulltune.pipeline.folds import Train, cross_validate
from fulltune.pipeline.job import Job
from fulltune.pipeline.planning.measured_plan import checked_plan, counted_plan, crossed_plan, full_plan
from fulltune.pipeline.record import build_record, evaluation_record
from fulltune.records.data import DataSummary
from fulltune.records.run import FoldOutcome, Score
from fulltune.runtime.progress import Progress
from fulltune.runtime.stopwatch import Stopwatch
from fulltune.store.runs import RunFolder
from fulltune.tasks.base import Example
from fulltune.training.fit import TrainingResult

__all__ = [
    "build_record",
    "checked_plan",
    "collect_base_outputs",
    "counted_plan",
    "crossed_plan",
    "evaluation_record",
    "fast_kernels",
    "full_plan",
    "score_system",
    "score_without_training",
    "train_model",
    "with_tuned",
]


@dataclass(frozen=True)
class Known:
    """The results before the final model is trained.

    Attributes:
        job: The job, which leaves out the rows that any fold leaves out.
        summary: Description of the rows.
        systems: Evaluations by name: every baseline, and with folds also the tuned models of all folds.
        shots: The few-shot examples; those of folds are in their own runs.
        folds: The runs of the folds.
    """

    job: Job
    summary: DataSummary
    systems: Mapping[str, Evaluation]
    shots: Sequence[Example] = ()
    folds: tuple[FoldOutcome, ...] = ()

    def baseline_scores(self) -> dict[str, dict[str, Score]]:
        """Return the scores of every baseline by name."""
        kept = {name: one.without(self.job.left_out) for name, one in self.systems.items() if name != "tuned"}
        return {name: one.scores(self.job.config.evaluation) for name, one in kept.items()}


def score_without_training(
    job: Job,
    summary: DataSummary,
    folder: RunFolder,
    sink: Sink,
    train_fold: Train,
    progress: Progress,
    watch: Stopwatch,
) -> Known:
    """Score every baseline; with folds, train and score those first, which have baselines of their own."""
    if job.config.data.is_crossed:
        with watch("folds"):
            crossed = cross_validate(job, folder, sink, train_fold)
        leaked = crossed.leaks.ids if crossed.leaks else ()
        return Known(job.with_leaks(leaked), crossed.described(summary), crossed.systems, folds=crossed.folds)
    with watch("baselines"):
        shots, systems = _score_baselines(job, sink, progress)
    return Known(job, summary, systems, shots)


def _score_baselines(job: Job, sink: Sink, progress: Progress) -> tuple[Sequence[Example], dict[str, Evaluation]]:
    """Return the few-shot examples, and the evaluation of every baseline by name."""
    given = gather(job.config, job.task, job.data, job.base, len(job.features))
    key = cache_parts(job.task, job.config, job.base, job.data.train.table, job.data.eval.table)
    return given.shots, evaluate.score_baselines(given, job.data, key, job.out, sink, progress)


def with_tuned(known: Known, tuned: Bundle, sink: Sink, progress: Progress) -> dict[str, Evaluation]:
    """Return all evaluations by name; the tuned model is scored unless those of the folds were."""
    if "tuned" in known.systems:
        return dict(known.systems)
    job = known.job
    return {**known.systems, "tuned": score_system(job.task, tuned, "tuned", job.data, progress, sink)}


def collect_base_outputs(job: Job, progress: Progress) -> BaseOutputs:
    """Run the base on what must not be forgotten, before training overwrites it."""
    return BaseOutputs.collect(job.config, job.base, job.out, progress, job.data.train.examples)


def train_model(
    job: Job, base_outputs: BaseOutputs, folder: RunFolder, progress: Progress, watch: Stopwatch
) -> tuple[Bundle, TrainingResult]:
    """Train a model with its guards, save it, and return it with the result of its training."""
    with watch("train"):
        model, trained = train.train(job, job.model_to_train(), base_outputs, folder, progress)
    with watch("save"):
        trained = finish.finish(job, model, trained, folder)
        resume.keep(trained, folder)
    return model, trained
