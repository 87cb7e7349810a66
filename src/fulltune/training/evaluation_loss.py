"""Average the loss of an evaluation over its rows or tokens, whatever the batch size is."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fulltune.training.protocols import PublicTrainer


class EvaluationLoss:
    """The plain loss of the evaluation in progress: its sum divided by the number of labels.

    Args:
        trainer: The trainer.
    """

    def __init__(self, trainer: PublicTrainer) -> None:
        self._trainer = trainer
        self.begin()

    def begin(self) -> None:
        """Start an evaluation."""
        self._sums = torch.zeros(2, dtype=torch.float64)
        self._row_losses: Tensor | None = None

    def see(self, row_losses: Tensor | None) -> None:
        """Receive the plain loss and the count of each row of a batch, ``(B, 2)``; None in training."""
        self._row_losses = row_losses

    def end_batch(self) -> None:
        """Add the rows of the batch on all processes, if their losses are known."""
        if self._row_losses is not None:
            # This drops the rows that distributed sampling repeats to complete its last batch.
            rows = self._trainer.accelerator.gather_for_metrics(self._row_losses)
            self._sums += rows.sum(dim=0).cpu()

    def mean(self) -> float | None:
        """Return the mean; NaN if no row has a label, None if the losses are not known."""
        if self._row_losses is None:
            return None
        total, count = self._sums.tolist()
        return total / count if count else math.nan
