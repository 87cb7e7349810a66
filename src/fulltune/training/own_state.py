"""Hold the settings and the state of a trainer in one private object, so that a subclass may use any attribute."""

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
    from fulltune.training.loss_check import LossCheck
    from fulltune.training.objective import LabelKind
    from fulltune.training.protocols import TrainingLoop
    from fulltune.training.regularization.penalties import Regularizer


@dataclass(eq=False)
class OwnState:
    """Settings and state of one :class:`fulltune.Trainer`.

    Attributes:
        class_weights: ``(C,)`` weights of classes, or None.
        r_drop: Weight of R-Drop.
        layer_decay: Factor on the learning rate per layer below the top.
        decayed: The optimizer whose learning rates have this factor, or None.
        regularizers: Penalties.
        trained_only: Checkpoints contain trainable parameters only.
        batch_tokens: Limit of padded tokens per micro-batch, or None.
        unpad: Compute a micro-batch in parts of similar length.
        trial: Trial of a search for hyperparameters; the folder of checkpoints depends on it.
        loop: The trainer as its collaborators see it; set by the trainer.
        checkpoints: Checkpoints of the trainer; set by the trainer.
        micro_batches: Runs the micro-batches of a step.
        padding: Counts tokens and padding in training.
        row_numbers: Numbers of the rows of each micro-batch of the step; empty if they are unknown.
        micro_batch: Index of the current micro-batch in the step.
        row_losses: ``(B, 2)``: plain loss and count of each row of the last batch that was evaluated.
        evaluated: ``(2,)``: sums of ``row_losses`` over the evaluation.
        is_loss_only: The current prediction step does not return logits.
        loss_at_head: Computes the loss without logits; None before its first use.
        loss_checks: Facts on the loss of ``loss_checks_of``, by kind of labels.
        loss_checks_of: The model that ``loss_checks`` describes.
        unwrapped: The trainer's model, and the same without its wrappers; unwrapping costs milliseconds.
        steps_before: Steps before the checkpoint that training resumes from, whose losses are part of the restored sum.
    """

    class_weights: Tensor | None = None
    r_drop: float = 0.0
    layer_decay: float = 1.0
    decayed: Any = None
    regularizers: Sequence[Regularizer] = ()
    trained_only: bool = False
    batch_tokens: int | None = None
    unpad: bool = False
    trial: Any = None
    loop: TrainingLoop = field(init=False, repr=False)
    checkpoints: Checkpoints = field(init=False, repr=False)
    micro_batches: MicroBatches = field(default_factory=MicroBatches)
    padding: PaddingCount = field(default_factory=PaddingCount)
    row_numbers: list[list[int]] = field(default_factory=list)
    micro_batch: int = 0
    row_losses: Tensor | None = None
    evaluated: Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.float64))
    is_loss_only: bool = False
    loss_at_head: LossAtHead | None = None
    loss_checks: dict[LabelKind, LossCheck] = field(default_factory=dict)
    loss_checks_of: Any = None
    unwrapped: tuple[Any, Any] = (None, None)
    steps_before: int = 0

    def forget_model(self) -> None:
        """Drop what is known of a model that is replaced by another one."""
        self.loss_checks_of = None
        self.unwrapped = (None, None)
        self.loss_checks = {}
        self.loss_at_head = None
