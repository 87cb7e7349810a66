"""Out of memory in a training step: the micro-batch is computed in smaller parts, and the step is done again.

The loss of an effective batch is a sum over its rows divided by what all of them count, so gradients of parts add up to
those of the whole: the same step, in less memory. The order of rows, the number of steps and the learning rate stay.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fulltune.errors import MemoryExhausted
from fulltune.records.run import GuardEvent

#: What torch's allocator for the CPU says (``alloc_cpu.cpp``: POSIX, then Windows); there is no type of its own for it.
_CPU_MESSAGES = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")

Batch = Mapping[str, Any]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an accelerator (:class:`torch.OutOfMemoryError`), torch's allocator for the CPU or Python itself had no
    memory left to give.
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _CPU_MESSAGES)


class MicroBatches:
    """Runs the micro-batches of an optimizer step, in parts where a whole one does not fit.

    A part is measured by its padded tokens, so that short rows are not cut because long ones were.

    Attributes:
        limit: Padded tokens of a part; None until memory ran out.
        events: What happened, for the record.
    """

    def __init__(self) -> None:
        self.limit: int | None = None
        self.events: list[GuardEvent] = []
        self._batches: Sequence[Batch] = ()
        self._done = 0
        self._draws: list[Tensor] = []

    def begin(self, batches: Sequence[Batch]) -> None:
        """The micro-batches of the next optimizer step."""
        self._batches, self._done, self._draws = batches, 0, _random_states()

    def run(
        self,
        compute: Callable[[Any], Tensor],
        model: nn.Module,
        batch: Batch,
        *,
        step: int,
        adds_up: bool,
        cut: Callable[[Any], Sequence[Any]] = lambda batch: (batch,),
    ) -> Tensor:
        """The loss of one micro-batch, its gradients added to the model's.

        Args:
            compute: Forward and backward of a batch; returns its share of the loss.
            model: Its gradients are cleared when the step is done again.
            batch: ``(B, …)`` tensors by name.
            step: The optimizer step, from 1.
            adds_up: Losses of parts add up to that of the whole.
            cut: Parts that a micro-batch is computed in although it may fit; their losses add up.

        Raises:
            MemoryExhausted: A single row does not fit, or parts cannot be had; the weights are those of the last step.
        """
        todo = [batch]
        while True:
            try:
                losses = [self._in_parts(compute, cut(one)) for one in todo]
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error)
            # Out here the traceback, which holds the tensors of the pass that failed, is gone.
            model.zero_grad()
            _release()
            self._halve([part for one in todo for part in cut(one)], step, adds_up, reason)
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
        """Rows of a batch that may be computed together."""
        rows = row_count(batch)
        return rows if self.limit is None else max(1, min(rows, self.limit * rows // padded_tokens(batch)))

    def _halve(self, todo: Sequence[Batch], step: int, adds_up: bool, reason: str) -> None:
        largest = max((one for one in todo if self._at_once(one) > 1), key=padded_tokens, default=None)
        if largest is None or not adds_up:
            told = "one row" if largest is None else f"{self._at_once(largest)} rows, which cannot be cut"
            raise MemoryExhausted(step, told, reason)
        rows, tokens, whole = row_count(largest), padded_tokens(largest), self._at_once(largest)
        part = -(-whole // 2)
        self.limit = part * (tokens // rows)
        message = (
            f"Out of memory at step {step} with {whole} rows of up to {tokens // rows} tokens: the step was done again "
            f"in parts of {part}, as are those after it; the effective batch is the same. To begin with that, set "
            f"train.batch_size: {part}, and train.accumulation to {-(-rows // part)} times as much."
        )
        self.events.append(GuardEvent(guard="memory", step=step, verdict="continue", message=message))


def split(batch: Batch, rows: int) -> list[dict[str, Any]]:
    """Parts of at most ``rows`` rows; what is no tensor with a row each goes to every part."""
    return [take(batch, slice(start, start + rows)) for start in range(0, row_count(batch), rows)]


def take(batch: Batch, rows: slice | list[int]) -> dict[str, Any]:
    """Some rows of a batch; what is no tensor with a row each goes along whole."""
    count = row_count(batch)
    return {name: value[rows] if _has_rows(value, count) else value for name, value in batch.items()}


def row_count(batch: Batch) -> int:
    """Rows of a batch, by its widest tensor."""
    tensors = [value for value in batch.values() if isinstance(value, Tensor) and value.dim()]
    return max(tensors, key=Tensor.numel).shape[0]


def padded_tokens(batch: Batch) -> int:
    """Positions of a batch, those of its input and of its labels where they are another text."""
    shapes = {value.shape for value in batch.values() if isinstance(value, Tensor) and value.dim() == 2}
    return sum(rows * width for rows, width in shapes) or row_count(batch)


def _has_rows(value: Any, count: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == count


def _random_states() -> list[Tensor]:
    """Where torch's random numbers stand, on the CPU and on the accelerator."""
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
