"""What an optimizer step takes, as a function of the rows in a micro-batch. Pure numbers; ``measuring`` makes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Footprint:
    """A step's memory, measured with a few rows as long as the longest.

    At one width, whatever a step takes is a constant (gradients) plus a part for each row (activations, logits). Two
    measurements that took and gave back in the same order therefore tell every single amount for any number of rows,
    and with it the highest point, wherever that comes to lie.

    Attributes:
        rows: Rows of a whole micro-batch of the job.
        width: Tokens of the longest row, its target's too where that is another text.
        timelines: Rows of a micro-batch → bytes taken, and negative those given back, from the step's beginning to its
            optimizer.
        weights: Bytes of all parameters.
        gradients: Bytes of the gradients.
        optimizer: Bytes of the optimizer's state.
        is_accumulated: Timelines are those of two micro-batches in a row.
        seconds: Rows of a micro-batch → seconds of that step.
        embeddings: Bytes of the embeddings that learn.
    """

    rows: int
    width: int
    timelines: Mapping[int, Sequence[int]]
    weights: int
    gradients: int
    optimizer: int
    is_accumulated: bool
    seconds: Mapping[int, float]
    embeddings: int = 0

    def step_bytes(self, accumulated: bool) -> int:
        """The most that a step holds beside weights and optimizer state: gradients, activations, logits.

        Args:
            accumulated: Gradients of an earlier micro-batch are there already.
        """
        beside = self.gradients if accumulated and not self.is_accumulated else 0
        return beside + round(self._highest())

    def _highest(self) -> float:
        if self.rows in self.timelines:
            return _highest(self.timelines[self.rows])
        (few, first), (more, second) = sorted(self.timelines.items())
        share = (self.rows - few) / (more - few)
        if len(first) == len(second):
            return _highest([a + share * (b - a) for a, b in zip(first, second, strict=True)])
        return _highest(first) + share * (_highest(second) - _highest(first))


def _highest(events: Sequence[float]) -> float:
    return max(accumulate(events), default=0)
