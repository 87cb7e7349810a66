"""Manage the checkpoints of a trainer: take a snapshot, write it while training continues, resume from it exactly."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy, get_last_checkpoint

from fulltune.errors import CheckpointError, StoreError
from fulltune.store.manifest import remove_unfinished, require_space, verify
from fulltune.training.checkpoints import format, sharded
from fulltune.training.checkpoints.format import PRIVATE, Snapshot, step_of
from fulltune.training.checkpoints.random_state import random_state, set_random_state
from fulltune.training.checkpoints.state_files import Part, encode, read
from fulltune.training.guards.overfitting import OverfittingGuard
from fulltune.training.protocols import TrainingLoop

_log = logging.getLogger(__name__)


class Checkpoints(TrainerCallback):
    """Write and read the checkpoints of one trainer.

    A snapshot is copied in memory and written by a thread while training continues. If there is no memory for a copy,
    it is written at once. An error of the thread is raised at the next step.

    Args:
        loop: The training. If its model is sharded over processes, the engine writes the shards.

    Attributes:
        keep: Number of checkpoints that are kept, the best one and the newest; None keeps all.
        skips_first_evaluation: The evaluation before the first step is part of the checkpoint that was resumed.
    """

    def __init__(self, loop: TrainingLoop) -> None:
        self.loop = loop
        limit = loop.args.save_total_limit
        self.keep: int | None = limit if limit is not None and limit > 0 else None
        self.skips_first_evaluation = False
        self._are_planned = loop.args.save_strategy != SaveStrategy.NO
        self._states_of_others: dict[str, dict[str, Any]] = {}
        self._written: dict[int, Path] = {}
        self._epoch_began: Any = None
        self._from: Path | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._pending: Future[Any] | None = None
        self._sequence = 0

    def plan(self, keep: int | None) -> None:
        """Expect checkpoints that a callback asks for, whatever the arguments of the trainer are.

        Args:
            keep: Number of checkpoints that are kept, the best one and the newest; None keeps all.
        """
        self.keep = keep
        self._are_planned = True

    @property
    def folder(self) -> Path:
        """Folder of the checkpoints."""
        return self.loop.folder

    @property
    def private(self) -> Path:
        """Folder of the checkpoints that only a roll-back reads."""
        return self.folder / PRIVATE

    # ---- State of others in a checkpoint ----

    def put_state(self, name: str, state: dict[str, Any]) -> None:
        """Store a state in the next checkpoints.

        Args:
            name: Its name.
            state: Plain data. ``steps`` lists the steps whose checkpoints must be kept.
        """
        self._states_of_others[name] = state

    def get_state(self, name: str) -> dict[str, Any] | None:
        """Return a stored state, or the one in the checkpoint that training resumes from; None if there is none."""
        return self._states_of_others.get(name)

    def remove_state(self, name: str) -> None:
        """Remove a stored state, if there is one."""
        self._states_of_others.pop(name, None)

    # ---- During a training ----

    @contextmanager
    def at_work(self, source: Path | None) -> Iterator[None]:
        """Write checkpoints during a training, and wait for the thread at the end.

        Args:
            source: Checkpoint that training resumes from; None for a training from the beginning.
        """
        if self.loop.args.should_save:
            for folder in (self.folder, self.private):
                remove_unfinished(folder)
            if source is None:
                shutil.rmtree(self.private, ignore_errors=True)
        known = [*format.checkpoints_in(self.folder), *format.checkpoints_in(self.private)]
        self._sequence = max((one.sequence for one in known), default=0)
        self._written = {}
        self._states_of_others = {}
        if source is not None:
            self._written = {one.step: one.path for one in known} | {step_of(source): source}
            self.forget_after(step_of(source))
            if format.has_state(source):
                self._states_of_others = read(source, "progress")["extra"]
        self.loop.add_callback(self)
        try:
            yield
            self.wait()
        finally:
            self.loop.remove_callback(self)
            if self._pool is not None:
                self._pool.shutdown()
            self._pool = None
            self._pending = None
            self._from = None
            if not self._are_planned:
                self.remove_private()

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk.

        Raises:
            StoreError: It cannot be written.
        """
        pending = self._pending
        self._pending = None
        if pending is not None:
            pending.result()

    def source(self, asked: str | bool | None) -> Path | None:
        """Return the checkpoint to resume from.

        Args:
            asked: A folder; True for the newest intact checkpoint; None or False for a training from the beginning.

        Raises:
            StoreError: The checkpoint is corrupt.
            CheckpointError: There is no checkpoint.
        """
        if not asked:
            return None
        if asked is not True:
            format.check(Path(asked))
            if format.has_state(Path(asked)):
                sharded.check(Path(asked), self.loop.args.world_size)
            return Path(asked)
        newest = format.newest(self.folder)
        last = get_last_checkpoint(str(self.folder)) if self.folder.is_dir() else None
        of_library = None if last is None or format.is_ours(Path(last)) else Path(last)
        if of_library is not None and (newest is None or step_of(of_library) > step_of(newest)):
            format.check(of_library)
            return of_library
        if newest is None:
            raise CheckpointError(
                f"No valid checkpoint found in output directory ({self.folder})",  # wording of transformers
                fix="train from the beginning",
            )
        return newest

    # ---- Writing ----

    def save(self, *, private: bool = False, write_shards: Callable[[], None] | None = None) -> Path:
        """Write the checkpoint of this step and return its folder.

        Args:
            private: Write it for a roll-back, unless this step has a checkpoint already.
            write_shards: Writes what an engine has sharded over processes.

        Raises:
            StoreError: The previous checkpoint or this one cannot be written.
        """
        loop = self.loop
        step = loop.state.global_step
        if private and step in self._written:
            return self._written[step]
        target = (self.private if private else self.folder) / f"{format.PREFIX}{step}"
        self._written[step] = target
        if not private:
            self._name_best(target)
        own = [self._state_of_process()]
        processes = gather_object(own) if loop.args.world_size > 1 else own
        loop.sum_flops()
        if write_shards is not None:
            self._sequence += 1
            sharded.save(loop, write_shards, target, self._states(processes), sequence=self._sequence)
            if loop.args.should_save:
                self._pruning()()
        elif loop.args.should_save:
            self._sequence += 1
            self._submit(self._snapshot(step, processes, with_state=private), target)
        return target

    def path(self, step: int) -> Path:
        """Return the folder of the checkpoint of a step; wait until it is on disk."""
        self.wait()
        return self._written[step]

    def has(self, step: int) -> bool:
        """Return True if this step has an intact checkpoint."""
        try:
            verify(self._written[step], allow_others=True)
        except (KeyError, StoreError):
            return False
        return True

    def forget_after(self, step: int) -> None:
        """Forget the checkpoints after a step, to which training was rolled back."""
        self._written = {at: path for at, path in self._written.items() if at <= step}

    def release(self, step: int) -> None:
        """Remove the private checkpoint of a step, if there is one."""
        path = self._written.get(step)
        if path is None or path.parent != self.private:
            return
        self.wait()
        del self._written[step]
        if self.loop.args.should_save:
            shutil.rmtree(path, ignore_errors=True)

    def remove_private(self) -> None:
        """Remove all private checkpoints."""
        if self.loop.args.should_save:
            shutil.rmtree(self.private, ignore_errors=True)

    def _submit(self, snapshot: Snapshot, target: Path) -> None:
        self.wait()
        prune = self._pruning()
        if 2 * snapshot.size > psutil.virtual_memory().available:
            self._write(snapshot, target, prune)
            return
        self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending = self._pool.submit(self._write, snapshot.copied(), target, prune)

    def _write(self, snapshot: Snapshot, target: Path, prune: Callable[[], None]) -> None:
        try:
            snapshot.write(target)
        except StoreError as error:
            problem = error.problems[0]
            raise StoreError(
                f"the checkpoint of step {snapshot.properties['step']} cannot be written: {problem.found}",
                expected=problem.expected or f"disk space for {snapshot.size / 1e9:.3g} GB",
                fix="free some space and resume: the checkpoints before it are intact (checkpoints: null and "
                "guards.divergence: null write none)",
                where=str(target),
            ) from error
        if target.parent == self.folder:
            prune()

    def _pruning(self) -> Callable[[], None]:
        """Return a function that removes old checkpoints: not the best one at this step, nor those in use."""
        state = self.loop.state
        # The best checkpoint is an earlier one if the best step has none.
        named = (step for step, path in self._written.items() if str(path) == state.best_model_checkpoint)
        best = next(named, state.best_global_step)
        in_use = {step for other in self._states_of_others.values() for step in other["steps"]}
        return partial(format.prune, self.folder, self.keep, best, in_use)

    def _snapshot(self, step: int, processes: list[dict[str, Any]], with_state: bool) -> Snapshot:
        parts: dict[str, Part] = {}
        if with_state or not self.loop.args.save_only_model:
            states = self.loop.optimizer_state() | self._states(processes)
            parts = {name: encode(state) for name, state in states.items()}
        trainer_state = json.dumps(self.loop.trainer_state(), indent=2, sort_keys=True) + "\n"
        return format.snapshot(
            self.loop.unwrapped_model(),
            step,
            parts,
            texts={"trainer_state.json": trainer_state.encode(), **self.loop.tokenizer_files()},
            is_complete=not self.loop.trained_only,
            sequence=self._sequence,
        )

    def _states(self, processes: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the states other than the weights and those of the optimizer."""
        progress = self.loop.progress()
        return {
            "random": [{name: own[name] for name in ("now", "epoch")} for own in processes],
            "progress": {
                "processes": [{name: own[name] for name in ("loss", "padding")} for own in processes],
                **progress,
                "extra": self._states_of_others,
            },
        }

    def _state_of_process(self) -> dict[str, Any]:
        return {"now": random_state(), "epoch": self._epoch_began, **self.loop.process_progress()}

    def _name_best(self, target: Path) -> None:
        """Set the folder of the best checkpoint, for ``load_best_model_at_end``."""
        state = self.loop.state
        best = self._written.get(state.best_global_step or -1)
        if best is not None and best.parent == target.parent:
            state.best_model_checkpoint = str(best)

    # ---- Resuming ----

    def begin_from(self, source: Path) -> None:
        """Resume the next training from this checkpoint."""
        self._from = source if format.has_state(source) else None
        if format.is_ours(source) and self._from is None:
            _log.warning("%s holds weights only: the optimizer and the learning rate start from the beginning", source)

    def load_optimizer(self, source: Path) -> None:
        """Load the states of the optimizer and the scheduler, unless the checkpoint has weights only."""
        if format.has_state(source):
            self.loop.load_optimizer(read(source, "optimizer"), read(source, "scheduler"))

    def load_scaler(self, source: Path) -> None:
        """Load the state of the loss scaler, unless there is no scaler or the checkpoint has weights only."""
        if self.loop.has_scaler and format.has_state(source):
            self.loop.load_scaler(read(source, "scaler"))

    def load_random(self, source: Path, name: str = "now") -> None:
        """Load the states of the random number generators, unless the checkpoint has weights only.

        Args:
            source: The checkpoint.
            name: ``now`` for the states at its step, ``epoch`` for those at the beginning of its epoch.

        Raises:
            StoreError: The checkpoint has no states for this process.
        """
        if not format.has_state(source):
            return
        processes = read(source, "random")
        own = self.loop.args.process_index
        if own >= len(processes):
            raise StoreError(
                f"the checkpoint is one of {len(processes)} processes",
                expected=f"{self.loop.args.world_size}",
                fix="resume with as many processes",
                where=str(source),
            )
        set_random_state(processes[own][name])

    # ---- Events of training ----

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._are_planned and args.should_save:
            weights = list(kwargs["model"].parameters())
            trainable = sum(value.nbytes for value in weights if value.requires_grad)
            one = sum(value.nbytes for value in weights) + 2 * trainable  # AdamW has two moments per weight
            count = 1 if self.keep is None else self.keep + 1  # a new one is written before an old one is removed
            require_space(self.folder, count * one, f"{count} checkpoints (checkpoints.keep and the next one)")
        self.skips_first_evaluation = False
        if self._from is not None:
            progress = read(self._from, "progress")
            processes = progress["processes"]
            # A sharded checkpoint may be resumed by another number of processes.
            self.loop.load_progress(processes[args.process_index % len(processes)], progress)
            if state.global_step:
                guards = [one for one in self.loop.callbacks if isinstance(one, OverfittingGuard)]
                self.skips_first_evaluation = all(guard.history for guard in guards)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        source = self._from
        self._from = None
        if source is not None:
            # Within an epoch, the library draws the order of its rows again and skips the rows that were read.
            self.load_random(source, "now" if float(state.epoch or 0).is_integer() else "epoch")
        self._epoch_began = random_state()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._pending is not None and self._pending.done():
            self.wait()
