"""Ask the base model, without and with examples in its context."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from fulltune.evaluation.baselines.base import FEWEST_ROWS, Answers, Given
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


#: A row with examples before it costs about as much as this many without, because prompts share their beginning.
_COST = 2


def few_shot_rows(given: Given, examples: Sequence[Example]) -> tuple[Sequence[Example], str]:
    """Return the rows to answer with examples in the context, and a note if they are not all rows."""
    if given.rows is None or len(examples) <= (allowed := max(FEWEST_ROWS, given.rows // _COST)):
        return examples, ""
    chosen = sorted(random.Random(given.settings.seed).sample(range(len(examples)), allowed))
    note = f"{allowed:,} of {len(examples):,} evaluation rows, drawn at random"
    return [examples[number] for number in chosen], note


def few_shot(given: Given, examples: Sequence[Example]) -> Answers:
    """Ask the base with examples from train."""
    predict = given.task.predictor(given.base, "few_shot", given.shots)
    return Answers(distributed.map_sharded(predict, examples))
