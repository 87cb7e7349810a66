"""Hold the parts of a trainer in one private object, so that a subclass may use any attribute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fulltune.training.batch_loss import BatchLoss
from fulltune.training.checkpoints.manager import Checkpoints
from fulltune.training.evaluation_loss import EvaluationLoss
from fulltune.training.loop import LoopAdapter
from fulltune.training.protocols import PublicTrainer
from fulltune.training.regularization.layer_decay import LayerDecay
from fulltune.training.regularization.penalties import Regularizer, StepPenalties
from fulltune.training.step import Step
from fulltune.training.user_code import UserCode


@dataclass(frozen=True, eq=False)
class Parts:
    """Parts of one :class:`fulltune.Trainer`.

    Attributes:
        user: Knows what the user has replaced.
        loss: Computes the loss of a batch.
        evaluated: Averages it in evaluations.
        step: Computes the micro-batches of a step.
        layer_decay: Lowers the learning rate by layer.
        penalties: Adds the gradients of the penalties.
        batch_tokens: Limit of padded tokens per micro-batch, or None.
        loop: The trainer as checkpoints and roll-back see it.
        checkpoints: Writes and reads checkpoints.
    """

    user: UserCode
    loss: BatchLoss
    evaluated: EvaluationLoss
    step: Step
    layer_decay: LayerDecay
    penalties: StepPenalties
    batch_tokens: int | None
    loop: LoopAdapter
    checkpoints: Checkpoints

    @classmethod
    def of(
        cls,
        trainer: PublicTrainer,
        *,
        class_weights: Sequence[float] | None,
        r_drop: float,
        layer_decay: float,
        regularizers: Sequence[Regularizer],
        trained_only: bool,
        batch_tokens: int | None,
        unpad: bool,
    ) -> Parts:
        """Return the parts of a trainer, given the options of its constructor."""
        user = UserCode(trainer)
        evaluated = EvaluationLoss(trainer)
        loss = BatchLoss(trainer, user, evaluated, class_weights=class_weights, r_drop=r_drop)
        step = Step(trainer, user, loss, unpad=unpad)
        loop = LoopAdapter(trainer, step, trained_only=trained_only)
        return cls(
            user=user,
            loss=loss,
            evaluated=evaluated,
            step=step,
            layer_decay=LayerDecay(layer_decay),
            penalties=StepPenalties(regularizers),
            batch_tokens=batch_tokens,
            loop=loop,
            checkpoints=Checkpoints(loop),
        )


def parts_of(trainer: Any) -> Parts:
    """Return the parts of a :class:`fulltune.Trainer`, which has no attribute for them that a subclass might use."""
    parts: Parts = trainer._fulltune
    return parts
