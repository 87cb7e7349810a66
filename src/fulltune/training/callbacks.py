"""Callbacks of a training: the step log, the evaluation schedule, checkpoints, memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from fulltune.records.run import Step
from fulltune.runtime import machine
from fulltune.training.arguments import evaluation_steps
from fulltune.training.checkpoints.format import spacing

OnStep = Callable[[Step, int], None]


class EvaluateAt(TrainerCallback):
    """Evaluates at evenly spread steps, and logs the last step whatever the interval."""

    def __init__(self, points: int) -> None:
        self.points, self.at = points, frozenset[int]()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.at = frozenset(evaluation_steps(state.max_steps, self.points))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        control.should_evaluate = control.should_evaluate or state.global_step in self.at
        control.should_log = control.should_log or state.global_step >= state.max_steps
        return control


class GiveBackPages(TrainerCallback):
    """Hands freed memory back to the system now and then.

    What is kept between steps (:func:`~fulltune.runtime.kernels.allocator.keep_freed_pages`) is a heap with holes, and
    batches of ever other lengths would let it grow to several times what a step takes. A step with new pages takes half
    as long again at most, so that once in :data:`EVERY` steps costs less than a hundredth; evaluations, whose batches
    are larger, are cleared away at once.
    """

    EVERY = 50

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self.EVERY == 0:
            machine.give_back_freed_pages()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        machine.give_back_freed_pages()


class StepLog(TrainerCallback, ExportableState):
    """Turns what the trainer logs into :class:`~fulltune.records.run.Step`.

    When training goes back, the steps that it discards are dropped from ``steps``; what ``on_step`` got of them is told
    from what it gets anew by ``attempt``. A training that is resumed goes on with what was logged before.
    """

    def __init__(self, on_step: OnStep) -> None:
        self.on_step, self.steps, self.evaluation_seconds = on_step, list[Step](), 0.0
        self.attempt, self.began_at, self.written = 0, 0, 0
        self.seconds_before, self.tokens_before, self.started = 0.0, 0, time.perf_counter()

    def state(self) -> dict[str, Any]:
        seconds = self.seconds_before + time.perf_counter() - self.started
        steps = [step.model_dump() for step in self.steps]
        return {
            "args": {},
            "attributes": {"attempt": self.attempt, "steps": steps, "written": self.written, "seconds": seconds},
        }

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        states: Any = state.stateful_callbacks
        if state.global_step and not self.attempt:
            self._resume(states.get(type(self).__name__, {}).get("attributes", {}), state)
        else:
            self.attempt += 1
        self.began_at = state.global_step
        self.steps = [step for step in self.steps if step.step <= state.global_step]

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.evaluation_seconds += (logs or {}).get("eval_runtime", 0.0)
        names = ("loss", "eval_loss", "learning_rate", "grad_norm")
        values = {name: float(logs[name]) for name in names if logs and name in logs}
        # Evaluated before, in the same state.
        is_known = self.attempt > 1 and state.global_step == self.began_at
        if values.keys() & {"loss", "eval_loss"} and not is_known:
            step = Step(step=state.global_step, epoch=state.epoch or 0.0, attempt=self.attempt, **values)
            self.steps.append(step)
            self.written += 1
            self.on_step(step, state.max_steps)

    def _resume(self, saved: dict[str, Any], state: TrainerState) -> None:
        self.attempt, self.written = max(1, saved.get("attempt", 1)), saved.get("written", 0)
        self.steps = [Step.model_validate(step) for step in saved.get("steps", ())]
        self.seconds_before, self.tokens_before = saved.get("seconds", 0.0), state.num_input_tokens_seen


class SaveEvery(TrainerCallback):
    """Asks for a checkpoint at every so many steps; never at one where training ends, for then there is nothing to go
    on with. Name it last among the callbacks, so that it sees what the others decided.

    Args:
        steps: None for :func:`spacing`.
    """

    def __init__(self, steps: int | None) -> None:
        self.steps = steps

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        due = state.global_step % spacing(state.max_steps, self.steps) == 0 and state.global_step < state.max_steps
        control.should_save = control.should_save or (due and not control.should_training_stop)
        return control

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        control.should_save = control.should_save and not control.should_training_stop
        return control
