"""The stages of a run that compute with its model. Importing this module imports torch."""

from __future__ import annotations

from collections.abc import Sequence

from fulltune.evaluation import evaluate
from fulltune.evaluation.baselines.cache import cache_parts
from fulltune.evaluation.baselines.catalog import gather
from fulltune.evaluation.evaluate import Evaluation, Sink, score_system
from fulltune.evaluation.retention import BaseOutputs
from fulltune.models.bundle import Bundle
from fulltune.models.fast_kernels import fast_kernels
from fulltune.pipeline import finish, resume, train
from fulltune.pipeline.folds import cross_validate
from fulltune.pipeline.job import Job
from fulltune.pipeline.planning.measured_plan import checked_plan, counted_plan, crossed_plan, full_plan
from fulltune.pipeline.record import build_record, evaluation_record
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
    "cross_validate",
    "crossed_plan",
    "evaluation_record",
    "fast_kernels",
    "full_plan",
    "score_baselines",
    "score_system",
    "train_model",
]


def score_baselines(job: Job, sink: Sink, progress: Progress) -> tuple[Sequence[Example], dict[str, Evaluation]]:
    """Return the few-shot examples, and the evaluation of every baseline by name."""
    given = gather(job.config, job.task, job.data, job.base, len(job.features))
    key = cache_parts(job.task, job.config, job.base, job.data.train.table, job.data.eval.table)
    return given.shots, evaluate.score_baselines(given, job.data, key, job.out, sink, progress)


def collect_base_outputs(job: Job, progress: Progress) -> BaseOutputs:
    """Run the base on what must not be forgotten, before training overwrites it."""
    return BaseOutputs.collect(job.config, job.base, job.out, progress, job.data.train.examples)


def train_model(
    job: Job, base_outputs: BaseOutputs, folder: RunFolder, progress: Progress, watch: Stopwatch
) -> tuple[Bundle, TrainingResult]:
    """Train a model with its guards, save it, and return it with the result of its training."""
    with watch("train"):
        model = job.model_to_train()
        trained = train.train(job, model, base_outputs, folder, progress)
    with watch("save"):
        trained = finish.finish(job, model, trained, folder)
        resume.keep(trained, folder)
    return model, trained
