"""Classify by logistic regression on what the frozen base model computes: does its body need tuning at all?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fulltune.evaluation.baselines.base import FEWEST_ROWS, Answers, Given
from fulltune.evaluation.baselines.labels import classified, labeled, sample, standardization
from fulltune.metrics.base import Array
from fulltune.runtime import distributed
from fulltune.tasks import prompts
from fulltune.tasks.base import Example

#: Strengths to choose from, for standardized features.
STRENGTHS = (0.001, 0.01, 0.1, 1.0)

#: Rows of train that are read at most.
ROWS = 20_000


def linear_probe(given: Given, examples: Sequence[Example]) -> Answers:
    """Answer by logistic regression on the mean of the base's last hidden states (Alain & Bengio 2017).

    Features are standardized on train, and the strength is chosen by cross-validation on train; see
    :func:`~fulltune.evaluation.baselines.labels.classified`.
    """
    task, seed = labeled(given.task), given.settings.seed
    train, groups, note = sample(given.train, given.groups, lambda row: 1, rows_read(given, len(examples)), seed)
    features = np.stack(list(vectors(given, train)))
    middle, width = standardization(features)
    asked = (np.stack(list(vectors(given, examples))) - middle) / width

    def regression(strength: float) -> Any:
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(C=strength, max_iter=200)

    found, setting = classified(task, train, groups, (features - middle) / width, asked, STRENGTHS, regression, seed)
    predictions = (task.prediction("linear_probe", row, one) for row, one in zip(examples, found, strict=True))
    return Answers(predictions, setting, note)


def rows_read(given: Given, answered: int) -> int:
    """Return how many rows of train are read, if ``answered`` rows are read to be answered."""
    allowed = ROWS if given.rows is None else min(ROWS, max(FEWEST_ROWS, given.rows - answered))
    return min(len(given.train), allowed)


def vectors(given: Given, examples: Sequence[Example]) -> Iterator[Array]:
    """Yield the features ``(hidden,)`` of each example: one forward pass of the base per row."""
    from fulltune.models import inference

    base, task = given.base, given.task
    window, batch_size = task.longest_input(base), task.config.evaluation.batch_size

    def ids(text: str) -> list[int]:
        tokens = list(base.tokenizer(text, truncation=False, verbose=False).input_ids)
        return prompts.keep_ends(tokens or prompts.opening_ids(base), window)

    def read(rows: Sequence[Example]) -> Iterator[Array]:
        states = inference.mean_states(base, (ids(row.input) for row in rows), batch_size)
        return (state.cpu().numpy().astype(np.float64) for state in states)

    return distributed.map_sharded(read, examples)
