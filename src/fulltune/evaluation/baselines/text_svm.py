"""Classify by a linear support vector machine on TF-IDF features of words and characters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fulltune.evaluation.baselines.base import Answers, Given
from fulltune.evaluation.baselines.labels import classified, labeled, sample
from fulltune.evaluation.baselines.text_features import text_features
from fulltune.tasks.base import Example

#: Strengths to choose from.
STRENGTHS = (0.3, 1.0, 3.0)

#: Number of characters of train that are read: half a minute on one core, for twenty labels.
CHARACTERS = 4_000_000


def tfidf(given: Given, examples: Sequence[Example]) -> Answers:
    """Answer by a linear SVM on TF-IDF of words, word pairs and characters (scikit-learn).

    The strength is chosen by cross-validation on train; see :func:`~fulltune.evaluation.baselines.labels.classified`.
    """
    task, seed = labeled(given.task), given.settings.seed
    train, groups, note = sample(given.train, given.groups, lambda row: len(row.input), CHARACTERS, seed)
    features, asked = text_features([row.input for row in train], [row.input for row in examples])

    def machine(strength: float) -> Any:
        from sklearn.svm import LinearSVC

        # A smaller tolerance than 0.1 takes up to twice as long and changes no answer on CUAD clauses.
        return LinearSVC(C=strength, dual=True, tol=0.1, random_state=seed)

    found, setting = classified(task, train, groups, features, asked, STRENGTHS, machine, seed)
    predictions = (task.prediction("tfidf", row, one) for row, one in zip(examples, found, strict=True))
    return Answers(predictions, setting, note)
