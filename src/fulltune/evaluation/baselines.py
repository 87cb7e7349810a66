"""Compute baselines without training, on the same rows, prompts and decoding as the tuned model.

``majority`` (the most frequent target in train) and ``tfidf`` (logistic regression on TF-IDF features) are lower bounds
for classification; ``zero_shot`` and ``few_shot`` prompt the base model. Predictions are cached by a hash of everything
that they depend on, so that a second run on the same data does not compute them again.
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

from fulltune.config import BaselineConfig, Config
from fulltune.data.load import Table
from fulltune.metrics.base import Array
from fulltune.models import inference, reconcile
from fulltune.models.bundle import Bundle
from fulltune.records.run import Prediction
from fulltune.store.cache import cache_key, cache_path, cached_rows
from fulltune.tasks import prompts
from fulltune.tasks.base import Example, Predictor, Task

_LOG = logging.getLogger(__name__)

#: Packages whose versions predictions depend on.
_PACKAGES = ("fulltune", "torch", "transformers", "tokenizers", "scikit-learn")


class LabelledTask(Protocol):
    """A task with a closed set of labels, as the baselines ``majority`` and ``tfidf`` need it."""

    labels: tuple[str, ...]
    multi_label: bool

    def prediction(self, system: str, example: Example, probabilities: Array) -> Prediction:
        """Return the prediction for the probabilities ``(labels,)`` of an example."""
        ...


def baseline(name: str, task: Task, base: Bundle, train: Sequence[Example], shots: Sequence[Example]) -> Predictor:
    """Return the predictor of a baseline.

    Args:
        name: Name of the baseline.
        task: Task that it predicts for.
        base: Base model.
        train: Training examples.
        shots: Examples for few-shot prompts.
    """
    if name == "majority":
        return majority(_labelled(task), train)
    if name == "tfidf":
        return tfidf(_labelled(task), train)
    if name == "zero_shot" and base.with_own_head is not None:
        return _own_head(task, base.with_own_head)
    return task.predictor(base, name, shots if name == "few_shot" else ())


def _own_head(task: Task, load: Callable[[], Bundle]) -> Predictor:
    """Return a predictor of the base with its own classification head, loaded only if predictions are not cached."""

    def predict(examples: Sequence[Example]) -> Iterator[Prediction]:
        yield from task.predictor(load(), "zero_shot")(examples)

    return predict


def choose_shots(
    task: Task, settings: BaselineConfig, family: str, train: Sequence[Example], scored: Sequence[Example]
) -> list[Example]:
    """Choose few-shot examples from train by seed, never one that also occurs in the scored examples.

    Returns ``baselines.few_shot`` examples; that many per label for an encoder. If the task has labels, consecutive
    examples cycle through them, so that no label occurs twice in a prompt before every label occurred once.

    Args:
        task: Task whose labels are cycled through.
        settings: Number of shots and seed.
        family: Family of the base model.
        train: Examples to choose from.
        scored: Evaluation examples, which are excluded.
    """
    excluded = {(example.input, example.target) for example in scored}
    pool = [example for example in train if (example.input, example.target) not in excluded]
    random.Random(settings.seed).shuffle(pool)
    if not task.labels:
        return pool[: settings.few_shot]
    shots = _cycle_labels(pool, task.labels, settings.few_shot)
    return shots if family == "encoder" else shots[: settings.few_shot]


def _cycle_labels(pool: Sequence[Example], labels: Sequence[str], per_label: int) -> list[Example]:
    """Return up to ``per_label`` distinct examples of each label: the first of every label, then the second, etc."""
    by_label = {label: [example for example in pool if label in example.labels] for label in labels}
    chosen = dict[str, Example]()
    for position in range(per_label):
        for examples in by_label.values():
            if position < len(examples):
                chosen[examples[position].id] = examples[position]
    return list(chosen.values())


def majority(task: LabelledTask, train: Sequence[Example]) -> Predictor:
    """Return a predictor of the most frequent label, or set of labels if rows have several."""
    target, count = Counter(example.target for example in train).most_common(1)[0]
    chosen = (target,) if isinstance(target, str) else target
    frequency = count / len(train)
    probabilities = np.array([frequency if label in chosen else 0.0 for label in task.labels])
    if task.multi_label:
        probabilities = np.array([1.0 if label in chosen else 0.0 for label in task.labels])

    def predict(examples: Sequence[Example]) -> Iterator[Prediction]:
        return (task.prediction("majority", example, probabilities) for example in examples)

    return predict


def tfidf(task: LabelledTask, train: Sequence[Example]) -> Predictor:
    """Return a predictor of logistic regression on TF-IDF features of words and word pairs (scikit-learn)."""

    def predict(examples: Sequence[Example]) -> Iterator[Prediction]:
        rows = _tfidf_probabilities(task, train, examples)
        return (task.prediction("tfidf", example, row) for example, row in zip(examples, rows, strict=True))

    return predict


def _tfidf_probabilities(task: LabelledTask, train: Sequence[Example], examples: Sequence[Example]) -> Array:
    """Return probabilities ``(rows, labels)``.

    A label that occurs in no training row, or in all of them, cannot be fitted and gets its frequency in train.
    """
    from sklearn.linear_model import LogisticRegression

    train_features, features = _tfidf_features(
        [example.input for example in train], [example.input for example in examples]
    )
    member = np.array([[label in example.labels for label in task.labels] for example in train])
    probabilities = np.tile(member.mean(axis=0), (len(examples), 1))

    def classifier() -> Any:
        # C was chosen on the validation split of CUAD clauses; with scikit-learn's default of 1 the baseline is weak.
        return LogisticRegression(C=30.0, max_iter=1000)

    if task.multi_label:
        for index in np.flatnonzero(member.any(axis=0) & ~member.all(axis=0)):
            fitted = classifier().fit(train_features, member[:, index])
            probabilities[:, index] = fitted.predict_proba(features)[:, 1]
    elif len(seen := np.flatnonzero(member.any(axis=0))) > 1:
        fitted = classifier().fit(train_features, member.argmax(axis=1))
        probabilities[:, seen] = fitted.predict_proba(features)
    return probabilities


def _tfidf_features(train: Sequence[str], texts: Sequence[str]) -> tuple[Any, Any]:
    """Return sparse TF-IDF matrices of both, ``(rows, features)``.

    Features are words and word pairs. They are one to three characters if fewer than half of the texts contain a word
    of train: emoji, single letters, and scripts without spaces, whose sentences are single words.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    covered = 0
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    if any(map(words.build_analyzer(), train)):
        train_features = words.fit_transform(train)
        features = words.transform(texts)
        covered = int((features.getnnz(axis=1) > 0).sum())
        if 2 * covered >= len(texts):
            return train_features, features
    _LOG.info("the tfidf baseline uses characters: %d of %d rows contain a word of train", covered, len(texts))
    characters = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True)
    return characters.fit_transform(train), characters.transform(texts)


def cached(
    predict: Predictor, name: str, key: Mapping[str, Any], out: Path, advance: Callable[[], object]
) -> Predictor:
    """Return a predictor that caches the predictions of another one.

    Args:
        predict: Predictor to cache.
        name: Name of the baseline.
        key: Everything that the predictions depend on, see :func:`cache_parts`.
        out: Folder of runs, which contains the cache.
        advance: Called after each computed prediction.
    """
    path = cache_path(out, cache_key({"baseline": name, **key}))

    def computed(examples: Sequence[Example]) -> Iterator[Prediction]:
        for prediction in predict(examples):
            yield prediction
            advance()

    def predict_cached(examples: Sequence[Example]) -> Iterator[Prediction]:
        rows = cached_rows(path, lambda: computed(examples))
        return (Prediction.model_validate(row) for row in rows)

    return predict_cached


def cache_parts(task: Task, config: Config, base: Bundle, train: Table, scored: Table) -> dict[str, Any]:
    """Return everything that a baseline's predictions depend on: base, data, prompts, and options that change them."""
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
