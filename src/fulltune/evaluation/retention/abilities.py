"""Define the abilities that are measured on a base model and on the model tuned from it."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np

from fulltune.config import Config, DataConfig, DataSource, EvaluationConfig, ForgettingConfig
from fulltune.data.load import Column, available_columns, load_table
from fulltune.data.probe import BUILTIN
from fulltune.data.sample import sampled
from fulltune.errors import ConfigError
from fulltune.evaluation.retention import features, likelihoods
from fulltune.evaluation.retention.language import languages_of, unbudgeted, unread
from fulltune.evaluation.retention.probe import Passage, by_language, load_probe
from fulltune.evaluation.retention_sets import PAIRS, config_of_set
from fulltune.metrics.base import Array, Metric
from fulltune.models import inference
from fulltune.models.bundle import Bundle
from fulltune.records.run import Prediction
from fulltune.runtime import plugins
from fulltune.store.cache import cache_key
from fulltune.tasks import prompts
from fulltune.tasks.base import Example, Task

#: Accepted columns of a set of minimal pairs; the second pair is that of BLiMP.
_PAIR_COLUMNS = (("good", "bad"), ("sentence_good", "sentence_bad"))


@dataclass(frozen=True)
class Ability(ABC):
    """An ability of a base model that is measured.

    Attributes:
        name: Name in the record.
        rows: Number of rows.
        digest: Hash of the rows and options; with the hash of the base it identifies the cached outputs.
        unbudgeted: The reason that a loss of it is only reported; empty if it has a budget.
        is_inferred: It has a budget because the data is in its language; without effect if the base does not know it.
    """

    name: str
    rows: int
    digest: str
    unbudgeted: str = field(default="", kw_only=True)
    is_inferred: bool = field(default=False, kw_only=True)

    @abstractmethod
    def outputs(self, bundle: Bundle) -> Iterator[Any]:
        """Yield the output of a model for each row, as a value that JSON can represent."""


@dataclass(frozen=True)
class ScoredAbility(Ability):
    """An ability measured by a metric; its outputs are predictions."""

    metric: Metric
    predict: Callable[[Bundle], Iterator[Prediction]]

    def outputs(self, bundle: Bundle) -> Iterator[Prediction]:
        return self.predict(bundle)


@dataclass(frozen=True)
class RepresentationAbility(Ability):
    """The representation of an encoder without a language-modeling head; its outputs are unit vectors."""

    passages: tuple[Passage, ...]
    batch_size: int
    topics_name: str

    def outputs(self, bundle: Bundle) -> Iterator[list[float]]:
        inputs = []
        for passage in self.passages:
            ids = bundle.tokenizer(passage.text, truncation=False, verbose=False).input_ids
            inputs.append(prompts.keep_ends(list(ids), bundle.window))
        return (vector.tolist() for vector in inference.sentence_vectors(bundle, inputs, self.batch_size))

    def topics(self, vectors: Array) -> list[Prediction]:
        """Return the topics that a linear probe predicts from the vectors; empty if the passages have no topics."""
        targets = [passage.topic for passage in self.passages]
        if not features.can_classify(targets):
            return []
        return features.topics([passage.id for passage in self.passages], vectors, targets)


def vectors(outputs: Iterable[Any]) -> Array:
    """Return the outputs of a :class:`RepresentationAbility` as ``(n, hidden)``."""
    # NaN is read back from a file as text.
    return np.array([[float(value) for value in row] for row in outputs], dtype=np.float64)


def abilities(config: Config, base: Bundle, train: Sequence[Example] = ()) -> list[Ability]:
    """Return the abilities that ``guards.forgetting`` measures for this base.

    What the config names has a budget: a probe of its own, its sets, the languages in ``keep``. Of the default probe,
    only the languages of the data have one, and only if the base knows them.

    Args:
        config: The config of the run.
        base: The base model.
        train: Rows of train.

    Raises:
        ConfigError: A set has no task, or one that the base does not support.
        DataError: Rows of the probe or of a set cannot be read.
    """
    settings = config.guards.forgetting
    if settings is None:
        return []
    passages = load_probe(settings.probe, settings.limit)
    general = list(_general_text(config.model, config.evaluation, base, passages, _Kept.of(settings, train)))
    return [*general, *(_of_set(name, options, config, base) for name, options in settings.sets.items())]


# ---- General text ----


class _Reason(TypedDict):
    """The reason that an ability has no budget, as :class:`Ability` takes it."""

    unbudgeted: str
    is_inferred: bool


@dataclass(frozen=True)
class _Kept:
    """Languages of the built-in general text that have a budget; None: the probe is not built in, all have one."""

    languages: tuple[str, ...] | None
    inferred: bool

    @classmethod
    def of(cls, settings: ForgettingConfig, train: Sequence[Example]) -> _Kept:
        if settings.keep is not None:
            return cls(tuple(settings.keep), inferred=False)
        if settings.probe != BUILTIN:
            return cls(None, inferred=False)
        return cls(languages_of(train), inferred=True)

    def why_not(self, base: Bundle, language: str, rows: Sequence[Passage]) -> str:
        """Return why a language has no budget; empty if it has one."""
        if self.languages is None:
            return ""
        why = unbudgeted(language, self.languages, inferred=self.inferred)
        return why or (unread(base, [passage.text for passage in rows]) if self.inferred else "")


def _general_text(
    model: str, settings: EvaluationConfig, base: Bundle, passages: Sequence[Passage], kept: _Kept
) -> Iterator[Ability]:
    """Yield the abilities on general text, one per language."""
    for language, rows in by_language(passages):
        suffix = f" ({language})" if language else ""
        digest = cache_key({"passages": [[passage.id, passage.text] for passage in rows]})
        why = _Reason(unbudgeted=kept.why_not(base, language, rows), is_inferred=kept.inferred)
        if base.family == "encoder" and not base.has_lm_head:
            batch_size, names = settings.batch_size, (f"representation{suffix}", f"topics{suffix}")
            yield RepresentationAbility(names[0], len(rows), digest, rows, batch_size, names[1], **why)
        else:
            metric, predict = _text_score(model, settings, base, rows)
            yield ScoredAbility(f"general text{suffix}", len(rows), digest, metric, predict, **why)


def _text_score(
    model: str, settings: EvaluationConfig, base: Bundle, passages: Sequence[Passage]
) -> tuple[Metric, Callable[[Bundle], Iterator[Prediction]]]:
    """Return the metric of general text for a model family, and the function that computes its predictions."""
    size = settings.batch_size
    if base.family == "encoder":
        return likelihoods.masked_loss, lambda bundle: likelihoods.masking(bundle, passages, size)
    if base.family == "encoder-decoder":
        return likelihoods.denoising_metric(base), lambda bundle: likelihoods.denoising(bundle, passages, size)
    evaluation = settings.model_copy(update={"continuations": 0})
    job = Config(model=model, task="causal-lm", data=DataConfig(train="probe"), evaluation=evaluation)
    task = plugins.load("task", job.task)(job)
    examples = [Example(passage.id, "", passage.text) for passage in passages]
    return task.metrics[0], lambda bundle: task.predictor(bundle, "retention")(examples)


# ---- Sets of the config ----


def _of_set(name: str, options: Mapping[str, Any], config: Config, base: Bundle) -> Ability:
    """Return the ability of an entry of ``guards.forgetting.sets``."""
    job = config_of_set(options, config)
    if job.task == PAIRS:
        return _minimal_pairs(name, job, base)
    task: Task = plugins.load("task", job.task)(job)
    if base.family not in task.families:
        raise _unsupported(name, f"a base of the {base.family} family", f"{' or '.join(task.families)} for {task.name}")
    source, split = _source(job.data)
    columns = task.columns(available_columns(source, split, job.data))
    table = load_table(source, columns, job.data, split=split).complete(job.data)
    table = sampled(table, job.data.eval_limit, job.data.seed or 0)
    examples = [task.example(row) for row in table]
    task = task.fit(examples, examples)
    key = {"task": [task.name, task.version], "rows": table.sha256, "ids": [example.id for example in examples]}
    key |= job.model_dump(mode="json", include={"data", "evaluation"})
    return ScoredAbility(
        name,
        len(examples),
        cache_key(key),
        task.metrics[0],
        lambda bundle: task.predictor(bundle, "retention")(examples),
    )


def _source(settings: DataConfig) -> tuple[DataSource, str]:
    """Return the source of the rows of a set, and its split if it is a hub id."""
    source = settings.eval
    return (settings.train, "train") if source is None or isinstance(source, float) else (source, "test")


def _minimal_pairs(name: str, job: Config, base: Bundle) -> Ability:
    """Return the ability to prefer the good text of minimal pairs."""
    if base.family == "encoder-decoder" or not base.has_lm_head:
        kind = base.family if base.has_lm_head else f"{base.family} without a language-modeling head"
        raise _unsupported(name, f"minimal pairs for an {kind}", "a decoder, or an encoder with a masked-LM head")
    source, split = _source(job.data)
    available = available_columns(source, split, job.data)
    good, bad = next((pair for pair in _PAIR_COLUMNS if set(pair) <= set(available)), _PAIR_COLUMNS[0])
    # The loader's roles "source" and "target" carry one text each.
    data = job.data.model_copy(update={"source": good, "target": bad})
    table = load_table(source, (Column("source", str), Column("target", str)), data, split=split).complete(data)
    table = sampled(table, data.eval_limit, data.seed or 0)
    rows = [(row.id, str(row.fields["source"]), str(row.fields["target"])) for row in table]
    digest = cache_key({"pairs": hashlib.sha256(repr(rows).encode()).hexdigest()})
    size = job.evaluation.batch_size
    return ScoredAbility(
        name, len(rows), digest, likelihoods.pair_accuracy, lambda bundle: likelihoods.pairs(bundle, rows, size)
    )


def _unsupported(name: str, message: str, expected: str) -> ConfigError:
    """Return the error of a set that does not fit the base."""
    return ConfigError(message, expected=expected, fix="remove this set", field=f"guards.forgetting.sets.{name}")
