"""Find answers that are no better than guesses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from fulltune.evaluation.prediction_files import Answers
from fulltune.metrics.base import Array

#: Fraction of the rows that different targets may number to be labels; free answers are nearly all different.
_MOST_LABELS = 0.2


def are_labels(answers: Answers) -> bool:
    """Return True if all answers are among a few targets, whatever metric compares them."""
    targets = {label for row in answers.rows for label in _labels(row.reference)}
    outputs = {label for row in answers.rows for label in _labels(row.output)}
    return 2 <= len(targets) <= _MOST_LABELS * len(answers.rows) and outputs <= targets


def label_sets_guessed(answers: Answers, confidence: float) -> str:
    """Return how weakly sets of labels and targets are related if chance explains it; empty if it does not.

    The covariances of labels with their targets, summed over labels, are 0 on average if the answers are given to other
    rows. Their variance over all permutations of rows has a closed form (Mantel 1967, "The detection of disease
    clustering and a generalized regression approach").
    """
    labels = sorted({label for row in answers.rows for label in (*_labels(row.reference), *_labels(row.output))})
    expected = _indicators([_labels(row.reference) for row in answers.rows], labels)
    own = _indicators([_labels(row.output) for row in answers.rows], labels)
    common = float((expected * own).sum())
    variance = float(((expected.T @ expected) * (own.T @ own)).sum()) / max(1, len(own) - 1)
    z = common / math.sqrt(variance) if variance > 1e-12 else 0.0
    limit = NormalDist().inv_cdf(0.5 + confidence / 2)
    return "" if z > limit else f"z = {z:.2f} for the relation to the targets, less than {limit:.2f}"


def _labels(answer: str | tuple[str, ...]) -> tuple[str, ...]:
    return (answer,) if isinstance(answer, str) else answer


def _indicators(answers: Sequence[Sequence[str]], labels: Sequence[str]) -> Array:
    """Return 1 for each label of each row, minus the fraction of rows that have it, ``(rows, labels)``."""
    index = {label: column for column, label in enumerate(labels)}
    found = np.zeros((len(answers), len(labels)))
    for row, own in enumerate(answers):
        found[row, [index[label] for label in own]] = 1
    return np.asarray(found - found.mean(axis=0))
