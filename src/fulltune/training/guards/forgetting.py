"""Detect forgetting: score abilities of the base at every evaluation, and stop training if too much is lost.

guard = ForgettingGuard(lambda: {"english": loss_on_english_text(model)}, budget=0.05)
transformers.Trainer(..., eval_strategy="steps", callbacks=[guard]).train()
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from transformers import TrainerControl, TrainerState, TrainingArguments

from fulltune.records.run import Retention
from fulltune.training.guards.base import Guard, GuardName

#: Scores of the current model by name. A number is better low and is compared with the one before the first step; a
#: record has its own comparison.
Score = Callable[[], Mapping[str, float | Retention]]


class ForgettingGuard(Guard):
    """Stop training at the first evaluation at which a score is worse than the base's by more than the budget.

    The guard works in any :class:`transformers.Trainer` that evaluates. It does not restore weights;
    ``fulltune models interpolate`` can move the stopped model part of the way back to the base.

    A resumed run keeps the scores of the base. Leave ``restore_callback_states_from_checkpoint`` off: the guard reads
    its state itself.

    Args:
        score: Returns scores of the current model; called before the first step and after each evaluation.
        budget: Largest relative loss of a number; a record has its own verdict.

    Attributes:
        base: Numbers before the first step, by name.
        history: ``(step, {name: relative loss})`` of every evaluation so far.
        events: Decisions of this training.
        seconds: Wall time spent in ``score``.
    """

    name: ClassVar[GuardName] = "forgetting"

    def __init__(self, score: Score, budget: float = 0.05) -> None:
        super().__init__()
        self.score = score
        self.budget = budget
        self.base: dict[str, float] = {}
        self.history: list[tuple[int, dict[str, float]]] = []

    def state(self) -> dict[str, Any]:
        """Return the arguments and plain numbers for ``trainer_state.json``."""
        history = [[step, losses] for step, losses in self.history]
        return {"args": {"budget": self.budget}, "attributes": {"base": self.base, "history": history}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.base = {}
        self.history = []
        self.events = []
        states: Any = state.stateful_callbacks
        saved = states.get(type(self).__name__) if state.global_step else None
        if isinstance(saved, dict):
            known = saved["attributes"]
            self.base = {name: float(value) for name, value in known["base"].items()}
            self.history = [(int(step), losses) for step, losses in known["history"] if step <= state.global_step]
        else:
            self.base = {name: value for name, value in self._scored().items() if not isinstance(value, Retention)}

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        step = state.global_step
        last = self.history[-1][0] if self.history else 0
        if step <= last:
            return control
        scores = self._scored()
        losses = {name: self._loss(name, value) for name, value in scores.items()}
        self.history.append((step, losses))
        lost = [name for name, value in scores.items() if self._is_lost(value, losses[name])]
        if not lost:
            return control
        reason = self._reason(lost, losses)
        if step < state.max_steps:
            control.should_training_stop = True
            self.decide("stop", step, f"{reason}; training stopped at step {step} of {state.max_steps}.")
        else:
            self.decide("continue", step, f"{reason} at the last step.")
        return control

    def _scored(self) -> Mapping[str, float | Retention]:
        started = time.perf_counter()
        scores = self.score()
        self.seconds += time.perf_counter() - started
        return scores

    def _loss(self, name: str, value: float | Retention) -> float:
        if isinstance(value, Retention):
            return value.change
        base = self.base.get(name, math.nan)
        return (value - base) / abs(base) if base else math.nan

    def _is_lost(self, value: float | Retention, loss: float) -> bool:
        # NaN is over any budget.
        return value.verdict == "lost" if isinstance(value, Retention) else not loss <= self.budget

    def _reason(self, lost: list[str], losses: Mapping[str, float]) -> str:
        named = ", ".join(f"{name} is {losses[name]:.1%} worse than the base" for name in lost)
        return f"{named[:1].upper()}{named[1:]} (budget {self.budget:.3g})"
