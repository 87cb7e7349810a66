"""Define what the collaborators of a trainer know of it.

Loss, steps, checkpoints, roll-back and engines take one of these protocols instead of :class:`fulltune.Trainer`, so
that private fields of the library are read in one place, :mod:`fulltune.training.loop`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import nn
from transformers import TrainerCallback, TrainerState


class ShardedTraining(Protocol):
    """The public attributes of a trainer that an engine and its checkpoints need."""

    @property
    def args(self) -> Any:
        """``TrainingArguments``."""

    @property
    def accelerator(self) -> Any:
        """The accelerator that prepared the model."""

    @property
    def model(self) -> Any:
        """The model that the trainer was given."""

    @property
    def model_wrapped(self) -> Any:
        """The outermost module around the model, which an engine may have sharded."""

    @property
    def state(self) -> TrainerState:
        """Progress of the training."""


class PublicTrainer(ShardedTraining, Protocol):
    """The public attributes of :class:`transformers.Trainer` from which losses and batches follow.

    Attributes:
        callback_handler: Has the callbacks.
        compute_loss_func: The loss of the user, or None.
        compute_metrics: The metrics of the user, or None.
        preprocess_logits_for_metrics: The function of the user that reduces logits, or None.
        data_collator: The collator, as it was given.
        train_dataset: The training rows.
        loss_is_scaled_for_ga: The library does not divide the loss by the number of micro-batches.
    """

    callback_handler: Any
    compute_loss_func: Any
    compute_metrics: Any
    preprocess_logits_for_metrics: Any
    data_collator: Any
    train_dataset: Any
    loss_is_scaled_for_ga: Any

    @property
    def is_deepspeed_enabled(self) -> Any:
        """True if DeepSpeed trains the model."""

    @property
    def is_fsdp_enabled(self) -> Any:
        """True if FSDP trains the model."""

    @property
    def is_distributed_loading_by_transformers(self) -> Any:
        """True if ``from_pretrained`` has sharded the model."""

    def get_cp_size(self) -> int:
        """Return the number of processes over which sequences are split (context parallelism)."""

    def get_sp_size(self) -> int:
        """Return the number of processes over which sequences are split (sequence parallelism)."""

    def get_tp_size(self) -> int:
        """Return the number of processes over which tensors are split."""


def is_sharded(trainer: PublicTrainer) -> bool:
    """Return True if an engine shards the model over processes and writes its own checkpoints."""
    engines = (trainer.is_fsdp_enabled, trainer.is_deepspeed_enabled, trainer.is_distributed_loading_by_transformers)
    return any(engines)


class TrainingLoop(ShardedTraining, Protocol):
    """A training in progress, as its checkpoints and its roll-back see it.

    Attributes:
        folder: Output folder of this training; it depends on the trial of a search.
        trained_only: Checkpoints contain trainable parameters only.
        callbacks: Callbacks of the trainer, in order.
    """

    @property
    def folder(self) -> Path: ...

    @property
    def trained_only(self) -> bool: ...

    @property
    def callbacks(self) -> Sequence[TrainerCallback]: ...

    def add_callback(self, callback: TrainerCallback) -> None:
        """Add a callback at the end."""

    def remove_callback(self, callback: TrainerCallback) -> None:
        """Remove a callback."""

    def unwrapped_model(self) -> nn.Module:
        """Return the model without the wrappers of Accelerate and ``torch.compile``."""

    def row_ids(self) -> Sequence[str]:
        """Return the ids of the rows of the current step."""

    def sum_flops(self) -> None:
        """Add the operations of all processes to the state. All processes must call it together."""

    def trainer_state(self) -> dict[str, Any]:
        """Return the content of ``trainer_state.json``, with the current states of callbacks."""

    def load_trainer_state(self, checkpoint: Path) -> None:
        """Replace the state by the one of a checkpoint."""

    def tokenizer_files(self) -> dict[str, bytes]:
        """Return the files of the tokenizer by name; none if there is no tokenizer."""

    def optimizer_state(self) -> dict[str, Any]:
        """Return the states of the optimizer, the scheduler and, with FP16, the loss scaler, by name."""

    def load_optimizer(self, optimizer: Any, scheduler: Any) -> None:
        """Load the states of the optimizer and the scheduler."""

    @property
    def has_scaler(self) -> bool:
        """True if the loss is scaled (FP16)."""

    def load_scaler(self, scaler: Any) -> None:
        """Load the state of the loss scaler."""

    def process_progress(self) -> dict[str, Any]:
        """Return the progress that this process alone knows: the loss since the last log, and the padding count."""

    def progress(self) -> dict[str, Any]:
        """Return the progress that is the same on all processes."""

    def load_progress(self, process: dict[str, Any], progress: dict[str, Any]) -> None:
        """Restore :meth:`process_progress` and :meth:`progress`."""
