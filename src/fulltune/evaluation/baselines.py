"""Scores without training, on the same rows, prompts and decoding as the tuned model's.

``majority`` (the commonest answer in train) and ``tfidf`` (word counts and logistic regression) are floors for
classification; ``zero_shot`` and ``few_shot`` ask the untouched base. They are cached under what they depend on, so a
second run on the same data pays nothing.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fulltune.config import Config
from fulltune.data.load import Table
from fulltune.metrics.base import Array
from fulltune.models import inference, reconcile
from fulltune.models.bundle import Bundle
from fulltune.records.run import Prediction
from fulltune.store.cache import cache_key, cache_path, cached_rows
from fulltune.tasks import prompts
from fulltune.tasks.base import Example, Predictor, Task

_LOG = logging.getLogger(__name__)

#: Packages that answers depend on.
_PACKAGES = ("fulltune", "torch", "transformers", "tokenizers", "scikit-learn")


class LabelledTask(Protocol):
    """A task with a closed set of labels: what the word-count floors need."""

    labels: tuple[str, ...]
    multi_label: bool

    def prediction(self, system: str, example: Example, probabilities: Array) -> Prediction: ...


def baseline(name: str, task: Task, base: Bundle, train: Sequence[Example], shots: Sequence[Example]) -> Predictor:
    """A baseline as something that answers."""
    if name == "majority":
        return majority(_labelled(task), train)
    if name == "tfidf":
        return tfidf(_labelled(task), train)
    if name == "zero_shot" and base.with_own_head is not None:
        return _own_head(task, base.with_own_head)
    return task.predictor(base, name, shots if name == "few_shot" else ())


def _own_head(task: Task, load: Callable[[], Bundle]) -> Predictor:
    """The base under its own classification head; it is loaded when it is asked, and not where answers are cached."""

    def predict(examples: Sequence[Example]) -> Iterator[Prediction]:
        yield from task.predictor(load(), "zero_shot")(examples)

    return predict


def choose_shots(
    task: Task, config: Config, family: str, train: Sequence[Example], scored: Sequence[Example]
) -> list[Example]:
    """Few-shot examples: from train only, seeded, never a row that is scored.

    ``few_shot`` of them; for an encoder that classifies, that many for each label. Where there are labels, a prompt's
    shots cycle through them, so that no label is shown twice before each was shown once.
    """
    asked = {(example.input, example.target) for example in scored}
    pool = [example for example in train if (example.input, example.target) not in asked]
    random.Random(config.baselines.seed).shuffle(pool)
    if not task.labels:
        return pool[: config.baselines.few_shot]
    by_label = {label: [example for example in pool if label in example.labels] for label in task.labels}
    rounds = [
        examples[turn]
        for turn in range(config.baselines.few_shot)
        for examples in by_label.values()
        if turn < len(examples)
    ]
    unique = list({example.id: example for example in rounds}.values())
    return unique if family == "encoder" else unique[: config.baselines.few_shot]


def majority(task: LabelledTask, train: Sequence[Example]) -> Predictor:
    """Always the commonest label; with several labels a row, the commonest set of them."""
    common, count = Counter(example.target for example in train).most_common(1)[0]
    chosen = (common,) if isinstance(common, str) else common
    share = count / len(train)
    probabilities = np.array([share if label in chosen else 0.0 for label in task.labels])
    if task.multi_label:
        probabilities = np.array([1.0 if label in chosen else 0.0 for label in task.labels])

    def predict(examples: Sequence[Example]) -> Iterator[Prediction]:
        return (task.prediction("majority", example, probabilities) for example in examples)

    return predict


def tfidf(task: LabelledTask, train: Sequence[Example]) -> Predictor:
    """TF-IDF of words and word pairs with logistic regression (scikit-learn): the floor a tuned classifier must
    pass.
    """

    def predict(examples: Sequence[Example]) -> Iterator[Prediction]:
        rows = _tfidf_probabilities(task, train, examples)
        return (task.prediction("tfidf", example, row) for example, row in zip(examples, rows, strict=True))

    return predict


def _tfidf_probabilities(task: LabelledTask, train: Sequence[Example], examples: Sequence[Example]) -> Array:
    """Probabilities (rows, labels); labels that train has not seen, or has in every row, keep that share."""
    from sklearn.linear_model import LogisticRegression

    known, asked = _tfidf_features([example.input for example in train], [example.input for example in examples])
    member = np.array([[label in example.labels for label in task.labels] for example in train])
    answer = np.tile(member.mean(axis=0), (len(examples), 1))

    def classifier() -> Any:
        # C chosen on the validation split of CUAD clauses; scikit-learn's default of 1 is a strawman here.
        return LogisticRegression(C=30.0, max_iter=1000)

    if task.multi_label:
        for index in np.flatnonzero(member.any(axis=0) & ~member.all(axis=0)):
            answer[:, index] = classifier().fit(known, member[:, index]).predict_proba(asked)[:, 1]
    elif len(seen := np.flatnonzero(member.any(axis=0))) > 1:
        answer[:, seen] = classifier().fit(known, member.argmax(axis=1)).predict_proba(asked)
    return answer


def _tfidf_features(train: Sequence[str], asked: Sequence[str]) -> tuple[Any, Any]:
    """Return sparse TF-IDF matrices of both, ``(rows, features)``: of words and word pairs, or of one to three
    characters where fewer than half of the rows have a word that train knows (emoji, single letters, and scripts
    without spaces, whose sentences are one word each).
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    if any(map(words.build_analyzer(), train)):
        known, found = words.fit_transform(train), words.transform(asked)
        reached = int((found.getnnz(axis=1) > 0).sum())
        if 2 * reached >= len(asked):
            return known, found
    else:
        reached = 0
    _LOG.info(
        "the tfidf baseline counts characters instead of words: %d of %d rows have a word of train", reached, len(asked)
    )
    characters = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True)
    return characters.fit_transform(train), characters.transform(asked)


