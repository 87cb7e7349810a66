"""Classify from a few examples with an encoder: the nearest class mean, or logistic regression, whichever is better."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fulltune.evaluation.baselines.base import Answers, Given
from fulltune.evaluation.baselines.probe import vectors
from fulltune.metrics.base import Array
from fulltune.records.run import Prediction
from fulltune.tasks.base import Example
from fulltune.tasks.classification import Classification

Labels = NDArray[np.str_]

#: Answers rows from the vectors and the labels of others.
Answer = Callable[[Array, Labels, Array], Labels]

#: Strengths of logistic regression on unit vectors.
STRENGTHS = (1.0, 10.0, 100.0)

#: Parts of the shots, each of which is answered by the others; with as many shots or fewer, each is left out alone.
PARTS = 20


def by_regression(given: Given, examples: Sequence[Example]) -> Answers | None:
    """Return the answers of logistic regression on the unit vectors of the shots.

    None if the nearest class mean answers the shots as well, each of them left out once; for other models and tasks;
    and with a single shot per label, which leaves nothing to compare with.
    """
    task, shots = given.task, given.shots
    if not isinstance(task, Classification) or task.multi_label or given.base.family != "encoder":
        return None
    targets = np.array([str(shot.target) for shot in shots])
    if len(set(targets)) < 2 or len(shots) < 2 * len(set(targets)):
        return None
    found = _units(given, shots)
    accuracies = {strength: _accuracy(_fitted(strength), found, targets) for strength in STRENGTHS}
    best = max(accuracies, key=lambda strength: accuracies[strength])
    if _accuracy(_nearest_mean, found, targets) >= accuracies[best]:
        return None
    model = _regression(best).fit(found, targets)
    setting = f"logistic regression, C = {best:g} (accuracy {accuracies[best]:.2f} on the shots, each left out once)"
    return Answers(_predictions(given, task, examples, model), setting)


def _predictions(given: Given, task: Classification, examples: Sequence[Example], model: Any) -> Iterator[Prediction]:
    places = [task.labels.index(label) for label in model.classes_]
    for example, known in zip(examples, model.predict_proba(_units(given, examples)), strict=True):
        probabilities = np.zeros(len(task.labels))
        probabilities[places] = known
        found = task.prediction("few_shot", example, probabilities)
        yield found.model_copy(update={"values": {**found.values, "shots": len(given.shots)}})


def _units(given: Given, examples: Sequence[Example]) -> Array:
    """Return the unit vectors of examples, ``(rows, hidden)``."""
    found = np.stack(list(vectors(given, examples)))
    return np.asarray(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12))


def _accuracy(answer: Answer, found: Array, targets: Labels) -> float:
    from sklearn.model_selection import KFold

    parts = KFold(min(PARTS, len(targets)), shuffle=True, random_state=0).split(found)
    right = [answer(found[rest], targets[rest], found[part]) == targets[part] for rest, part in parts]
    return float(np.concatenate(right).mean())


def _nearest_mean(found: Array, targets: Labels, asked: Array) -> Labels:
    """Return the labels whose unit mean vectors are closest, as :mod:`fulltune.tasks.label_words` does."""
    labels = np.unique(targets)
    means = np.stack([found[targets == label].mean(axis=0) for label in labels])
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    return np.asarray(labels[(asked @ means.T).argmax(axis=1)])


def _fitted(strength: float) -> Answer:
    def answer(found: Array, targets: Labels, asked: Array) -> Labels:
        if len(set(targets)) < 2:
            return np.full(len(asked), targets[0])
        return np.asarray(_regression(strength).fit(found, targets).predict(asked))

    return answer


def _regression(strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=1000)
