"""What is asked of a base and again of the model tuned from it."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fulltune.config import Config, DataConfig, Source, load_config
from fulltune.data.load import Column, available_columns, load_table
from fulltune.errors import ConfigError, DataError, Problem
from fulltune.evaluation.retention import features, likelihoods
from fulltune.evaluation.retention.probe import Passage, by_language, load_probe
from fulltune.metrics.base import Array, Metric
from fulltune.models import inference
from fulltune.models.bundle import Bundle
from fulltune.records.run import Prediction
from fulltune.runtime import plugins
from fulltune.store.cache import cache_key
from fulltune.tasks import prompts
from fulltune.tasks.base import Example, Task

#: The task of a set of minimal pairs; it is scored, never trained.
PAIRS = "minimal-pairs"

#: Columns of a set of minimal pairs: ours, and those of BLiMP.
_PAIR_COLUMNS = (("good", "bad"), ("sentence_good", "sentence_bad"))


@dataclass(frozen=True)
class Ability(ABC):
    """One thing that a base can do.

    Attributes:
        name: As it stands in the record.
        rows: How many rows are asked.
        asked: Hash of what is asked; with the base's hash it names the cached answers.
    """

    name: str
    rows: int
    asked: str

    @abstractmethod
    def answer(self, bundle: Bundle) -> Iterator[Any]:
        """What a model says, a row at a time, as something that JSON holds."""


@dataclass(frozen=True)
class Scored(Ability):
    """An ability that a metric of ours measures; the answers are predictions."""

    metric: Metric
    predict: Callable[[Bundle], Iterator[Prediction]]

    def answer(self, bundle: Bundle) -> Iterator[Prediction]:
        return self.predict(bundle)


@dataclass(frozen=True)
class Represented(Ability):
    """The representation of an encoder without a head for words; the answers are unit vectors."""

    passages: tuple[Passage, ...]
    batch_size: int

    def answer(self, bundle: Bundle) -> Iterator[list[float]]:
        whole = [bundle.tokenizer(passage.text, truncation=False, verbose=False).input_ids for passage in self.passages]
        inputs = [prompts.cut(list(ids), bundle.window) for ids in whole]
        return (vector.tolist() for vector in inference.sentence_vectors(bundle, inputs, self.batch_size))

    def topics(self, vectors: Array) -> list[Prediction]:
        """What a linear classifier reads from the vectors; nothing where the passages have no topics."""
        wanted = [passage.topic for passage in self.passages]
        if not features.can_classify(wanted):
            return []
        return features.topics([passage.id for passage in self.passages], vectors, wanted)


def vectors(answers: Iterable[Any]) -> Array:
    """The answers of a :class:`Represented` as ``(n, hidden)``; NaN comes back from a file as text."""
    return np.array([[float(value) for value in row] for row in answers], dtype=np.float64)


def abilities(config: Config, base: Bundle) -> list[Ability]:
    """What ``guards.forgetting`` asks of this base.

    Raises:
        ConfigError: A set names no task, or one that the base cannot be asked.
        DataError: The probe's or a set's rows cannot be read.
    """
    settings = config.guards.forgetting
    if settings is None:
        return []
    passages = load_probe(settings.probe, settings.limit)
    found = list(_general_text(config, base, passages))
    return [*found, *(_of_set(name, options, config, base) for name, options in settings.sets.items())]


def check_sets(config: Config) -> None:
    """Whether ``guards.forgetting`` can do what it says, before anything is loaded.

    Raises:
        ConfigError: A set has no data or an unknown task, or training is to be stopped that is never looked at; all
            problems at once.
    """
    settings, problems = config.guards.forgetting, list[Problem]()
    if settings and settings.action == "stop" and not config.train.evaluations:
        problems.append(
            Problem(
                "stop, while train.evaluations is 0",
                "evaluations at which the probe is scored",
                "raise train.evaluations, or choose warn or reject",
                field="guards.forgetting.action",
            )
        )
    for name, options in settings.sets.items() if settings else ():
        try:
            job = _job(name, options, config)
            if job.task != PAIRS:
                plugins.load("task", job.task)
        except ConfigError as error:
            problems += [_placed(problem, name) for problem in error.problems]
    if problems:
        raise ConfigError(problems)


# ---- General text ----


def _general_text(config: Config, base: Bundle, passages: Sequence[Passage]) -> Iterator[Ability]:
    if base.family == "encoder" and not base.has_lm_head:
        asked = cache_key({"passages": [[passage.id, passage.text] for passage in passages]})
        yield Represented("representation", len(passages), asked, tuple(passages), config.evaluation.batch_size)
        return
    for language, rows in by_language(passages):
        name = f"general text ({language})" if language else "general text"
        texts = cache_key({"passages": [[passage.id, passage.text] for passage in rows]})
        metric, predict = _text_score(config, base, rows)
        yield Scored(name, len(rows), texts, metric, predict)


def _text_score(
    config: Config, base: Bundle, passages: Sequence[Passage]
) -> tuple[Metric, Callable[[Bundle], Iterator[Prediction]]]:
    size = config.evaluation.batch_size
    if base.family == "encoder":
        return likelihoods.masked_loss, lambda bundle: likelihoods.masking(bundle, passages, size)
    if base.family == "encoder-decoder":
        return likelihoods.denoising_metric(base), lambda bundle: likelihoods.denoising(bundle, passages, size)
    without = config.evaluation.model_copy(update={"continuations": 0})
    job = Config(model=config.model, task="causal-lm", data=DataConfig(train="probe"), evaluation=without)
    task = plugins.load("task", job.task)(job)
    examples = [Example(passage.id, "", passage.text) for passage in passages]
    return task.metrics[0], lambda bundle: task.predictor(bundle, "retention")(examples)


# ---- Sets that the user names ----


def _of_set(name: str, options: Mapping[str, Any], config: Config, base: Bundle) -> Ability:
    job = _job(name, options, config)
    if job.task == PAIRS:
        return _minimal_pairs(name, job, base)
    task: Task = plugins.load("task", job.task)(job)
    if base.family not in task.families:
        raise _unfit(name, f"a base of the {base.family} family", f"{' or '.join(task.families)} for {task.name}")
    source, split = _source(job)
    table = load_table(
        source, task.columns(available_columns(source)), job.data, limit=job.data.eval_limit, split=split
    )
    if table.problems:
        raise DataError(table.problems)
    examples = [task.example(row) for row in table]
    task = task.fit(examples, examples)
    asked = {"task": [task.name, task.version], "rows": table.sha256, "ids": [example.id for example in examples]}
    options_asked = job.model_dump(mode="json", include={"data", "evaluation"})
    return Scored(
        name,
        len(examples),
        cache_key(asked | options_asked),
        task.metrics[0],
        lambda bundle: task.predictor(bundle, "retention")(examples),
    )


def _job(name: str, options: Mapping[str, Any], config: Config) -> Config:
    """A set as a config of its own: its task and data, the run's model and evaluation."""
    # A set is asked on the day that the run is.
    data = {"chat_date": config.data.chat_date, **(options.get("data") or {})} if options.get("data") else {}
    if "train" not in data and isinstance(data.get("eval"), (str, list, tuple)):
        data["train"] = data["eval"]
    known = {"model": config.model, "evaluation": config.evaluation.model_dump()}
    job = load_config(known | dict(options) | ({"data": data} if data else {}))
    limit = config.guards.forgetting.limit if config.guards.forgetting else None
    limits = [value for value in (job.data.limit, job.data.eval_limit, limit) if value is not None]
    return job.model_copy(update={"data": job.data.model_copy(update={"eval_limit": min(limits)})})


