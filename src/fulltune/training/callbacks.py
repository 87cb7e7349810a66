"""Define callbacks of a training: the step log, the evaluation schedule, checkpoints, memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState

from fulltune.records.run import Step
from fulltune.runtime import machine
from fulltune.training.arguments import evaluation_steps
from fulltune.training.checkpoints.format import spacing

OnStep = Callable[[Step, int], None]


class EvaluateAt(TrainerCallback):
    """Evaluate at evenly spaced steps, and log the last step whatever the interval is.

    Args:
        points: Number of evaluations.
    """

    def __init__(self, points: int) -> None:
        self.points = points
        self.at = frozenset[int]()

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
    """Return freed memory to the system every :data:`EVERY` steps and after evaluations.

    Freed pages are kept between steps (:func:`~fulltune.runtime.kernels.allocator.keep_freed_pages`), which fragments
    the heap: with batches of varying lengths it would grow to several times the memory of a step. A step with new pages
    takes at most 1.5 times as long, so the cost is below 1%. Evaluations have larger batches.
    """

    EVERY = 50

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self.EVERY == 0:
            machine.give_back_freed_pages()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        machine.give_back_freed_pages()


class StepLog(TrainerCallback, ExportableState):
    """Convert the log of the trainer to :class:`~fulltune.records.run.Step`.

    After a roll-back, the discarded steps are removed from ``steps``. ``on_step`` gets the repeated steps with a higher
    ``attempt``. A resumed training keeps the steps that were logged before.

    Args:
        on_step: Called with each logged step and the total number of steps.

    Attributes:
        steps: Logged steps, in order.
        evaluation_seconds: Wall time of evaluations.
        attempt: Number of starts of the loop, roll-backs included.
        began_at: Step at which this attempt began.
        written: Number of calls of ``on_step``, those before a resume included.
        seconds_before: Wall time of training before it was resumed.
        tokens_before: Input tokens before training was resumed.
    """

    def __init__(self, on_step: OnStep) -> None:
        self.on_step = on_step
        self.steps = list[Step]()
        self.evaluation_seconds = 0.0
        self.attempt = 0
        self.began_at = 0
        self.written = 0
        self.seconds_before = 0.0
        self.tokens_before = 0
        self._started = time.perf_counter()

    @classmethod
    def written_at(cls, checkpoint: Path) -> int:
        """Return :attr:`written` as it was when a checkpoint was written."""
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        states: Any = state.stateful_callbacks
        return int(states[cls.__name__]["attributes"]["written"])

    def state(self) -> dict[str, Any]:
        """Return plain data for ``trainer_state.json``."""
        seconds = self.seconds_before + time.perf_counter() - self._started
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
        # After a roll-back, the state that training returned to was logged before.
        is_known = self.attempt > 1 and state.global_step == self.began_at
        if values.keys() & {"loss", "eval_loss"} and not is_known:
            step = Step(step=state.global_step, epoch=state.epoch or 0.0, attempt=self.attempt, **values)
            self.steps.append(step)
            self.written += 1
            self.on_step(step, state.max_steps)

    def _resume(self, saved: dict[str, Any], state: TrainerState) -> None:
        self.attempt = max(1, saved.get("attempt", 1))
        self.written = saved.get("written", 0)
        self.steps = [Step.model_validate(step) for step in saved.get("steps", ())]
        self.seconds_before = saved.get("seconds", 0.0)
        self.tokens_before = state.num_input_tokens_seen


class SaveEvery(TrainerCallback):
    """Ask for checkpoints at regular steps, except the last one of the training.

    It must come after the callbacks that may end training: then there is nothing to resume.

    Args:
        steps: Steps between two checkpoints; None for the default of :func:`spacing`.
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
