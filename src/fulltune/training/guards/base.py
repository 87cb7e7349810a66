"""Define guards, the callbacks that watch over a training, and the decisions that they take."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from fulltune.records.run import GuardEvent

#: Names of guards, as records hold them. ``finite`` and ``memory`` are checks of the trainer itself.
GuardName = Literal["divergence", "finite", "forgetting", "memory", "overfitting"]

Verdict = Literal["continue", "stop", "roll back"]


@dataclass(frozen=True)
class GuardDecision:
    """A decision of a guard.

    Attributes:
        guard: Name of the guard.
        step: Optimizer step that the decision concerns.
        verdict: Effect on the training.
        message: The reason, in one sentence.
    """

    guard: GuardName
    step: int
    verdict: Verdict
    message: str

    @property
    def stops(self) -> bool:
        """True if training ended with this decision."""
        return self.verdict == "stop"

    def state(self) -> dict[str, Any]:
        """Return plain data for a checkpoint; ``GuardDecision(**state)`` restores the decision."""
        return asdict(self)

    def record(self) -> GuardEvent:
        """Return the decision as the record of a run stores it."""
        return GuardEvent(guard=self.guard, step=self.step, verdict=self.verdict, message=self.message)


class Guard(TrainerCallback, ExportableState):
    """Base class of guards.

    Attributes:
        name: Name of the guard in decisions.
        events: Decisions of this training, in order.
        seconds: Wall time of the guard's own evaluations.
    """

    name: ClassVar[GuardName]

    def __init__(self) -> None:
        self.events: list[GuardDecision] = []
        self.seconds = 0.0

    def decide(self, verdict: Verdict, step: int, message: str) -> None:
        """Add a decision to the events."""
        self.events.append(GuardDecision(self.name, step, verdict, message))
