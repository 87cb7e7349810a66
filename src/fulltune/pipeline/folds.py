"""Cross-validation: train on all folds but one, for each of them in turn, and put their answers together.

The training of a fold is a run of its own (``data.fold``) with its own baselines, so that nothing that answers a row
was fitted to it. A fold that is finished is not trained again when the run is resumed.
"""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fulltune.config import Config
from fulltune.evaluation.evaluate import Evaluation, Sink
from fulltune.metrics.accumulate import Accumulator
from fulltune.metrics.run_comparison import predictions_of
from fulltune.pipeline.fold_configs import numbers, of_fold
from fulltune.pipeline.job import Job
from fulltune.pipeline.resume import unfinished
from fulltune.records.data import DataSummary, Leaks
from fulltune.records.run import BaselineUse, FoldOutcome, Record, read_record
from fulltune.runtime.validation import read_object
from fulltune.store.runs import RunFolder, part_of

_LOG = logging.getLogger(__name__)

#: File with the run of each finished fold.
_RUNS = "folds.json"

#: Runs the config of a fold; the second argument is the run to resume, if there is one.
Train = Callable[[Config, str | None], Record]


@dataclass(frozen=True)
class Crossed:
    """Answers to all rows, each by systems that were not fitted to it.

    Attributes:
        systems: Every baseline and the tuned models, by name.
        folds: The runs of the folds.
        leaks: Rows of a fold that also occur in its training rows; None if there are none.
    """

    systems: dict[str, Evaluation]
    folds: tuple[FoldOutcome, ...]
    leaks: Leaks | None

    def described(self, summary: DataSummary) -> DataSummary:
        """Return a description of the rows with the leaks of all folds."""
        return summary.model_copy(update={"leaks": self.leaks})


def cross_validate(job: Job, folder: RunFolder, sink: Sink, train: Train) -> Crossed:
    """Train and score every fold, and return the answers of all.

    Args:
        job: The job of the run; its evaluation rows are those of all folds.
        folder: The run folder.
        sink: Called with every prediction.
        train: Runs the config of a fold.

    Raises:
        FulltuneError: Anything that stops a run.
    """
    records = [_record(job, fold, folder, train) for fold in numbers(job.config)]
    names = list(dict.fromkeys(name for record in records for name in record.scores))
    return Crossed(
        systems={name: _together(name, job, records, sink) for name in names},
        folds=tuple(_outcome(fold, record) for fold, record in enumerate(records, start=1)),
        leaks=_leaks(records),
    )


def _record(job: Job, fold: int, folder: RunFolder, train: Train) -> Record:
    """Return the record of a fold, which is trained if it is not finished."""
    path = folder.path / _RUNS
    done: dict[str, str] = read_object(path, "the list of runs") if path.exists() else {}
    known = job.out / done.get(str(fold), "-")
    if (known / "record.json").exists():
        return read_record(known)
    config = of_fold(job.config, fold)
    _LOG.info("fold %d of %d", fold, job.config.data.folds)
    with part_of(folder.run_id):
        record = train(config, unfinished(config, job.out))
    for name in ("model", "adapter"):  # the final model is trained on all rows
        shutil.rmtree(record.folder / name, ignore_errors=True)
    folder.write_json(_RUNS, {**done, str(fold): record.run_id})
    return record


def _together(name: str, job: Job, records: Sequence[Record], sink: Sink) -> Evaluation:
    """Return the evaluation of a system on the rows of all folds that have it."""
    accumulator = Accumulator(job.task.metrics)
    mine = [record for record in records if name in record.scores]
    for record in mine:
        for prediction in predictions_of(record.folder, name):
            accumulator.add(prediction)
            sink(prediction)
    uses = [record.baselines[name] for record in mine if name in record.baselines]
    use = _use(uses) if uses else None
    return Evaluation(name, accumulator, sum(one.seconds for one in uses), use)


def _use(uses: Sequence[BaselineUse]) -> BaselineUse:
    """Return how a baseline was computed in all folds."""
    sampled = next((use.sampled for use in uses if use.sampled), "")
    return BaselineUse(
        seconds=sum(use.seconds for use in uses),
        setting="; ".join(dict.fromkeys(use.setting for use in uses if use.setting)),
        sampled=f"in each fold: {sampled}" if sampled else "",
        is_cached=all(use.is_cached for use in uses),
    )


def _outcome(fold: int, record: Record) -> FoldOutcome:
    return FoldOutcome(
        fold=fold,
        run_id=record.run_id,
        train_rows=record.data.train.rows,
        score=record.scores["tuned"][record.metric],
        outcome=record.outcome,
    )


def _leaks(records: Sequence[Record]) -> Leaks | None:
    found = [record.data.summary.leaks for record in records if record.data.summary.leaks is not None]
    if not found:
        return None
    kinds = Counter[str]()
    for leaks in found:
        kinds.update(leaks.kinds)
    return Leaks(
        rows=sum(leaks.rows for leaks in found),
        of=sum(record.data.eval.rows for record in records),
        kinds=dict(kinds),
        ids=tuple(row for leaks in found for row in leaks.ids),
        counted=found[0].counted,
    )
