"""Training that can go back: the loop that returns to the checkpoint of the last good step.

It goes back to checkpoints that are written anyway; where there is none of a step, a private one is written to
``.rollback`` in the output folder. Never two more than needed lie there, and they go when training ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import TrainOutput

from fulltune.errors import DivergenceError, NonFiniteError, TrainingStopped
from fulltune.training.checkpoints.format import load_weights, spacing, step_of
from fulltune.training.guards.divergence import DivergenceGuard, weight_norms

if TYPE_CHECKING:
    from fulltune.training.trainer import Trainer

#: Name that the state of this callback has in a checkpoint.
_STATE = "roll_back"

Attempt = Callable[[Path | None], TrainOutput]


@dataclass
class Target:
    """A checkpoint to go back to.

    Attributes:
        step: Optimizer steps before it.
        is_proven: A step after it was good, so its weights are too.
        tries: How often training went back to it.
    """

    step: int
    is_proven: bool = False
    tries: int = 0


class RollBack(TrainerCallback):
    """Writes checkpoints while training is good, and returns to the last one when it is not.

    Args:
        trainer: Whose training it is.
        guard: Decides what is good, and how often to go back.
    """

    def __init__(self, trainer: Trainer, guard: DivergenceGuard) -> None:
        self.trainer, self.guard = trainer, guard
        self.checkpoints = trainer._fulltune.checkpoints
        self.kept: list[Target] = []
        self._due = 0
        self._epoch_begins = self._is_back = False

    @property
    def _model(self) -> nn.Module:
        return cast("nn.Module", self.trainer.model)

    def train(self, attempt: Attempt, source: Path | None) -> TrainOutput:
        """Call ``attempt`` with a checkpoint to go on from until it ends well.

        Raises:
            TrainingStopped: It did not, as often as the guard allows; the weights are those of the last good
                checkpoint.
            StoreError: A checkpoint cannot be written.
        """
        if source is not None:
            self._resume(source)
        self.guard.rows = self.trainer._row_ids
        self.trainer.add_callback(self)
        try:
            output = self._train(attempt, source)
        except TrainingStopped:
            self.checkpoints.remove_private()
            raise
        finally:
            self.guard.rows = None
            self.trainer.remove_callback(self)
            self.checkpoints.extra.pop(_STATE, None)
        self.checkpoints.remove_private()
        return output

    def _train(self, attempt: Attempt, source: Path | None) -> TrainOutput:
        while True:
            try:
                return attempt(source)
            except (NonFiniteError, DivergenceError) as error:
                source = self._return(error)

    def _return(self, error: NonFiniteError | DivergenceError) -> Path:
        """Where to go on; the weights are put back at once when training may not go on."""
        # The newest is not to blame for the first fault after it (a batch may be), but for the second.
        if len(self.kept) > 1 and self.kept[-1].tries and not self.kept[-1].is_proven:
            self.checkpoints.release(self.kept.pop().step)
        if not self.kept:
            raise error
        target, trainer = self.kept[-1], self.trainer
        path = self.checkpoints.path(target.step)
        trainer.accelerator.wait_for_everyone()
        self._model.zero_grad()
        if self.guard.roll_backs >= self.guard.retries:
            load_weights(self._model, path)
            trainer.state = TrainerState.load_from_json(str(path / "trainer_state.json"))
            trainer.accelerator.wait_for_everyone()  # all have read the file before it goes
            raise self.guard.stop_at(error, target.step, error.step) from error
        target.tries += 1
        self.guard.go_back(error, target.step, error.step)
        self.checkpoints.forget_after(target.step)
        self._is_back, self._due = True, target.step + spacing(trainer.state.max_steps)
        return path

    # ---- State, in a checkpoint ----

    def _tell_state(self) -> None:
        kept = [[one.step, one.is_proven, one.tries] for one in self.kept]
        self.checkpoints.extra[_STATE] = {"kept": kept, "due": self._due, "steps": [one.step for one in self.kept]}

    def _resume(self, source: Path) -> None:
        """Go on with the checkpoints that were there to go back to, or else with the one that is resumed."""
        step = step_of(source)
        saved = self.checkpoints.extra.get(_STATE, {"kept": [], "due": step})
        self.kept = [Target(*one) for one in saved["kept"] if self.checkpoints.has(one[0])] or [Target(step)]
        self._due = saved["due"]
        self._tell_state()

    # ---- Events of training ----

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        is_back, self._is_back, self._epoch_begins = self._is_back, False, True
        if not is_back:
            self._keep(state)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # At an epoch's beginning the order of its rows has been drawn by now; that checkpoint was written before.
        if not self._epoch_begins:
            self._keep(state)
        self._epoch_begins = False

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not weight_norms(kwargs["model"]).isfinite().all():
            raise NonFiniteError(state.global_step, "weights", float("nan"), ())

    def _keep(self, state: TrainerState) -> None:
        """Believe in the newest checkpoint after a good step, and write the next one when it is time."""
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
        self._tell_state()

    def _write(self, step: int) -> None:
        if not weight_norms(self._model).isfinite().all():
            raise NonFiniteError(step, "weights", float("nan"), ())
        self.kept.append(Target(step))
        self._tell_state()
        self.checkpoints.save(private=True)
