"""Training that can go back: private checkpoints of the last good step, and the loop that returns to them.

The checkpoints are those of transformers, read by its own ``resume_from_checkpoint``; they lie in ``.rollback`` in the
output folder, never two more than needed, and go when training ends.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import TrainOutput, get_last_checkpoint

from fulltune.errors import DivergenceError, ModelError, NonFiniteError, StoreError
from fulltune.guards.divergence import DivergenceGuard, weight_norms
from fulltune.model import quiet
from fulltune.training.random_state import random_state, set_random_state

if TYPE_CHECKING:
    from fulltune.training.trainer import Trainer

#: Parts that a training is divided in by checkpoints, and steps that lie between two of them at least. Both are plain
#: counts, so that a training that went back gives the same weights when it is repeated.
PARTS, SPACING = 8, 10

#: How a checkpoint of ours is written, whatever the user asked of theirs.
_PRIVATE = {"save_strategy": "no", "save_only_model": False, "save_total_limit": None, "push_to_hub": False}

Attempt = Callable[[str | bool | None], TrainOutput]


@dataclass
class Checkpoint:
    """One to go back to.

    Attributes:
        path: Its folder.
        step: Optimizer steps before it.
        draws: State of the random numbers when its epoch began: the order of the rows was drawn from it.
        norms: Norms of the weights in it; None for a checkpoint of the user's.
        is_proven: A step after it was good, so its weights are too.
        tries: How often training went back to it.
    """

    path: Path
    step: int
    draws: Any = None
    norms: Tensor | None = None
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
        self.folder = Path(str(trainer.args.output_dir)) / ".rollback"
        self.kept: list[Checkpoint] = []
        self._back: Checkpoint | None = None
        self._draws: Any = None
        self._epoch_begins, self._due = False, 0
        self._muted = ExitStack()

    @property
    def _model(self) -> nn.Module:
        return cast("nn.Module", self.trainer.model)

    def train(self, attempt: Attempt, resume: str | bool | None) -> TrainOutput:
        """Call ``attempt`` with a checkpoint to resume from until it ends well.

        Raises:
            TrainingStopped: It did not, as often as the guard allows; the weights are those of the last good
                checkpoint.
            StoreError: A checkpoint cannot be written.
        """
        if resume is True:
            resume = get_last_checkpoint(self.trainer.args.output_dir) or True
        if isinstance(resume, str):
            step = TrainerState.load_from_json(str(Path(resume) / "trainer_state.json")).global_step
            self.kept = [Checkpoint(Path(resume), step)]
            self._due = step + 1
        self.trainer.add_callback(self)
        try:
            while True:
                try:
                    return attempt(resume)
                except (NonFiniteError, DivergenceError) as error:
                    resume = str(self._return(error).path)
        finally:
            self._muted.close()
            self.trainer.remove_callback(self)
            self._remove(self.folder)

    def _return(self, error: NonFiniteError | DivergenceError) -> Checkpoint:
        """Where to go on; the weights are put back at once when training may not go on."""
        # The newest is not to blame for the first fault after it (a batch may be), but for the second.
        if len(self.kept) > 1 and self.kept[-1].tries and not self.kept[-1].is_proven:
            self._remove(self.kept.pop().path)
        if not self.kept:
            raise error
        target, trainer = self.kept[-1], self.trainer
        trainer.accelerator.wait_for_everyone()
        self._model.zero_grad()
        if self.guard.roll_backs >= self.guard.retries:
            with quiet():
                trainer._load_from_checkpoint(str(target.path))
            trainer.state = TrainerState.load_from_json(str(target.path / "trainer_state.json"))
            self._check(target)
            trainer.accelerator.wait_for_everyone()  # all have read the file before it goes
            raise self.guard.stop_at(error, target.step, error.step) from error
        target.tries += 1
        self.guard.go_back(error, target.step, error.step)
        self._muted.enter_context(quiet())  # the library calls weights that are tied missing
        self._back, self._due = target, target.step + self._spacing(trainer.state)
        return target

    # ---- Events of training ----

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        back, self._back = self._back, None
        self._muted.close()
        if back is not None:
            self._check(back)
            if back.draws is not None:
                set_random_state(back.draws)
        self._draws, self._epoch_begins = random_state(), True
        for checkpoint in self.kept:
            if checkpoint.draws is None:
                checkpoint.draws = self._draws
        if back is None:
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
                self._remove(self.kept.pop(0).path)
        if step < self._due or (self.kept and step <= self.kept[-1].step):
            return
        norms = weight_norms(self._model)
        if not norms.isfinite().all():
            raise NonFiniteError(step, "weights", float("nan"), ())
        self.kept.append(Checkpoint(self._write(step), step, self._draws, norms))
        self._due = step + self._spacing(state)

    def _spacing(self, state: TrainerState) -> int:
        return max(SPACING, -(-state.max_steps // PARTS))

    def _write(self, step: int) -> Path:
        try:
            with _options(self.trainer.args, output_dir=str(self.folder), **_PRIVATE), quiet():
                self.trainer._save_checkpoint(self._model, None)
        except OSError as error:
            raise StoreError(
                f"a checkpoint to go back to cannot be written ({error.strerror or error})",
                expected="room for two copies of the model and of its optimizer's state",
                fix="free some space, or set guards.divergence to null",
                where=str(self.folder),
            ) from error
        return self.folder / f"checkpoint-{step}"

    def _check(self, checkpoint: Checkpoint) -> None:
        """The weights are those that were written, whatever the library made of the file."""
        if checkpoint.norms is not None and not torch.equal(checkpoint.norms, weight_norms(self._model)):
            raise ModelError(
                "the weights of a checkpoint did not come back as they were written",
                expected="a model whose save_pretrained folder loads into it unchanged",
                fix="set guards.divergence to null",
                where=str(checkpoint.path),
            )

    def _remove(self, path: Path) -> None:
        """Delete it if it is ours."""
        if self.trainer.is_world_process_zero() and (path == self.folder or self.folder in path.parents):
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _options(args: TrainingArguments, **changed: Any) -> Iterator[None]:
    """Arguments that hold for a moment."""
    before = {name: getattr(args, name) for name in changed}
    for name, value in changed.items():
        setattr(args, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(args, name, value)
