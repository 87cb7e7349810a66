"""Answer rows with a baseline of a run: ``fulltune predict RUN#tfidf DATA``.

The baseline is fitted again on the training rows of the run, by its config and its seed, so that it gives the answers
of the report.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fulltune.config import load_config
from fulltune.errors import ConfigError, DataError, did_you_mean
from fulltune.pipeline.job import checked_task_and_method
from fulltune.pipeline.loaded_model import UnloadedModel
from fulltune.pipeline.model_loading import load_model
from fulltune.records.run import SCORES_ONLY, Prediction, Record, read_record
from fulltune.runtime import paths
from fulltune.tasks import dataset
from fulltune.tasks.base import Example, Task
from fulltune.tasks.generating import Generating

if TYPE_CHECKING:
    from fulltune.evaluation.baselines.base import Given
    from fulltune.models.bundle import Bundle

#: Rows that are answered at a time: a baseline is fitted once for each of these blocks.
_BLOCK = 20_000


def parted(name: str | Path | Record) -> tuple[str | Path | Record, str]:
    """Return the name of a run and that of its baseline, which is empty without a ``#``."""
    if not isinstance(name, str) or "#" not in name or paths.exists(Path(name)):
        return name, ""
    run, _, baseline = name.partition("#")
    return run, "" if baseline == "tuned" else baseline


class BaselineModel:
    """A baseline of a run that answers rows.

    Attributes:
        name: The run and the baseline, such as ``20250301-101530-clauses#tfidf``.
        task: The task, fitted to the rows of the run.
        block: Rows that are answered at a time.
    """

    block = _BLOCK

    def __init__(self, name: str, baseline: str, given: Given, identity: list[Any]) -> None:
        self.name = name
        self.task = given.task
        self.identity = identity
        self._baseline = baseline
        self._given = given

    def answer(self, examples: Sequence[Example]) -> Iterator[dict[str, Any]]:
        """Yield the answers to examples, in their order."""
        from fulltune.evaluation.baselines.catalog import answers

        if examples:
            yield from (_fields(self.task, one) for one in answers(self._baseline, self._given, examples).predictions)


def check_baseline(unloaded: UnloadedModel, baseline: str) -> None:
    """Check that a baseline belongs to a run and gives answers.

    Raises:
        ConfigError: It does not.
    """
    if unloaded.run is None:
        raise ConfigError(
            f"the baseline {baseline!r} of {unloaded.name}, which is no run",
            expected="a run or a version, whose training rows the baseline is fitted on",
            fix="leave --config out, and name a run",
        )
    task, skipped = unloaded.task, unloaded.config.baselines.skip
    known = [name for name in task.baselines if name not in skipped]
    if baseline not in known:
        raise ConfigError(
            f"no baseline {baseline!r} of {unloaded.name}",
            expected=f"one of {', '.join(known)}",
            fix=did_you_mean(baseline, known),
        )
    if task.name == SCORES_ONLY:
        raise ConfigError(
            f"the baseline {baseline!r} of the task {task.name}, which scores texts and answers none",
            expected="a model",
            fix=f"name the run alone: {unloaded.name}",
        )


def load_baseline(unloaded: UnloadedModel, baseline: str) -> BaselineModel:
    """Return a baseline of a run, for the training rows of the run.

    Raises:
        DataError: The training rows have changed since the run.
        FulltuneError: The rows cannot be read, or the base cannot be loaded.
    """
    from fulltune.evaluation.baselines.base import Given
    from fulltune.evaluation.baselines.catalog import WITHOUT_MODEL, gather, groups_of

    assert unloaded.run is not None
    config = load_config(unloaded.run / "config.yaml")  # columns that the caller renames are not those of train
    task, data = dataset.prepare(config, checked_task_and_method(config)[0])
    record, table = read_record(unloaded.run), data.train.table
    if table.sha256 != record.data.train.sha256:
        raise DataError(
            f"the training rows of {unloaded.name} have changed since the run",
            expected="the same rows, on which its baseline is fitted again",
            fix="restore the files, or run the config again",
            where=table.source,
        )
    if baseline in WITHOUT_MODEL:
        no_base = cast("Bundle", None)  # these baselines read no model
        given = Given(task, no_base, config.baselines, data.train.examples, groups_of(config, data))
    else:
        given = gather(config, task, data, load_model(config, task, unloaded.out), record.plan.sequences)
    settings = config.model_dump(mode="json", include={"model", "data", "baselines", "evaluation", "task"})
    identity = [baseline, table.sha256, record.model.sha256, task.version, task.labels, settings]
    return BaselineModel(f"{unloaded.name}#{baseline}", baseline, given, identity)


def _fields(task: Task, prediction: Prediction) -> dict[str, Any]:
    output = prediction.output if isinstance(prediction.output, str) else list(prediction.output)
    sure = {name: prediction.values[name] for name in ("probabilities", "confidence") if name in prediction.values}
    named = {task.answer_name: output} if isinstance(task, Generating) else {}
    return {"prediction": output} | named | sure
