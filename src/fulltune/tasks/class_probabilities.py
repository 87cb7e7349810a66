"""Compute class probabilities that do not depend on the batch that a row is in.

The other rows of a batch and its padding change logits by rounding errors of float32. Reported probabilities are
rounded to four decimals; where an error could change a rounded probability or a label, the row is computed alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import tee
from typing import TYPE_CHECKING

import numpy as np

from fulltune.metrics.base import Array

if TYPE_CHECKING:
    from fulltune.models.bundle import Bundle

#: Decimals of reported probabilities.
DECIMALS = 4

#: Largest expected change of a logit by a batch, relative to the largest logit (at least 1). Models of 4 to 12 layers
#: showed 1e-7 to 6e-7.
BATCH_ERROR = 2e-6


def class_probabilities(
    bundle: Bundle, inputs: Iterable[Sequence[int]], batch_size: int, *, multi_label: bool
) -> Iterator[Array]:
    """Yield the probabilities ``(labels,)`` of each input, by the bundle's classification head."""
    from scipy.special import expit, softmax

    from fulltune.models import inference

    computed, again = tee(inputs)
    squash = expit if multi_label else softmax
    logits = inference.class_logits(bundle, computed, batch_size)
    for ids, row in zip(again, map(np.asarray, logits), strict=True):
        if batch_size > 1 and not is_settled(row, multi_label=multi_label):
            row = np.asarray(next(inference.class_logits(bundle, [ids], 1)))
        yield squash(row)


def is_settled(logits: Array, *, multi_label: bool) -> bool:
    """Return True if errors of at most :data:`BATCH_ERROR` change neither a rounded probability nor a label.

    Args:
        logits: Logits ``(labels,)`` of a row.
        multi_label: True if every label has a probability of its own.
    """
    from scipy.special import expit, softmax

    error = BATCH_ERROR * max(1.0, float(np.abs(logits).max()))
    probabilities = expit(logits) if multi_label else softmax(logits)
    # The derivative of a probability is p (1 - p); softmax subtracts the mean error of the other logits.
    spread = (1 if multi_label else 2) * error * probabilities * (1 - probabilities)
    steps = probabilities * 10**DECIMALS
    to_boundary = np.abs(steps - np.floor(steps) - 0.5) / 10**DECIMALS
    if (to_boundary <= spread).any():
        return False
    if multi_label:
        return not (np.abs(probabilities - 0.5) <= spread).any()
    best = np.sort(logits)[-2:]
    return bool(len(best) < 2 or best[1] - best[0] > 2 * error)