def _source(job: Config) -> tuple[Source, str]:
    """Where the rows of a set lie, and the split of a hub id."""
    given = job.data.eval
    return (job.data.train, "train") if isinstance(given, float) else (given, "test")


def _minimal_pairs(name: str, job: Config, base: Bundle) -> Ability:
    if base.family == "encoder-decoder" or not base.has_lm_head:
        kind = base.family if base.has_lm_head else f"{base.family} without a head for words"
        raise _unfit(name, f"minimal pairs for an {kind}", "a decoder, or an encoder with a masked-LM head")
    source, split = _source(job)
    available = available_columns(source)
    good, bad = next((pair for pair in _PAIR_COLUMNS if set(pair) <= set(available)), _PAIR_COLUMNS[0])
    # Two roles of the loader that carry a text each.
    data = job.data.model_copy(update={"source": good, "target": bad})
    table = load_table(source, (Column("source", str), Column("target", str)), data, limit=data.eval_limit, split=split)
    if table.problems:
        raise DataError(table.problems)
    rows = [(row.id, str(row.fields["source"]), str(row.fields["target"])) for row in table]
    asked = cache_key({"pairs": hashlib.sha256(repr(rows).encode()).hexdigest()})
    size = job.evaluation.batch_size
    return Scored(
        name, len(rows), asked, likelihoods.pair_accuracy, lambda bundle: likelihoods.pairs(bundle, rows, size)
    )


def _unfit(name: str, found: str, expected: str) -> ConfigError:
    return ConfigError(found, expected=expected, fix="leave this set out", field=f"guards.forgetting.sets.{name}")


def _placed(problem: Problem, name: str) -> Problem:
    field = f"guards.forgetting.sets.{name}" + (f".{problem.field}" if problem.field else "")
    return Problem(problem.found, problem.expected, problem.fix, problem.where, field)
