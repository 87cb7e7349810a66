"""Roll training back: return to the checkpoint of the last good step when training diverges.

Training returns to checkpoints that are written anyway. A step without one gets a private checkpoint in ``.rollback``
in the output folder. These are removed as soon as they are not needed, and when training ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import TrainOutput

from fulltune.errors import DivergenceError, NonFiniteError, TrainingStopped
from fulltune.training.checkpoints.format import load_weights, spacing, step_of
from fulltune.training.checkpoints.manager import Checkpoints
from fulltune.training.guards.divergence import DivergenceGuard, weight_norms
from fulltune.training.protocols import TrainingLoop

#: Name of the state of this callback in a checkpoint.
_STATE = "roll_back"

#: Trains from a checkpoint, or from the beginning.
Attempt = Callable[[Path | None], TrainOutput]


@dataclass
class Target:
    """A checkpoint that training can return to.

    Attributes:
        step: Optimizer steps before it.
        is_proven: A step after it was good, so its weights are good too.
        tries: Number of times that training returned to it.
    """

    step: int
    is_proven: bool = False
    tries: int = 0


class RollBack(TrainerCallback):
    """Write checkpoints while training is good, and return to the last one when it is not.

    Args:
        loop: The training.
        checkpoints: Its checkpoints.
        guard: Decides which steps are good, and on the number of roll-backs.
    """

    def __init__(self, loop: TrainingLoop, checkpoints: Checkpoints, guard: DivergenceGuard) -> None:
        self.loop = loop
        self.guard = guard
        self.checkpoints = checkpoints
        self.kept: list[Target] = []
        self._due = 0
        self._epoch_begins = False
        self._is_back = False

    @property
    def _model(self) -> nn.Module:
        return cast("nn.Module", self.loop.model)

    def train(self, attempt: Attempt, source: Path | None) -> TrainOutput:
        """Train until an attempt succeeds.

        Args:
            attempt: Trains from a checkpoint, or from the beginning.
            source: Checkpoint that the first attempt resumes from.

        Raises:
            TrainingStopped: All attempts that the guard allows failed; the weights are those of the last good
                checkpoint.
            StoreError: A checkpoint cannot be written.
        """
        if source is not None:
            self._resume(source)
        self.guard.attach(self.loop.row_ids)
        self.loop.add_callback(self)
        try:
            output = self._train(attempt, source)
        except TrainingStopped:
            self.checkpoints.remove_private()
            raise
        finally:
            self.guard.detach()
            self.loop.remove_callback(self)
            self.checkpoints.remove_state(_STATE)
        self.checkpoints.remove_private()
        return output

    def _train(self, attempt: Attempt, source: Path | None) -> TrainOutput:
        while True:
            try:
                return attempt(source)
            except (NonFiniteError, DivergenceError) as error:
                source = self._return(error)

    def _return(self, error: NonFiniteError | DivergenceError) -> Path:
        """Return the checkpoint to resume from, or load its weights and raise if no roll-back is left."""
        # The first fault after the newest checkpoint may be due to a batch; the second one is due to its weights.
        if len(self.kept) > 1 and self.kept[-1].tries and not self.kept[-1].is_proven:
            self.checkpoints.release(self.kept.pop().step)
        if not self.kept:
            raise error
        target = self.kept[-1]
        path = self.checkpoints.path(target.step)
        self.loop.accelerator.wait_for_everyone()
        self._model.zero_grad()
        stopped = self.guard.roll_back(error, target.step)
        if stopped is not None:
            load_weights(self._model, path)
            self.loop.load_trainer_state(path)
            # All processes have read the file before it is removed.
            self.loop.accelerator.wait_for_everyone()
            raise stopped from error
        target.tries += 1
        self.checkpoints.forget_after(target.step)
        self._is_back = True
        self._due = target.step + spacing(self.loop.state.max_steps)
        return path

    # ---- State in a checkpoint ----

    def _put_state(self) -> None:
        kept = [[one.step, one.is_proven, one.tries] for one in self.kept]
        steps = [one.step for one in self.kept]
        self.checkpoints.put_state(_STATE, {"kept": kept, "due": self._due, "steps": steps})

    def _resume(self, source: Path) -> None:
        """Restore the checkpoints that training could return to, or else use the one that is resumed."""
        step = step_of(source)
        saved = self.checkpoints.get_state(_STATE) or {"kept": [], "due": step}
        targets = [Target(*one) for one in saved["kept"]]
        self.kept = [one for one in targets if self.checkpoints.has(one.step)] or [Target(step)]
        self._due = saved["due"]
        self._put_state()

    # ---- Events of training ----

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        is_back = self._is_back
        self._is_back = False
        self._epoch_begins = True
        # After a roll-back this step has its checkpoint already.
        if not is_back:
            self._keep(state)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # At the first step of an epoch the order of its rows has been drawn; its checkpoint was written before that.
        if not self._epoch_begins:
            self._keep(state)
        self._epoch_begins = False

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not weight_norms(kwargs["model"]).isfinite().all():
            raise NonFiniteError(state.global_step, "weights", float("nan"), ())

    def _keep(self, state: TrainerState) -> None:
        """Mark the newest checkpoint as proven after a good step, and write the next one when it is due."""
        step = state.global_step
        if not self.guard.is_calm:
            return
        if self.kept and step > self.kept[-1].step:
            self.kept[-1].is_proven = True
            while len(self.kept) > 1:
                self.checkpoints.release(self.kept.pop(0).step)
        if step >= self._due:
            self._due = step + spacing(state.max_steps)
            if not self.kept or step > self.kept[-1].step:
                self._write(step)
        self._put_state()

    def _write(self, step: int) -> None:
        if not weight_norms(self._model).isfinite().all():
            raise NonFiniteError(step, "weights", float("nan"), ())
        self.kept.append(Target(step))
        self._put_state()
        self.checkpoints.save(private=True)
