"""Answer every row with the most frequent label of train."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from fulltune.evaluation.baselines.base import Answers, Given
from fulltune.evaluation.baselines.labels import labeled
from fulltune.tasks.base import Example


def majority(given: Given, examples: Sequence[Example]) -> Answers:
    """Answer with the most frequent label, or set of labels if rows have several."""
    task = labeled(given.task)
    target, count = Counter(example.target for example in given.train).most_common(1)[0]
    chosen = (target,) if isinstance(target, str) else target
    frequency = 1.0 if task.multi_label else count / len(given.train)
    probabilities = np.array([frequency if label in chosen else 0.0 for label in task.labels])
    return Answers(task.prediction("majority", example, probabilities) for example in examples)
