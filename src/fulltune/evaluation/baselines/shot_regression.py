"""Classify from a few examples with an encoder: the nearest class mean, or logistic regression, whichever is better."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fulltune.evaluation.baselines.base import Answers, Given
from fulltune.evaluation.baselines.probe import vectors
from fulltune.metrics.base import Array
from fulltune.records.run import Prediction
from fulltune.tasks.base import Example
from fulltune.tasks.classification import Classification

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
    strengths = {strength: _accuracy(_regression(strength), found, targets) for strength in STRENGTHS}
    best = max(strengths, key=lambda strength: strengths[strength])
    from sklearn.neighbors import NearestCentroid

    if _accuracy(NearestCentroid(), found, targets) >= strengths[best]:
        return None
    model = _regression(best).fit(found, targets)
    setting = f"logistic regression, C = {best:g} (accuracy {strengths[best]:.2f} on the shots, each left out once)"
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


def _accuracy(model: Any, found: Array, targets: Any) -> float:
    from sklearn.model_selection import KFold, cross_val_predict

    parts = KFold(min(PARTS, len(targets)), shuffle=True, random_state=0)
    return float((cross_val_predict(model, found, targets, cv=parts) == targets).mean())


def _regression(strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=1000)
