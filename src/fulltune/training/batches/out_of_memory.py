"""Recover from out-of-memory errors in a training step: repeat the step with smaller parts of the micro-batches.

The loss of an effective batch is a sum over rows, divided by the count of all rows. The gradients of parts therefore
add up to the gradient of the batch: the step is the same, with less memory. The order of rows, the number of steps and
the learning rate do not change.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fulltune.errors import MemoryExhausted
from fulltune.training.guards.base import GuardDecision

#: Messages of torch's CPU allocator (``alloc_cpu.cpp``: POSIX, then Windows), which raises a plain RuntimeError.
_CPU_MESSAGES = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")

Batch = Mapping[str, Any]


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an accelerator, the CPU allocator of torch, or Python ran out of memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _CPU_MESSAGES)


class MicroBatches:
    """Run the micro-batches of an optimizer step, in parts if a complete one does not fit in memory.

    The size of a part is limited in padded tokens, so that batches of short rows are not split because batches of long
    rows were.

    Attributes:
        limit: Largest number of padded tokens per part; None until memory ran out.
        events: Decisions to compute in parts.
    """

    def __init__(self) -> None:
        self.limit: int | None = None
        self.events: list[GuardDecision] = []
        self._batches: Sequence[Batch] = ()
        self._done = 0
        self._draws: list[Tensor] = []

    def begin(self, batches: Sequence[Batch]) -> None:
        """Start the next optimizer step, which has these micro-batches."""
        self._batches = batches
        self._done = 0
        self._draws = _random_states()

    def state(self) -> dict[str, Any]:
        """Return plain data for a checkpoint."""
        return {"limit": self.limit, "events": [event.state() for event in self.events]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a :meth:`state`, unless memory ran out since."""
        if self.limit is None:
            self.limit = state["limit"]
            self.events = [GuardDecision(**event) for event in state["events"]]

    def run(
        self,
        compute: Callable[[Any], Tensor],
        model: nn.Module,
        batch: Batch,
        *,
        step: int,
        adds_up: bool,
        parts: Callable[[Any], Sequence[Any]] = lambda batch: (batch,),
    ) -> Tensor:
        """Return the loss of a micro-batch, and add its gradients to those of the model.

        Args:
            compute: Runs forward and backward of a batch; returns its contribution to the loss.
            model: Its gradients are cleared before the step is repeated.
            batch: ``(B, …)`` tensors by name.
            step: The optimizer step, from 1.
            adds_up: The losses of parts add up to the loss of the micro-batch, so that it may be split.
            parts: Splits a micro-batch for speed, whether or not it fits in memory.

        Raises:
            MemoryExhausted: A single row does not fit, or the batch cannot be split; the weights are those of the last
                step.
        """
        todo = [batch]
        while True:
            try:
                losses = [self._in_parts(compute, parts(one)) for one in todo]
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error)
            # Outside the except block the traceback is freed, and with it the tensors of the failed pass.
            model.zero_grad()
            _release()
            self._halve([part for one in todo for part in parts(one)], step, adds_up, reason)
            _set_random_states(self._draws)
            todo = [*self._batches[: self._done], batch]
        self._done += 1
        return losses[-1]

    def _in_parts(self, compute: Callable[[Any], Tensor], batches: Sequence[Batch]) -> Tensor:
        losses = [compute(part) for batch in batches for part in self._fitting(batch)]
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def _fitting(self, batch: Batch) -> Sequence[Batch]:
        return [batch] if self.limit is None else split(batch, self._at_once(batch))

    def _at_once(self, batch: Batch) -> int:
        """Return how many rows of a batch may be computed together."""
        rows = row_count(batch)
        return rows if self.limit is None else max(1, min(rows, self.limit * rows // padded_tokens(batch)))

    def _halve(self, todo: Sequence[Batch], step: int, adds_up: bool, reason: str) -> None:
        largest = max((one for one in todo if self._at_once(one) > 1), key=padded_tokens, default=None)
        if largest is None or not adds_up:
            smallest = "one row" if largest is None else f"{self._at_once(largest)} rows, which cannot be split"
            raise MemoryExhausted(step, smallest, reason)
        rows = row_count(largest)
        width = padded_tokens(largest) // rows
        before = self._at_once(largest)
        part = -(-before // 2)
        self.limit = part * width
        message = (
            f"Out of memory at step {step} with {before} rows of up to {width} tokens: the step was repeated in parts "
            f"of {part} rows, and so are the steps after it; the effective batch is the same. To avoid the error, set "
            f"train.batch_size: {part} and multiply train.accumulation by {-(-rows // part)}."
        )
        self.events.append(GuardDecision(guard="memory", step=step, verdict="continue", message=message))


def split(batch: Batch, rows: int) -> list[dict[str, Any]]:
    """Split a batch into parts of at most ``rows`` rows; values that are not per row are part of every one."""
    return [take(batch, slice(start, start + rows)) for start in range(0, row_count(batch), rows)]


def take(batch: Batch, rows: slice | list[int]) -> dict[str, Any]:
    """Return some rows of a batch; values that are not per row are kept unchanged."""
    count = row_count(batch)
    return {name: value[rows] if _has_rows(value, count) else value for name, value in batch.items()}


def row_count(batch: Batch) -> int:
    """Return the number of rows of a batch: the first dimension of its largest tensor."""
    tensors = [value for value in batch.values() if isinstance(value, Tensor) and value.dim()]
    return max(tensors, key=Tensor.numel).shape[0]


def padded_tokens(batch: Batch) -> int:
    """Return the number of positions of a batch: those of its inputs, and of labels of another width."""
    shapes = {value.shape for value in batch.values() if isinstance(value, Tensor) and value.dim() == 2}
    return sum(rows * width for rows, width in shapes) or row_count(batch)


def _has_rows(value: Any, count: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == count


def _random_states() -> list[Tensor]:
    """Return the states of torch's random number generators on the CPU and the accelerator."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state()] if torch.cuda.is_available() else states


def _set_random_states(states: Sequence[Tensor]) -> None:
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state)


def _release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
