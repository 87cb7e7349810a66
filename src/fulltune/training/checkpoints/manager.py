"""What a trainer does with checkpoints: take a snapshot, write it beside training, go on from it exactly."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import SaveStrategy, get_last_checkpoint

from fulltune.errors import CheckpointError, StoreError
from fulltune.records.run import GuardEvent
from fulltune.store.manifest import remove_unfinished, require_space, verify
from fulltune.training.checkpoints import format, sharded
from fulltune.training.checkpoints.format import PRIVATE, Snapshot, step_of
from fulltune.training.checkpoints.random_state import random_state, set_random_state
from fulltune.training.checkpoints.state_files import Part, encode, read
from fulltune.training.guards.overfitting import OverfittingGuard

if TYPE_CHECKING:
    from fulltune.training.trainer import Trainer

_log = logging.getLogger(__name__)


class Checkpoints(TrainerCallback):
    """The checkpoints of one trainer.

    A snapshot is copied in memory and written by a thread while training goes on; where there is no room for a copy it
    is written at once. What goes wrong in the thread is raised at the next step.

    Args:
        trainer: Whose training it is. Of models sharded over processes the engine writes the shards.

    Attributes:
        keep: The newest so many are kept, and the best; None keeps all.
        are_planned: This training will write some.
        extra: State of others that a checkpoint carries, by name; ``steps`` in it are those that it may go back to.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.keep: int | None = trainer.args.save_total_limit
        self.are_planned = trainer.args.save_strategy != SaveStrategy.NO
        self.extra: dict[str, Any] = {}
        self._written: dict[int, Path] = {}
        self._epoch_began: Any = None
        self._from: Path | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._pending: Future[Any] | None = None
        self._sequence = 0

    @property
    def folder(self) -> Path:
        return Path(self.trainer._get_output_dir(self.trainer._fulltune.trial))

    @property
    def private(self) -> Path:
        return self.folder / PRIVATE

    # ---- Around a training ----

    @contextmanager
    def at_work(self, source: Path | None) -> Iterator[None]:
        """Ready for a training that begins anew, or goes on from ``source``; waits for the thread at the end."""
        if self.trainer.args.should_save:
            for folder in (self.folder, self.private):
                remove_unfinished(folder)
            if source is None:
                shutil.rmtree(self.private, ignore_errors=True)
        known = [*format.found_in(self.folder), *format.found_in(self.private)]
        self._sequence = max((one.sequence for one in known), default=0)
        self._written, self.extra = {}, {}
        if source is not None:
            self._written = {one.step: one.path for one in known} | {step_of(source): source}
            self.forget_after(step_of(source))
            self.extra = read(source, "progress")["extra"] if format.has_state(source) else {}
        self.trainer.add_callback(self)
        try:
            yield
            self.wait()
        finally:
            self.trainer.remove_callback(self)
            if self._pool is not None:
                self._pool.shutdown()
            self._pool = self._pending = self._from = None
            if not self.are_planned:
                self.remove_private()

    def wait(self) -> None:
        """Until the last checkpoint is on the disk.

        Raises:
            StoreError: It could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def source(self, asked: str | bool | None) -> Path | None:
        """The checkpoint to go on from: the one that is named, the newest whole one for True, none for None.

        Raises:
            StoreError: It is damaged.
        CheckpointError: There is none.
        """
        if not asked:
            return None
        if asked is not True:
            format.check(Path(asked))
            if format.has_state(Path(asked)):
                sharded.check(Path(asked), self.trainer.args.world_size)
            return Path(asked)
        found = format.newest(self.folder)
        last = get_last_checkpoint(str(self.folder)) if self.folder.is_dir() else None
        theirs = None if last is None or format.is_ours(Path(last)) else Path(last)
        if theirs is not None and (found is None or step_of(theirs) > step_of(found)):
            format.check(theirs)
            return theirs
        if found is None:
            raise CheckpointError(
                f"No valid checkpoint found in output directory ({self.folder})",  # as transformers words it
                fix="train from the beginning",
            )
        return found

    # ---- Writing ----

    def save(self, *, private: bool = False, write_shards: Callable[[], None] | None = None) -> Path:
        """Write this step's checkpoint (a private one only where there is none of this step); returns where.

        Args:
            private: To go back to.
            write_shards: Writes what an engine has spread over processes.

        Raises:
            StoreError: The one before could not be written, or this one cannot.
        """
        trainer, step = self.trainer, self.trainer.state.global_step
        if private and step in self._written:
            return self._written[step]
        target = (self.private if private else self.folder) / f"{format.PREFIX}{step}"
        self._written[step] = target
        if not private:
            self._name_best(target)
        processes = gather_object([self._of_process()]) if trainer.args.world_size > 1 else [self._of_process()]
        trainer.store_flos()  # a sum over processes
        if write_shards is not None:
            self._sequence += 1
            sharded.save(trainer, write_shards, target, self._beside(processes), sequence=self._sequence)
            if trainer.args.should_save:
                format.prune(self.folder, self.keep, self._held())
        elif trainer.args.should_save:
            self._sequence += 1
            self._submit(self._snapshot(step, processes, whole=private), target, self._held())
        return target

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step lies, once it is on the disk."""
        self.wait()
        return self._written[step]

    def has(self, step: int) -> bool:
        """Whether there is a whole one of this step."""
        try:
            verify(self._written[step], allow_others=True)
        except (KeyError, StoreError):
            return False
        return True

    def forget_after(self, step: int) -> None:
        """Training went back: what was written after that step is no longer part of it."""
        self._written = {at: path for at, path in self._written.items() if at <= step}

    def release(self, step: int) -> None:
        """Remove a private checkpoint that nobody goes back to any more."""
        path = self._written.get(step)
        if path is None or path.parent != self.private:
            return
        self.wait()
        del self._written[step]
        if self.trainer.args.should_save:
            shutil.rmtree(path, ignore_errors=True)

    def remove_private(self) -> None:
        if self.trainer.args.should_save:
            shutil.rmtree(self.private, ignore_errors=True)

    def _submit(self, snapshot: Snapshot, target: Path, held: set[int]) -> None:
        self.wait()
        if 2 * snapshot.size > psutil.virtual_memory().available:
            self._write(snapshot, target, held)
            return
        self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending = self._pool.submit(self._write, snapshot.copied(), target, held)

    def _write(self, snapshot: Snapshot, target: Path, held: set[int]) -> None:
        try:
            snapshot.write(target)
        except StoreError as error:
            problem = error.problems[0]
            raise StoreError(
                f"the checkpoint of step {snapshot.facts['step']} cannot be written: {problem.found}",
                expected=problem.expected or f"room for {snapshot.size / 1e9:.3g} GB",
                fix="free some space and resume: the checkpoints before it are whole (checkpoints: null and "
                "guards.divergence: null write none)",
                where=str(target),
            ) from error
        if target.parent == self.folder:
            format.prune(self.folder, self.keep, held)

    def _held(self) -> set[int]:
        """Steps whose checkpoints are kept whatever the limit: the best, and those that somebody may go back to."""
        best = self.trainer.state.best_global_step
        return {step for own in self.extra.values() for step in own["steps"]} | ({best} if best else set())

    def _snapshot(self, step: int, processes: list[dict[str, Any]], whole: bool) -> Snapshot:
        trainer = self.trainer
        parts: dict[str, Part] = {}
        if whole or not trainer.args.save_only_model:
            parts = {name: encode(state) for name, state in self._states(processes).items()}
        model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
        texts = {"trainer_state.json": self._trainer_state(), **self._tokenizer_files()}
        return format.snapshot(model, step, parts, texts, not trainer._fulltune.trained_only, sequence=self._sequence)

    def _states(self, processes: list[dict[str, Any]]) -> dict[str, Any]:
        trainer: Any = self.trainer
        scaler = trainer.accelerator.scaler
        learning = {"optimizer": trainer.optimizer.state_dict(), "scheduler": trainer.lr_scheduler.state_dict()}
        return learning | self._beside(processes) | ({} if scaler is None else {"scaler": scaler.state_dict()})

    def _beside(self, processes: list[dict[str, Any]]) -> dict[str, Any]:
        """The state that is neither weights nor the optimizer's."""
        trainer, micro = self.trainer, self.trainer._fulltune.micro_batches
        return {
            "random": [{name: own[name] for name in ("now", "epoch")} for own in processes],
            "progress": {
                "processes": [{name: own[name] for name in ("loss", "padding")} for own in processes],
                "total_loss": trainer._total_loss_scalar,
                "last_logged": trainer._globalstep_last_logged,
                "micro_batches": {"limit": micro.limit, "events": [one.model_dump() for one in micro.events]},
                "extra": self.extra,
            },
        }

    def _of_process(self) -> dict[str, Any]:
        trainer: Any = self.trainer
        known = {"loss": float(trainer._tr_loss), "padding": asdict(trainer._fulltune.padding)}
        return {"now": random_state(), "epoch": self._epoch_began} | known

    def _trainer_state(self) -> bytes:
        """As transformers writes it, with the states of callbacks as they are now."""
        handler = self.trainer.callback_handler
        states: dict[str, Any] = {}
        for one in [*handler.callbacks, self.trainer.control]:
            if isinstance(one, ExportableState):
                states.setdefault(type(one).__name__, []).append(one.state())
        own: Any = {name: found[0] if len(found) == 1 else found for name, found in states.items()}
        self.trainer.state.stateful_callbacks = own
        return (json.dumps(asdict(self.trainer.state), indent=2, sort_keys=True) + "\n").encode()

    def _tokenizer_files(self) -> dict[str, bytes]:
        tokenizer: Any = self.trainer.processing_class or getattr(self.trainer.data_collator, "tokenizer", None)
        if not hasattr(tokenizer, "save_pretrained"):
            return {}
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}

    def _name_best(self, target: Path) -> None:
        """Where the best checkpoint lies, for ``load_best_model_at_end``."""
        state = self.trainer.state
        best = self._written.get(state.best_global_step or -1)
        if best is not None and best.parent == target.parent:
            state.best_model_checkpoint = str(best)

    # ---- Going on ----

    def begin_from(self, source: Path) -> None:
        """The next training goes on from this checkpoint."""
        self._from = source if format.has_state(source) else None
        if format.is_ours(source) and self._from is None:
            _log.warning("%s holds weights only: the optimizer and the learning rate begin anew", source)

    def load_optimizer(self, source: Path) -> None:
        if not format.has_state(source):
            return
        trainer: Any = self.trainer
        trainer.optimizer.load_state_dict(read(source, "optimizer"))
        trainer.lr_scheduler.load_state_dict(read(source, "scheduler"))

    def load_scaler(self, source: Path) -> None:
        scaler: Any = self.trainer.accelerator.scaler
        if scaler is not None and format.has_state(source):
            scaler.load_state_dict(read(source, "scaler"))

    def load_random(self, source: Path, name: str = "now") -> None:
        """The random numbers as they stood then, or (``epoch``) as they stood when that epoch began."""
        if not format.has_state(source):
            return
        processes, own = read(source, "random"), self.trainer.args.process_index
        if own >= len(processes):
            raise StoreError(
                f"the checkpoint is one of {len(processes)} processes",
                expected=f"{self.trainer.args.world_size}",
                fix="resume with as many processes",
                where=str(source),
            )
        set_random_state(processes[own][name])

    # ---- Events of training ----

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.are_planned and args.should_save:
            weights = list(kwargs["model"].parameters())
            learning = sum(value.nbytes for value in weights if value.requires_grad)
            one = sum(value.nbytes for value in weights) + 2 * learning  # AdamW keeps two numbers a weight
            count = 1 if self.keep is None else self.keep + 1  # one is written before another goes
            require_space(self.folder, count * one, f"{count} checkpoints (checkpoints.keep and the next one)")
        self.trainer._fulltune.skips_first_evaluation = False
        if self._from is not None:
            self._restore(read(self._from, "progress"))
            if state.global_step:
                guards = [one for one in self.trainer.callback_handler.callbacks if isinstance(one, OverfittingGuard)]
                self.trainer._fulltune.skips_first_evaluation = all(guard.history for guard in guards)

    def _restore(self, progress: dict[str, Any]) -> None:
        """What the loop of transformers forgets: the loss since it was last logged; and what is counted beside it."""
        trainer: Any = self.trainer
        own_state = self.trainer._fulltune
        processes = progress["processes"]
        # Sharded checkpoints may be read by another number of processes.
        own = processes[trainer.args.process_index % len(processes)]
        trainer._tr_loss.fill_(own["loss"])
        own_state.padding = replace(own_state.padding, **own["padding"])
        trainer._total_loss_scalar = progress["total_loss"]
        trainer._globalstep_last_logged = progress["last_logged"]
        saved, micro = progress["micro_batches"], own_state.micro_batches
        if micro.limit is None:
            micro.limit = saved["limit"]
            micro.events = [GuardEvent.model_validate(event) for event in saved["events"]]

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        source, self._from = self._from, None
        if source is not None:
            # In the middle of an epoch the order of its rows is drawn anew, and the rows that were seen are skipped.
            self.load_random(source, "now" if float(state.epoch or 0).is_integer() else "epoch")
        self._epoch_began = random_state()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._pending is not None and self._pending.done():
            self.wait()
