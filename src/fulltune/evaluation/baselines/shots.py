"""Choose examples for few-shot prompts."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import islice

from fulltune.config import BaselineConfig
from fulltune.data.overlap import Entry, Seen
from fulltune.tasks.base import Example, Task

_LOG = logging.getLogger(__name__)


def choose_shots(
    task: Task, settings: BaselineConfig, family: str, train: Sequence[Example], scored: Sequence[Example]
) -> list[Example]:
    """Choose few-shot examples from train by seed, never one whose input also occurs in the scored rows, even nearly.

    Returns ``baselines.few_shot`` examples; that many per label for an encoder; fewer if no others are left. If the
    task has labels, consecutive examples cycle through them, so that no label occurs twice in a prompt before every
    label occurred once. Inputs are compared as the audit compares them (:mod:`fulltune.data.duplicates`).

    Args:
        task: Task whose labels are cycled through.
        settings: Number of shots and seed.
        family: Family of the base model.
        train: Examples to choose from.
        scored: Evaluation examples.
    """
    seen = Seen()
    for example in scored:
        seen.add(Entry.of(example))

    @cache
    def is_unseen(number: int) -> bool:
        return seen.match(Entry.of(train[number])) is None

    order = list(range(len(train)))
    random.Random(settings.seed).shuffle(order)
    if not task.labels:
        return _logged([train[number] for number in islice(filter(is_unseen, order), settings.few_shot)], settings)
    shots = [train[number] for number in _cycled(train, order, task.labels, settings.few_shot, is_unseen)]
    return _logged(shots if family == "encoder" else shots[: settings.few_shot], settings)


def _logged(shots: list[Example], settings: BaselineConfig) -> list[Example]:
    if len(shots) < settings.few_shot:
        _LOG.info(
            "%d of %d shots: all other rows of train also occur in the scored rows, at least nearly",
            len(shots),
            settings.few_shot,
        )
    return shots


def _cycled(
    train: Sequence[Example], order: Sequence[int], labels: Sequence[str], rounds: int, accept: Callable[[int], bool]
) -> list[int]:
    """Return the numbers of up to ``rounds`` accepted examples of each label: one of every label, then the second."""

    def of_label(label: str) -> Iterator[int]:
        return (number for number in order if label in train[number].labels and accept(number))

    by_label = [list(islice(of_label(label), rounds)) for label in labels]
    places = range(max(map(len, by_label), default=0))
    return list(dict.fromkeys(numbers[place] for place in places for numbers in by_label if place < len(numbers)))
