"""Classify by a linear support vector machine on TF-IDF features of words and characters."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fulltune.evaluation.baselines.base import Answers, Given
from fulltune.evaluation.baselines.labels import (
    LabelledTask,
    Rows,
    choose,
    known_labels,
    labeled,
    members,
    probabilities,
    sample,
)
from fulltune.evaluation.baselines.text_features import text_features
from fulltune.metrics.base import Array
from fulltune.tasks.base import Example

#: Strengths to choose from.
STRENGTHS = (0.3, 1.0, 3.0)

#: Number of characters of train that are read: half a minute on one core, for twenty labels.
CHARACTERS = 4_000_000


def tfidf(given: Given, examples: Sequence[Example]) -> Answers:
    """Answer by a linear SVM on TF-IDF of words, word pairs and characters (scikit-learn).

    The strength is chosen by cross-validation on train. A label that occurs in no training row (or in all, if rows have
    several) cannot be fitted and gets its frequency in train.
    """
    task, seed = labeled(given.task), given.settings.seed
    train, groups, note = sample(given.train, given.groups, lambda row: len(row.input), CHARACTERS, seed)
    features, asked = text_features([row.input for row in train], [row.input for row in examples])
    member = members(task, train)
    known = known_labels(member, several=task.multi_label)
    found = np.tile(member.mean(axis=0), (len(examples), 1))
    setting = ""
    if len(known) > 1 or (task.multi_label and len(known)):
        fit = _Fit(features, member[:, known], task, seed)
        chosen = choose(STRENGTHS, fit.member, groups, fit.held_out, several=task.multi_label, seed=seed)
        decisions = fit.decisions(chosen.strength, np.arange(len(train)), asked)
        found[:, known] = probabilities(decisions, chosen.scale, several=task.multi_label)
        setting = str(chosen)
    predictions = (task.prediction("tfidf", row, one) for row, one in zip(examples, found, strict=True))
    return Answers(predictions, setting, note)


class _Fit:
    """Fits on rows of a matrix of features."""

    def __init__(self, features: Any, member: NDArray[np.bool_], task: LabelledTask, seed: int) -> None:
        self.features = features
        self.member = member
        self.several = task.multi_label
        self.seed = seed

    def held_out(self, strength: float, rows: Rows, held: Rows) -> Array:
        return self.decisions(strength, rows, self.features[held])

    def decisions(self, strength: float, rows: Rows, asked: Any) -> Array:
        """Return the decision values of a classifier fitted on some rows, ``(asked, labels)``.

        Those of a label that none of the rows have are minus infinity; one that all rows have is always decided for.
        """
        member = self.member[rows]
        found = np.where(member.all(axis=0), 1.0, -np.inf) * np.ones((asked.shape[0], 1))
        known = np.flatnonzero(member.any(axis=0) & ~member.all(axis=0))
        if self.several:
            for label in known:
                found[:, label] = self._fitted(strength, rows, member[:, label]).decision_function(asked)
        elif len(known) > 1:
            values = self._fitted(strength, rows, member.argmax(axis=1)).decision_function(asked)
            found[:, known] = np.stack([-values, values], axis=1) / 2 if values.ndim == 1 else values
        return found

    def _fitted(self, strength: float, rows: Rows, labels: Any) -> Any:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.svm import LinearSVC

        # A smaller tolerance than 0.1 takes up to twice as long and changes no answer on CUAD clauses.
        machine = LinearSVC(C=strength, dual=True, tol=0.1, random_state=self.seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return machine.fit(self.features[rows], labels)
