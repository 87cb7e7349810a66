"""Adapt a trainer to the protocol of its collaborators."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState

from fulltune.training.step import Step


class LoopAdapter:
    """Implement :class:`~fulltune.training.protocols.TrainingLoop` for a trainer of transformers.

    The loop of the library keeps some of its progress in private fields; this class is the only reader of them.

    Args:
        trainer: A :class:`fulltune.Trainer`.
        step: Its optimizer step in progress.
        trained_only: Checkpoints contain trainable parameters only.
    """

    def __init__(self, trainer: Any, step: Step, *, trained_only: bool) -> None:
        self._trainer = trainer
        self._step = step
        self._trained_only = trained_only
        # Trial of a search for hyperparameters; the folder of checkpoints depends on it.
        self._trial: Any = None
        # Steps before the checkpoint that training resumes from, whose losses are part of the restored sum.
        self._steps_before = 0

    def begin(self, trial: Any) -> None:
        """Start a training, which may be the trial of a search for hyperparameters."""
        self._trial = trial

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Run the loop of the library, from the beginning unless :meth:`load_progress` is called."""
        self._steps_before = 0
        trainer = self._trainer
        if trainer.args.world_size > 1 and trainer.model_wrapped is trainer.model:
            # An evaluation before training marks the model as prepared. Training would then not wrap it, and every
            # process would use its own gradients.
            trainer.model._is_accelerate_prepared = False
        try:
            yield
        finally:
            hook = getattr(trainer, "neftune_hook_handle", None)
            if trainer.is_in_train and hook is not None:
                # After an error: the library removes its hook at a normal end only, and would add a second one.
                hook.remove()
            trainer.is_in_train = False

    @property
    def args(self) -> Any:
        return self._trainer.args

    @property
    def accelerator(self) -> Any:
        return self._trainer.accelerator

    @property
    def model(self) -> Any:
        return self._trainer.model

    @property
    def model_wrapped(self) -> Any:
        return self._trainer.model_wrapped

    @property
    def state(self) -> TrainerState:
        state: TrainerState = self._trainer.state
        return state

    @property
    def folder(self) -> Path:
        return Path(self._trainer._get_output_dir(self._trial))

    @property
    def trained_only(self) -> bool:
        return self._trained_only

    @property
    def callbacks(self) -> Sequence[TrainerCallback]:
        callbacks: Sequence[TrainerCallback] = self._trainer.callback_handler.callbacks
        return callbacks

    def add_callback(self, callback: TrainerCallback) -> None:
        self._trainer.add_callback(callback)

    def remove_callback(self, callback: TrainerCallback) -> None:
        self._trainer.remove_callback(callback)

    def unwrapped_model(self) -> nn.Module:
        model: nn.Module = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return model

    def row_ids(self) -> Sequence[str]:
        return self._step.row_ids()

    def sum_flops(self) -> None:
        self._trainer.store_flos()

    def trainer_state(self) -> dict[str, Any]:
        states: dict[str, Any] = {}
        for one in [*self.callbacks, self._trainer.control]:
            if isinstance(one, ExportableState):
                states.setdefault(type(one).__name__, []).append(one.state())
        # As the library writes it: a list only if several callbacks have the same class.
        stateful: Any = {name: items[0] if len(items) == 1 else items for name, items in states.items()}
        self.state.stateful_callbacks = stateful
        return asdict(self.state)

    def load_trainer_state(self, checkpoint: Path) -> None:
        self._trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))

    def tokenizer_files(self) -> dict[str, bytes]:
        tokenizer: Any = self._trainer.processing_class or getattr(self._trainer.data_collator, "tokenizer", None)
        if not hasattr(tokenizer, "save_pretrained"):
            return {}
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}

    def optimizer_state(self) -> dict[str, Any]:
        states = {
            "optimizer": self._trainer.optimizer.state_dict(),
            "scheduler": self._trainer.lr_scheduler.state_dict(),
        }
        if self.has_scaler:
            states["scaler"] = self.accelerator.scaler.state_dict()
        return states

    def load_optimizer(self, optimizer: Any, scheduler: Any) -> None:
        self._trainer.optimizer.load_state_dict(optimizer)
        self._trainer.lr_scheduler.load_state_dict(scheduler)

    @property
    def has_scaler(self) -> bool:
        return self.accelerator.scaler is not None

    def load_scaler(self, scaler: Any) -> None:
        self.accelerator.scaler.load_state_dict(scaler)

    def process_progress(self) -> dict[str, Any]:
        return {"loss": float(self._trainer._tr_loss), "padding": asdict(self._step.padding)}

    def progress(self) -> dict[str, Any]:
        return {
            "total_loss": self._trainer._total_loss_scalar,
            "last_logged": self._trainer._globalstep_last_logged,
            "micro_batches": self._step.micro_batches.state(),
        }

    def load_progress(self, process: dict[str, Any], progress: dict[str, Any]) -> None:
        self._trainer._tr_loss.fill_(process["loss"])
        self._step.restore_padding(process["padding"])
        self._trainer._total_loss_scalar = progress["total_loss"]
        self._steps_before = self._trainer.state.global_step
        self._trainer._globalstep_last_logged = progress["last_logged"]
        self._step.micro_batches.restore(progress["micro_batches"])

    def scale_loss_of_resumed_training(self) -> None:
        """Make ``train_loss`` the mean over all steps: transformers divides it by the steps since resuming."""
        before = self._steps_before
        if not before:
            return
        trainer = self._trainer
        steps = max(self.state.global_step - trainer._initial_global_step, 0.001)  # the divisor of transformers
        mean = (trainer._total_loss_scalar + trainer._tr_loss.item()) / (before + int(steps))
        trainer._total_loss_scalar = mean * steps
        trainer._tr_loss.zero_()