def cached(
    predict: Predictor, name: str, key: Mapping[str, Any], out: Path, advance: Callable[[], object]
) -> Predictor:
    """The same predictor, its answers kept under a hash of what they depend on; ``advance`` is called as each is
    made.
    """
    path = cache_path(out, cache_key({"baseline": name, **key}))

    def made(examples: Sequence[Example]) -> Iterator[Prediction]:
        for prediction in predict(examples):
            yield prediction
            advance()

    def answer(examples: Sequence[Example]) -> Iterator[Prediction]:
        rows = cached_rows(path, lambda: made(examples))
        return (Prediction.model_validate(row) for row in rows)

    return answer


def cache_parts(task: Task, config: Config, base: Bundle, train: Table, scored: Table) -> dict[str, Any]:
    """What a baseline's answers depend on: base, data, wording, and the options that change them."""
    options = {"instruction", "chat", "max_length", "max_target_length", "schemas", "databases"}
    options |= {"source_language", "target_language"}
    return {
        "packages": {name: version(name) for name in _PACKAGES},
        "task": [task.name, task.version],
        "prompts": prompts.VERSION,
        "inference": inference.VERSION,
        "asked": prompts.fingerprint(base, config.data.chat, task.day),
        "files": task.files(),
        "base": base.info.sha256,
        "reconciled": [reconcile.VERSION, *base.info.reconciled],
        "window": base.window,
        "train": train.sha256,
        "eval": scored.sha256,
        "ids": [train.source, scored.source],
        "data": config.data.model_dump(include=options),
        "baselines": config.baselines.model_dump(),
        "evaluation": config.evaluation.model_dump(
            include={"max_new_tokens", "continuations", "sql_seconds", "sql_match"}
        ),
    }


def _labelled(task: Task) -> LabelledTask:
    if not task.labels:
        raise TypeError(f"the task {task.name!r} names a baseline for labels but has none")
    return task  # type: ignore[return-value]
