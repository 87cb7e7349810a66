"""What the trainer keeps for itself, in one private place, so that no attribute of a subclass collides with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fulltune.training.batches.out_of_memory import MicroBatches
from fulltune.training.batches.packing import PaddingCount

if TYPE_CHECKING:
    from fulltune.models.head_loss import LossAtHead
    from fulltune.training.checkpoints.manager import Checkpoints
    from fulltune.training.loss_check import LossFacts
    from fulltune.training.objective import Kind
    from fulltune.training.regularization.penalties import Regularizer


@dataclass(eq=False)
class OwnState:
    """Settings and state of one :class:`fulltune.Trainer`.

    Attributes:
        checkpoints: Set once the trainer is there; it belongs to one trainer.
        trial: Of a search over hyperparameters; the folder of checkpoints depends on it.
        micro_batches: Runs the micro-batches of a step.
        padding: What was computed in training.
        row_numbers: Of the rows of each micro-batch of a step; empty where they are unknown.
        micro_batch: The one that is computed now, from 0.
        row_losses: ``(B, 2)`` of the batch that was evaluated last: plain loss and count of each row.
        evaluated: Their sums over the whole evaluation.
        is_loss_only: Logits are not asked for in this prediction step.
        facts: What is known of the losses of ``facts_of``.
        skips_first_evaluation: The checkpoint that training resumes from was evaluated.
    """

    class_weights: Tensor | None = None
    r_drop: float = 0.0
    layer_decay: float = 1.0
    regularizers: Sequence[Regularizer] = ()
    trained_only: bool = False
    batch_tokens: int | None = None
    unpad: bool = False
    trial: Any = None
    checkpoints: Checkpoints = field(init=False, repr=False)
    micro_batches: MicroBatches = field(default_factory=MicroBatches)
    padding: PaddingCount = field(default_factory=PaddingCount)
    row_numbers: list[list[int]] = field(default_factory=list)
    micro_batch: int = 0
    row_losses: Tensor | None = None
    evaluated: Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.float64))
    is_loss_only: bool = False
    loss_at_head: LossAtHead | None = None
    facts: dict[Kind, LossFacts] = field(default_factory=dict)
    facts_of: Any = None
    skips_first_evaluation: bool = False

    def forget_model(self) -> None:
        """Forget what is known of the model, which another one replaces."""
        self.facts_of, self.facts, self.loss_at_head = None, {}, None
