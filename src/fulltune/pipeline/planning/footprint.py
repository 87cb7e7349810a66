"""Memory of an optimizer step as a function of the rows in a micro-batch; :mod:`probe_steps` measures the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Footprint:
    """Memory of a step, measured with a few rows as long as the longest.

    At a fixed width, each allocation of a step is a constant (gradients) plus a part per row (activations, logits). Two
    measurements with allocations in the same order therefore give each allocation for any number of rows, and the peak.

    Attributes:
        rows: Rows of a complete micro-batch of the job.
        width: Tokens of the longest row, with its target if that is a separate text.
        timelines: Rows of a micro-batch → bytes allocated (positive) and freed (negative), from the beginning of the
        step
            to the optimizer step.
        weights: Bytes of all parameters.
        gradients: Bytes of the gradients.
        optimizer: Bytes of the optimizer state.
        is_accumulated: True if timelines cover two micro-batches.
        seconds: Rows of a micro-batch → seconds of that step.
        embeddings: Bytes of the trainable embeddings.
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
        """Return the peak of a step beyond weights and optimizer state: gradients, activations, logits.

        Args:
            accumulated: True if gradients of an earlier micro-batch are already allocated.
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
