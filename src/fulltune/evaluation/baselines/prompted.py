"""Ask the base model, without and with examples in its context."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fulltune.evaluation.baselines.base import Answers, Given
from fulltune.records.run import Prediction
from fulltune.runtime import distributed
from fulltune.tasks.base import Example


def zero_shot(given: Given, examples: Sequence[Example]) -> Answers:
    """Ask the base without examples; a checkpoint with its own classification head answers with that."""
    own, task = given.base.with_own_head, given.task
    if own is None:
        return Answers(distributed.map_sharded(task.predictor(given.base, "zero_shot"), examples))

    def predict(rows: Sequence[Example]) -> Iterator[Prediction]:
        yield from task.predictor(own(), "zero_shot")(rows)

    return Answers(distributed.map_sharded(predict, examples))


def few_shot(given: Given, examples: Sequence[Example]) -> Answers:
    """Ask the base with examples from train."""
    predict = given.task.predictor(given.base, "few_shot", given.shots)
    return Answers(distributed.map_sharded(predict, examples))
