"""Guards for a training loop of transformers, or of a package that builds on it.

Add them to any trainer:

    from fulltune.callbacks import Guards

    trainer = transformers.Trainer(…, callbacks=[Guards()])  # or SFTTrainer, SentenceTransformerTrainer, …
"""

from __future__ import annotations

import logging
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from fulltune.errors import DivergenceError, NonFiniteError, StoreError
from fulltune.store.manifest import MANIFEST, describe, verify
from fulltune.training.checkpoints import format
from fulltune.training.checkpoints.state_files import encode, read
from fulltune.training.guards.base import GuardName
from fulltune.training.guards.divergence import DivergenceGuard, scale_learning_rate, weight_norms

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Good:
    """A good state that training can return to.

    Attributes:
        step: Optimizer steps before it.
        folder: Trained weights and optimizer state.
        detector: State of the detector of spikes.
    """

    step: int
    folder: Path
    detector: dict[str, Any]


class Guards(DivergenceGuard):
    """Guard a training by any :class:`transformers.Trainer`: NaN, divergence, damaged checkpoints.

    **A step that is not finite, or divergence** (:class:`~fulltune.training.guards.divergence.DivergenceGuard` says
    when): the step is not taken. Weights and optimizer return to the last good state, the learning rate is reduced for
    the rest of the schedule, and training continues with the next batch, as Chowdhery et al. 2022 (PaLM, 5.1) did by
    hand. The rows since that state are not repeated: a callback cannot rewind the data. After ``retries`` roll-backs
    training stops with the last good weights. On several processes it stops the first time, with the weights before
    the step.

    **Checkpoints** get a manifest with the SHA-256 of each file. A training that resumes from a damaged one stops
    before its first step; a checkpoint without a manifest is not checked.

    Good states are written to ``.rollback`` in the output folder every eighth of the training (at least 10 steps
    apart), one at a time, and removed when training ends. They hold the trainable parameters and the optimizer's state.

    In :class:`fulltune.Trainer`, which can rewind the data and has verified checkpoints, it is a ``DivergenceGuard``.

    Args:
        window, threshold, patience, retries, rate_factor: As in ``DivergenceGuard``.

    Attributes:
        events: Decisions, in order; ``message`` is a sentence with numbers.
        roll_backs: Number of roll-backs.
        rate: Current factor on the learning rate.

    Raises:
        StoreError: During training: the checkpoint that it resumes from is damaged (all damaged files are listed), or
            a file cannot be written.
    """

    name: ClassVar[GuardName] = "divergence"

    def __init__(
        self, window: int = 50, threshold: float = 10.0, patience: int = 5, retries: int = 2, rate_factor: float = 0.3
    ) -> None:
        super().__init__(window, threshold, patience, retries, rate_factor)
        self._good: _Good | None = None
        self._due: float = 0
        self._optimizer: Any = None
        self._scheduler: Any = None

    @property
    def _is_alone(self) -> bool:
        """True unless a trainer rolls back by itself."""
        return self._row_ids is None

    # ---- Events of training ----

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if not self._is_alone:
            return
        self._optimizer, self._scheduler = kwargs["optimizer"], kwargs["lr_scheduler"]
        self._good = None
        self._due = state.global_step
        if state.global_step:
            _check_resumed(args, state)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._is_alone and args.world_size == 1 and state.global_step >= self._due and self.is_calm:
            self._due = state.global_step + format.spacing(state.max_steps)
            self._keep(Path(str(args.output_dir)), state.global_step, kwargs["model"])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if self._is_alone and not weight_norms(kwargs["model"]).isfinite().all():
            error = NonFiniteError(state.global_step, "weights", math.nan, ())
            return self._stop(error, state, control, kwargs["model"])
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not self._is_alone:
            return
        if args.world_size > 1:
            torch.distributed.barrier()  # each process writes its random numbers
        folder = _checkpoint(args, state)
        if args.should_save and folder.is_dir():
            describe(folder, {"writer": format.LIBRARY, "step": state.global_step})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        super().on_train_end(args, state, control, **kwargs)
        if self._good is not None:
            shutil.rmtree(self._good.folder.parent, ignore_errors=True)
        self._good = self._optimizer = self._scheduler = None

    # ---- Rolling back ----

    def _keep(self, folder: Path, step: int, model: nn.Module) -> None:
        """Write the current state in place of the one that was kept before."""
        before = self._good
        target = folder / format.PRIVATE / f"{format.PREFIX}{step}"
        try:
            states = {"optimizer": encode(self._optimizer.state_dict())}
        except StoreError as error:
            _log.warning("divergence would stop this training, not roll it back: %s", error.problems[0].found)
            self._due = math.inf
            return
        format.snapshot(model, step, states, texts={}, is_complete=False).write(target)
        self._good = _Good(step, target, self.detector.state())
        if before is not None and before.folder != target:
            shutil.rmtree(before.folder, ignore_errors=True)

    def _stop(
        self,
        error: NonFiniteError | DivergenceError,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
    ) -> TrainerControl:
        good = self._good
        if not self._is_alone or good is None:
            return super()._stop(error, state, control, model)
        model.zero_grad(set_to_none=True)  # the optimizer step that follows skips parameters without a gradient
        verify(good.folder)
        format.load_weights(model, good.folder)
        if self.roll_back(error, good.step, restarts=False) is not None:
            control.should_training_stop = True
        else:
            self._restore_optimizer(good)
            scale_learning_rate(self._optimizer, self._scheduler, self.rate_factor)
        _log.warning("%s", self.events[-1].message)
        return control

    def _restore_optimizer(self, good: _Good) -> None:
        """Restore the moments, and what the detector saw; the schedule stays where it is."""
        saved = read(good.folder, "optimizer")
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
        self.detector.restore(good.detector)


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"{format.PREFIX}{state.global_step}"


def _check_resumed(args: TrainingArguments, state: TrainerState) -> None:
    """Check the files of the checkpoint that training resumes from.

    Raises:
        StoreError: They differ from their manifest.
    """
    named = args.resume_from_checkpoint
    folder = Path(named) if isinstance(named, str) and Path(named).is_dir() else _checkpoint(args, state)
    if not (folder / MANIFEST).is_file():
        _log.warning("%s has no manifest: its files are not verified", folder)
        return
    try:
        verify(folder, allow_others=True)
    except StoreError as error:
        fix = "resume from another checkpoint"
        raise StoreError([replace(problem, fix=fix) for problem in error.problems]) from error
