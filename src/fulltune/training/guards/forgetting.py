"""Forgetting: a probe of what the base could do is scored at every evaluation, and training ends when too much is lost.

guard = ForgettingGuard(lambda: {"english": loss_on_english_text(model)}, budget=0.05)
transformers.Trainer(..., eval_strategy="steps", callbacks=[guard]).train()
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from fulltune.records.run import GuardEvent, Retention

#: What the model still can: by name a number that is better low, compared with the one before the first step, or a
#: record that brings its own comparison.
Score = Callable[[], Mapping[str, float | Retention]]


class ForgettingGuard(TrainerCallback, ExportableState):
    """Stops training at the first evaluation where more than ``budget`` of something is lost.

    Works alone in any :class:`transformers.Trainer` that evaluates. The weights are left as they are then: what to do
    with them is up to whoever reads the verdict (``fulltune models interpolate`` goes back part of the way).

    A run that is resumed goes on with the numbers of the untouched base. Leave
    ``restore_callback_states_from_checkpoint`` off: the guard finds its own state.

    Args:
        score: Scores the model as it is now; called before the first step and after each evaluation.
        budget: Highest relative loss of a number; a record is judged by its own verdict.

    Attributes:
        base: The numbers before the first step.
        history: ``(step, {name: relative loss})`` of every evaluation so far.
        events: What was decided.
        seconds: Wall time spent in ``score``.
    """

    def __init__(self, score: Score, budget: float = 0.05) -> None:
        self.score, self.budget = score, budget
        self.base: dict[str, float] = {}
        self.history: list[tuple[int, dict[str, float]]] = []
        self.events: list[GuardEvent] = []
        self.seconds = 0.0

    def state(self) -> dict[str, Any]:
        """Plain numbers for ``trainer_state.json``."""
        history = [[step, losses] for step, losses in self.history]
        return {"args": {"budget": self.budget}, "attributes": {"base": self.base, "history": history}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.base, self.history, self.events = {}, [], []
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
        found = self._scored()
        losses = {name: self._loss(name, value) for name, value in found.items()}
        self.history.append((step, losses))
        lost = [name for name, value in found.items() if self._is_lost(value, losses[name])]
        if lost and step < state.max_steps:
            control.should_training_stop = True
            self._tell(
                "stop", step, f"{self._told(lost, losses)}; training stopped at step {step} of {state.max_steps}."
            )
        elif lost:
            self._tell("continue", step, f"{self._told(lost, losses)} at the last step.")
        return control

    def _scored(self) -> Mapping[str, float | Retention]:
        started = time.perf_counter()
        found = self.score()
        self.seconds += time.perf_counter() - started
        return found

    def _loss(self, name: str, value: float | Retention) -> float:
        if isinstance(value, Retention):
            return value.change
        base = self.base.get(name, math.nan)
        return (value - base) / abs(base) if base else math.nan

    def _is_lost(self, value: float | Retention, loss: float) -> bool:
        """NaN is lost: it is not below any budget."""
        return value.verdict == "forgotten" if isinstance(value, Retention) else not loss <= self.budget

    def _told(self, lost: list[str], losses: Mapping[str, float]) -> str:
        named = ", ".join(f"{name} is {losses[name]:.1%} worse than the base" for name in lost)
        return f"{named[:1].upper()}{named[1:]} (budget {self.budget:.3g})"

    def _tell(self, verdict: Any, step: int, message: str) -> None:
        self.events.append(GuardEvent(guard="forgetting", step=step, verdict=verdict, message=message))
