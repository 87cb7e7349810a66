"""Compute the micro-batches of an optimizer step: in parts, with the numbers of their rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from fulltune.errors import DataError, NonFiniteError
from fulltune.training.batch_loss import BatchLoss
from fulltune.training.batches.collate import as_rows, take_row_numbers
from fulltune.training.batches.out_of_memory import MicroBatches
from fulltune.training.batches.packing import PaddingCount, with_token_mask
from fulltune.training.batches.unpadding import unpadded
from fulltune.training.guards.divergence import batch_width
from fulltune.training.protocols import PublicTrainer
from fulltune.training.user_code import UserCode


class Step:
    """The optimizer step in progress.

    Args:
        trainer: The trainer.
        user: Knows what the user has replaced in it.
        loss: Its loss.
        unpad: Compute a micro-batch in parts of similar length.

    Attributes:
        micro_batches: Runs the micro-batches.
        padding: Counts tokens and padding in training.
    """

    def __init__(self, trainer: PublicTrainer, user: UserCode, loss: BatchLoss, *, unpad: bool) -> None:
        self._trainer = trainer
        self._user = user
        self._loss = loss
        self._unpad = unpad
        # Numbers of the rows of each micro-batch; empty if they are unknown.
        self._row_numbers: list[list[int]] = []
        self._micro_batch = 0
        self.micro_batches = MicroBatches()
        self.padding = PaddingCount()

    def begin(self, batches: Sequence[Any]) -> None:
        """Start a step with these micro-batches; remove the row numbers from them."""
        self._row_numbers = [take_row_numbers(batch) for batch in batches]
        self._micro_batch = 0
        self.micro_batches.begin(batches)

    def checked_count(self, count: Any) -> Any:
        """Return the number of labels of the step, the denominator of its loss.

        Raises:
            DataError: There is none.
        """
        if count is None or float(torch.as_tensor(count).sum()) or self._user.replaces_loss():
            return count
        if getattr(self._trainer.data_collator, "mlm", False):
            return torch.ones_like(torch.as_tensor(count))  # no token was masked by chance: no gradient
        raise DataError(
            f"no position of this batch has a label (step {self._trainer.state.global_step + 1}, "
            f"rows {', '.join(self.row_ids()) or 'unknown'})",
            expected="at least one label that is not -100",
            fix="increase the maximum length so that labels are not cut off, or remove those rows",
        )

    def run(
        self, plain: Callable[..., Tensor], model: nn.Module, inputs: dict[str, Any], count: Tensor | int | None
    ) -> Tensor:
        """Return the loss of a micro-batch, computed in parts if their result is known to be the same.

        Args:
            plain: Runs forward and backward as the library does; takes the three arguments below.
            model: The model, with its wrappers.
            inputs: The micro-batch.
            count: Number of labels of the step; None for the mean of the micro-batch.
        """
        if self._loss.objective(inputs) is None:
            return plain(model, inputs, count)
        # Without a count the loss is the mean of one micro-batch, which the library divides by their number.
        with nullcontext() if count is None else self._loss_is_scaled():
            if self._user.keeps_micro_batches_whole():
                return plain(model, inputs, count)
            return self.micro_batches.run(
                lambda batch: plain(model, batch, count),
                model,
                inputs,
                step=self._trainer.state.global_step + 1,
                adds_up=count is not None and self._trainer.args.world_size == 1,
                parts=self._parts if count is not None else lambda batch: (batch,),
            )

    def check_loss(self, model: nn.Module, loss: Tensor) -> float:
        """Return the mean loss of the micro-batch over all processes.

        Raises:
            NonFiniteError: A loss is not finite.
        """
        everywhere = self._everywhere(loss)
        broken = everywhere[~torch.isfinite(everywhere)]
        if broken.numel():
            # Only the process itself knows its rows.
            rows = [] if torch.isfinite(loss) else self.row_ids(is_current=True)
            self._stop(model, "loss", broken[0].item(), rows)
        return float(everywhere.mean())

    def mean_width(self, loss: Tensor, inputs: dict[str, Any]) -> float:
        """Return the mean width of the micro-batch over all processes, in tokens.

        Args:
            loss: The loss of the micro-batch, which is on the device of this process.
            inputs: The micro-batch.
        """
        return float(self._everywhere(loss.new_tensor(batch_width(inputs), dtype=torch.float32)).mean())

    def _everywhere(self, value: Tensor) -> Tensor:
        """Return a number of all processes, ``(P,)``."""
        several = self._trainer.args.world_size > 1
        return (self._trainer.accelerator.gather(value) if several else value).flatten()

    def check_norm(self, model: nn.Module, norm: float) -> None:
        """Check the norm of the gradients of the step.

        Raises:
            NonFiniteError: It is not finite.
        """
        if not math.isfinite(norm):
            self._stop(model, "gradient norm", norm, self.row_ids())

    def _stop(self, model: nn.Module, quantity: str, value: float, row_ids: Sequence[str]) -> NoReturn:
        """Raise the error of a number that is not finite, without the gradients that it is part of."""
        model.zero_grad()
        raise NonFiniteError(self._trainer.state.global_step + 1, quantity, value, row_ids)

    def end_micro_batch(self) -> None:
        """Count a micro-batch."""
        self._micro_batch += 1

    def count_padding(self, inputs: dict[str, Any]) -> None:
        """Count the tokens and the padding of a micro-batch as it is computed."""
        for part in self._parts(inputs):
            self.padding.add(with_token_mask(part))

    def restore_padding(self, state: dict[str, Any]) -> None:
        """Continue to count from the fields of a :class:`PaddingCount`."""
        self.padding = replace(self.padding, **state)

    def row_ids(self, *, is_current: bool = False) -> list[str]:
        """Return the ids of the rows of the step: ``row_id``, or the number of the row.

        Args:
            is_current: Return those of the current micro-batch alone.
        """
        numbers = self._row_numbers
        chosen = numbers[self._micro_batch : self._micro_batch + 1] if is_current else numbers
        rows = as_rows(self._trainer.train_dataset)
        items = [(number, rows[number]) for some in chosen for number in some]
        return [str(item.get("row_id", number) if hasattr(item, "get") else number) for number, item in items]

    def _parts(self, batch: Any) -> Sequence[Any]:
        """Return the parts in which a micro-batch is computed for speed."""
        may_split = self._unpad and self._trainer.args.world_size == 1
        objective = self._loss.objective(batch) if may_split else None
        if objective is None or not self._loss.check(objective.kind).is_cross_entropy or self._user.keeps_whole(batch):
            return [batch]
        return unpadded(batch, objective.kind) if self._loss.groups(batch, objective) is None else [batch]

    @contextmanager
    def _loss_is_scaled(self) -> Iterator[None]:
        """Prevent the library from dividing the loss by the number of micro-batches; restore the user's setting."""
        trainer = self._trainer
        known = "loss_is_scaled_for_ga" in vars(trainer)
        flag = trainer.loss_is_scaled_for_ga
        trainer.loss_is_scaled_for_ga = True
        try:
            yield
        finally:
            del trainer.loss_is_scaled_for_ga
            if known:
                trainer.loss_is_scaled_for_ga = flag
