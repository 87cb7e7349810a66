"""Name all baselines, and gather what they may read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fulltune.config import BaselineConfig, Config
from fulltune.evaluation.baselines.base import Answers, Baseline, Given, allowed_rows
from fulltune.evaluation.baselines.constant import majority
from fulltune.evaluation.baselines.ngrams import ngram
from fulltune.evaluation.baselines.probe import linear_probe, rows_read
from fulltune.evaluation.baselines.prompted import few_shot, few_shot_rows, zero_shot
from fulltune.evaluation.baselines.shots import choose_shots
from fulltune.evaluation.baselines.text_svm import tfidf
from fulltune.evaluation.baselines.texts import copy, lead, nearest, nearest_values
from fulltune.tasks.base import Example, Predictor, Task
from fulltune.tasks.dataset import Data

if TYPE_CHECKING:
    from fulltune.models.bundle import Bundle

#: All baselines. Those of a task are named by its attribute ``baselines``.
BASELINES: Mapping[str, Baseline] = {
    "majority": majority,
    "tfidf": tfidf,
    "linear_probe": linear_probe,
    "copy": copy,
    "lead": lead,
    "nearest": nearest,
    "nearest_values": nearest_values,
    "ngram": ngram,
    "zero_shot": zero_shot,
    "few_shot": few_shot,
}

#: Baselines that compute nothing with the base model.
WITHOUT_MODEL = ("majority", "tfidf", "copy", "lead", "nearest", "nearest_values", "ngram")


def gather(config: Config, task: Task, data: Data, base: Bundle, sequences: int) -> Given:
    """Return what the baselines of a config may read, given the number of training sequences per epoch."""
    train = data.train.examples
    groups = groups_of(config, data)
    shots = choose_shots(task, config.baselines, base.family, train, data.eval.examples)
    rows = allowed_rows(config.baselines, config.train, sequences, len(data.eval.examples))
    return Given(task, base, config.baselines, train, groups, tuple(shots), rows)


def groups_of(config: Config, data: Data) -> tuple[str, ...]:
    """Return the group of each training row; empty if the config names no column of groups."""
    return tuple(str(row.fields["group"]) for row in data.train.table) if config.data.group else ()


def chosen(task: Task, settings: BaselineConfig) -> tuple[str, ...]:
    """Return the names of the baselines of a task, without those that are switched off."""
    return tuple(name for name in task.baselines if name not in settings.skip)


def answered_rows(name: str, given: Given, examples: Sequence[Example]) -> tuple[Sequence[Example], str]:
    """Return the evaluation rows that a baseline answers, and a note if they are not all rows.

    Only few-shot may answer fewer; without examples, the base costs what scoring the tuned model costs.
    """
    return few_shot_rows(given, examples) if name == "few_shot" else (examples, "")


def extent(name: str, given: Given, answered: int) -> dict[str, int]:
    """Return the numbers of rows that answers depend on: those that are answered, and those of train that are read."""
    read = {"read": rows_read(given, answered)} if name == "linear_probe" else {}
    return {"answered": answered, **read}


def answers(name: str, given: Given, examples: Sequence[Example]) -> Answers:
    """Return the answers of a baseline; a name of another package's task is a system of its predictor."""
    known = BASELINES.get(name)
    return Answers(given.task.predictor(given.base, name)(examples)) if known is None else known(given, examples)


def predictor(name: str, given: Given) -> Predictor:
    """Return a baseline as a function from examples to predictions."""
    return lambda examples: answers(name, given, examples).predictions
