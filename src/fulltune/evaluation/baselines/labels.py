"""Fit linear classifiers: folds, a strength chosen by cross-validation on train, and calibrated probabilities."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit, log_softmax, softmax

from fulltune.metrics.base import Array
from fulltune.records.run import Prediction
from fulltune.tasks.base import Example, Task

Rows = NDArray[np.intp]

#: True for each label that applies to a row, ``(rows, labels)``.
Members = NDArray[np.bool_]

#: Returns the decision values ``(held, labels)`` of a classifier that was fitted on some rows: strength, rows, held.
Decide = Callable[[float, Rows, Rows], Array]

#: Number of folds, and of rows that choose a strength: more hardly change it.
FOLDS, CHOOSING_ROWS = 3, 2000


class LabeledTask(Protocol):
    """A task with a closed set of labels, as baselines for labels need it."""

    labels: tuple[str, ...]
    multi_label: bool

    def prediction(self, system: str, example: Example, probabilities: Array) -> Prediction:
        """Return the prediction for the probabilities ``(labels,)`` of an example."""
        ...


def labeled(task: Task) -> LabeledTask:
    """Return a task as one with labels.

    Raises:
        TypeError: It has none.
    """
    if not task.labels:
        raise TypeError(f"the task {task.name!r} names a baseline for labels but has none")
    return task  # type: ignore[return-value]


def classified(
    task: LabeledTask,
    train: Sequence[Example],
    groups: Sequence[str],
    features: Any,
    asked: Any,
    strengths: Sequence[float],
    make: Callable[[float], Any],
    seed: int,
) -> tuple[Array, str]:
    """Return the probabilities ``(asked, labels)`` of a linear classifier, and what was chosen on train.

    A label that occurs in no training row (or in all, if rows have several) cannot be fitted and gets its frequency.

    Args:
        task: Task with labels.
        train: Training examples.
        groups: Group of each; may be empty.
        features: Their features, ``(rows, features)``, dense or sparse.
        asked: Features of the rows to answer.
        strengths: Strengths to choose from; see :func:`choose`.
        make: Returns an unfitted classifier of scikit-learn with ``decision_function``, given its strength.
        seed: Seed of the folds.
    """
    member = np.array([[label in example.labels for label in task.labels] for example in train], dtype=bool)
    known = known_labels(member, several=task.multi_label)
    found = np.tile(member.mean(axis=0), (asked.shape[0], 1))
    if len(known) < (1 if task.multi_label else 2):
        return found, ""
    fit = Fit(features, member[:, known], make, several=task.multi_label)
    chosen = choose(strengths, fit.member, groups, fit.held_out, several=task.multi_label, seed=seed)
    decisions = fit.decisions(chosen.strength, np.arange(len(train)), asked)
    found[:, known] = probabilities(decisions, chosen.scale, several=task.multi_label)
    return found, str(chosen)


def standardization(features: Array) -> tuple[Array, Array]:
    """Return the mean and the standard deviation of each feature; 1 in place of a deviation of 0."""
    width = features.std(axis=0)
    width[width == 0] = 1.0
    return features.mean(axis=0), width


class Fit:
    """Fits of a linear classifier on rows of a matrix of features.

    Args:
        features: Features ``(rows, features)``, dense or sparse.
        member: Labels of the rows, ``(rows, labels)``.
        make: Returns an unfitted classifier of scikit-learn, given its strength.
        several: Several labels may apply to a row.
    """

    def __init__(self, features: Any, member: Members, make: Callable[[float], Any], *, several: bool) -> None:
        self.features = features
        self.member = member
        self.make = make
        self.several = several

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

    def coefficients(self, strength: float) -> tuple[Array, Array]:
        """Return the weights ``(labels, features)`` and biases ``(labels,)`` of a classifier fitted on all rows.

        Every label must apply to some rows; with several labels per row, not to all of them.
        """
        rows = np.arange(len(self.member))
        if self.several:
            each = [self._fitted(strength, rows, labels) for labels in self.member.T]
            return np.concatenate([one.coef_ for one in each]), np.concatenate([_bias(one) for one in each])
        one = self._fitted(strength, rows, self.member.argmax(axis=1))
        if len(one.coef_) > 1:
            return np.asarray(one.coef_), _bias(one)
        signs = np.array([[-0.5], [0.5]])
        return signs * one.coef_, signs[:, 0] * _bias(one)

    def _fitted(self, strength: float, rows: Rows, labels: Any) -> Any:
        from sklearn.exceptions import ConvergenceWarning

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return self.make(strength).fit(self.features[rows], labels)


def _bias(classifier: Any) -> Array:
    """Return the biases ``(labels,)`` of a classifier, which are one zero if it has none."""
    return np.asarray(np.zeros(len(classifier.coef_)) + classifier.intercept_)


class Choice(NamedTuple):
    """A strength, the scale that turns its decision values into probabilities, and its macro-F1 on held-out folds."""

    strength: float
    scale: float
    folds: int
    score: float = 0.0

    def __str__(self) -> str:
        return f"C = {self.strength:g}" + (f" ({self.folds}-fold cross-validation on train)" if self.folds else "")


def choose(
    strengths: Sequence[float],
    member: Members,
    groups: Sequence[str],
    decide: Decide,
    *,
    several: bool,
    seed: int,
) -> Choice:
    """Choose the strength with the best macro-F1 over held-out folds of train, and calibrate its decision values.

    Probabilities are the softmax (with several labels per row: the logistic function) of the decision values times one
    scale, which has the least log loss on the held-out rows (Guo et al. 2017, "On Calibration of Modern Neural
    Networks", section 4.2). A scale never changes an answer.

    Args:
        strengths: Candidates; the middle one is used if there are too few rows to hold any out.
        member: Labels of the training rows, ``(rows, labels)``.
        groups: Group of each row, which is never divided; may be empty.
        decide: Fits a classifier.
        several: Several labels may apply to a row.
        seed: Seed of the folds.
    """
    rows = np.array(random.Random(seed).sample(range(len(member)), min(CHOOSING_ROWS, len(member))))
    fold = _folds([tuple(member[row]) for row in rows], [groups[row] for row in rows] if groups else [], seed)
    count = int(fold.max()) + 1
    if count < 2:
        return Choice(strengths[len(strengths) // 2], 1.0, 0)
    held = np.concatenate([rows[fold == number] for number in range(count)])
    best, best_score, values = strengths[0], -1.0, np.empty(0)
    for strength in strengths:
        parts = [decide(strength, rows[fold != number], rows[fold == number]) for number in range(count)]
        found = np.concatenate(parts)
        score = _macro_f1(found, member[held], several=several)
        if score > best_score:
            best, best_score, values = strength, score, found
    return Choice(best, _scale(values, member[held], several=several), count, best_score)


def probabilities(decisions: Array, scale: float, *, several: bool) -> Array:
    """Return probabilities ``(rows, labels)``; see :func:`choose`."""
    return np.asarray(expit(scale * decisions) if several else softmax(scale * decisions, axis=1))


def sample(
    examples: Sequence[Example], groups: Sequence[str], size: Callable[[Example], int], limit: int, seed: int
) -> tuple[list[Example], list[str], str]:
    """Return random rows of at most ``limit`` size in total, one of each label first, with their groups and a note.

    All rows are returned in their order, and no note, if they fit.
    """
    if sum(map(size, examples)) <= limit:
        return list(examples), list(groups), ""
    chosen, total = list[int](), 0
    for number in _labels_first(examples, seed):
        total += size(examples[number])
        if total > limit and chosen:
            break
        chosen.append(number)
    chosen.sort()
    note = f"{len(chosen):,} of {len(examples):,} rows of train, drawn at random"
    return [examples[number] for number in chosen], [groups[number] for number in chosen] if groups else [], note


def known_labels(member: Members, *, several: bool) -> Rows:
    """Return the labels that can be fitted: some row has them and, if rows have several, some row does not."""
    found = member.any(axis=0)
    return np.flatnonzero(found & ~member.all(axis=0) if several else found)


def _labels_first(examples: Sequence[Example], seed: int) -> Iterator[int]:
    order = random.Random(seed).sample(range(len(examples)), len(examples))
    seen = set[str]()
    first, rest = list[int](), list[int]()
    for number in order:
        is_new = not seen.issuperset(examples[number].labels)
        seen.update(examples[number].labels)
        (first if is_new else rest).append(number)
    yield from first
    yield from rest


def _folds(strata: Sequence[tuple[bool, ...]], groups: Sequence[str], seed: int) -> Rows:
    """Return the fold of each row: strata are dealt evenly, groups are not divided."""
    order = random.Random(seed).sample(range(len(strata)), len(strata))
    fold = np.zeros(len(strata), dtype=np.intp)
    if groups:
        sizes = np.zeros(min(FOLDS, len(set(groups))), dtype=int)
        of_group = dict[str, int]()
        counts = Counter(groups)
        for group in sorted(dict.fromkeys(groups[row] for row in order), key=lambda group: -counts[group]):
            of_group[group] = int(sizes.argmin())
            sizes[of_group[group]] += counts[group]
        return np.array([of_group[group] for group in groups], dtype=np.intp)
    count = min(FOLDS, len(strata))
    for place, row in enumerate(sorted(order, key=strata.__getitem__)):
        fold[row] = place % count
    return fold


def _macro_f1(decisions: Array, member: Members, *, several: bool) -> float:
    if several:
        given = decisions > 0
    else:
        given = np.zeros_like(member)
        given[np.arange(len(given)), decisions.argmax(axis=1)] = True
    right, total = (given & member).sum(axis=0), given.sum(axis=0) + member.sum(axis=0)
    return float((2 * right / np.maximum(total, 1))[total > 0].mean())


def _scale(decisions: Array, member: Members, *, several: bool) -> float:
    """Return the scale of decision values with the least log loss; labels unknown to a fold do not count."""
    known = np.isfinite(decisions)
    finite = np.where(known, decisions, -1e9)

    def loss(log_scale: float) -> float:
        scaled = np.exp(log_scale) * finite
        if several:
            return float(-log_expit(np.where(member, scaled, -scaled))[known].mean())
        return float(-log_softmax(scaled, axis=1)[member & known].mean())

    if not (member & known).any():
        return 1.0
    return float(np.exp(minimize_scalar(loss, bounds=(-4.0, 4.0), method="bounded").x))
