"""Decide what a trainer leaves to the library because the user has replaced a part of it, and log why."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from transformers import TrainerCallback

from fulltune.runtime.log_once import log_once
from fulltune.training.batches.collate import Collator, FeatureDataset
from fulltune.training.protocols import PublicTrainer
from fulltune.training.untouched import (
    accepts_any_width,
    changed_in_model,
    has_only_tokens,
    hooked,
    overridden,
    pads_freely,
)

_log = logging.getLogger(__name__)

#: Methods that process a training batch before the loss is computed. If one is overridden, batches are left unchanged.
_TRAINING = ("training_step", "_prepare_inputs", "get_batch_samples", "_run_epoch", "_inner_training_loop")

#: The same for batches of an evaluation.
_EVALUATION = ("prediction_step", "_prepare_inputs", "evaluation_loop")

#: Methods that write checkpoints.
_WRITERS = (
    "save_model",
    "_save",
    "_save_checkpoint",
    "_save_optimizer_and_scheduler",
    "_save_rng_state",
    "_save_scaler",
)


class UserCode:
    """Distinguish code of the user from that of the library and of fulltune, for one trainer.

    Methods named ``…_reason`` return a phrase for the log, or None if nothing was replaced.

    Args:
        trainer: The trainer.
    """

    def __init__(self, trainer: PublicTrainer) -> None:
        self._trainer = trainer
        # The trainer's model, and the same without its wrappers: unwrapping costs milliseconds.
        self._unwrapped: tuple[Any, Any] = (None, None)

    @property
    def model(self) -> Any:
        """The model without the wrappers of Accelerate and PEFT."""
        wrapped, plain = self._unwrapped
        if wrapped is not self._trainer.model or plain is None:
            plain = self._trainer.accelerator.unwrap_model(self._trainer.model)
            plain = plain.get_base_model() if hasattr(plain, "get_base_model") else plain
            self._unwrapped = (self._trainer.model, plain)
        return plain

    def forget_model(self) -> None:
        """Drop what is known of a model that is replaced by another one."""
        self._unwrapped = (None, None)

    def leaves(self, what: str, reason: str | None) -> bool:
        """Return True if there is a reason to leave a feature to the library; log it once."""
        if reason is not None:
            log_once(_log, logging.INFO, (what, reason), "left to transformers: %s (%s)", what, reason)
        return reason is not None

    # ---- Methods and callbacks ----

    def overrides(self, *names: str) -> list[str]:
        """Return which of these methods a subclass or the instance overrides."""
        kinds = type(self._trainer).__mro__
        ours = next(one for one in kinds if one.__module__.startswith("fulltune.training."))
        return overridden(self._trainer, ours, names)

    def override_reason(self, *names: str) -> str | None:
        """Return which of these methods are overridden."""
        changed = self.overrides(*names)
        return f"{' and '.join(changed)} {'is' if len(changed) == 1 else 'are'} overridden" if changed else None

    def has_callback(self, event: str, *, outside: tuple[str, ...]) -> bool:
        """Return True if a callback from outside these packages handles an event."""
        kinds = [type(one) for one in self._trainer.callback_handler.callbacks]
        listening = [one for one in kinds if getattr(one, event) is not getattr(TrainerCallback, event)]
        return any(one.__module__.partition(".")[0] not in outside for one in listening)

    def writes_checkpoints(self, *, trained_only: bool) -> bool:
        """Return True if the library writes checkpoints, because a subclass or PEFT decides on their content.

        Args:
            trained_only: Checkpoints contain trainable parameters only, as those of PEFT do.
        """
        reason = self.override_reason(*_WRITERS)
        is_adapter = hasattr(self._trainer.accelerator.unwrap_model(self._trainer.model), "get_base_model")
        if reason is None and is_adapter and not trained_only:
            reason = "PEFT saves the adapter only"
        return self.leaves("writing checkpoints", reason)

    # ---- The loss ----

    def loss_reason(self) -> str | None:
        """Return why the loss is not that of fulltune."""
        if self._trainer.get_cp_size() > 1 or self._trainer.get_sp_size() > 1:
            return "sequences are split over processes"
        return "use_liger_kernel is set" if self._trainer.args.use_liger_kernel else self.replaced_loss_reason()

    def replaced_loss_reason(self) -> str | None:
        """Return which part of the loss computation the user has replaced."""
        if self.overrides("compute_loss"):
            return "compute_loss is overridden"
        if self._trainer.compute_loss_func is not None:
            return "compute_loss_func is given"
        return changed_in_model(self.model) or self.hook_reason()

    def hook_reason(self) -> str | None:
        """Return which wrapper of the model, or the model itself, has a hook of the user."""
        given = self._trainer.model
        wrappers = (given, given.base_model) if hasattr(given, "get_base_model") else (given,)
        return hooked((*wrappers, self.model))

    def replaces_loss(self) -> bool:
        """Return True if the library computes the loss because the user has replaced a part of it."""
        return self.leaves("the loss", self.replaced_loss_reason())

    def reads(self, what: str, modules: Iterable[nn.Module]) -> bool:
        """Return True if a hook of the user on one of these modules keeps a feature from being used."""
        return self.leaves(what, hooked(modules))

    # ---- Batches ----

    def keeps_whole(self, batch: Mapping[str, Any]) -> bool:
        """Return True if padding columns cannot be removed without changing what the model computes."""
        reason = self.override_reason(*(_TRAINING if self.model.training else _EVALUATION))
        # Rows of a run are not padded by anybody else, so they may be computed alone; a script may pad on purpose.
        is_run = isinstance(self._trainer.train_dataset, FeatureDataset)
        if reason is None and not is_run and not accepts_any_width(self.model):
            reason = f"{type(self.model).__name__} depends on the width of a batch"
        if reason is None and not has_only_tokens(batch):
            reason = "the inputs are not text alone"
        if reason is None and not is_run:
            reason = hooked(self.model.modules())
        return self.leaves("computing rows of a batch in groups", reason)

    def keeps_micro_batches_whole(self) -> bool:
        """Return True if a micro-batch that does not fit in memory is not computed in parts."""
        return self.leaves("training a batch in parts where memory runs out", self.override_reason(*_TRAINING))

    def keeps_padding(self, collator: Any, description: str | None) -> bool:
        """Return True if the width of the batches of a collator is not changed.

        Args:
            collator: The collator of the trainer.
            description: Name of the loader, as the library gives it.
        """
        return self.leaves("cutting columns of padding", self._padding_reason(collator, description))

    def _padding_reason(self, collator: Any, description: str | None) -> str | None:
        if description not in ("Training", "Evaluation"):
            return f"the loader {description!r} belongs to the caller"
        if not isinstance(collator, Collator) and not pads_freely(collator):
            return f"{getattr(collator, '__name__', type(collator).__name__)} decides on the padding"
        if not accepts_any_width(self.model):
            return f"{type(self.model).__name__} depends on the width of a batch"
        trainer = self._trainer
        if description == "Evaluation" and (trainer.compute_metrics or trainer.preprocess_logits_for_metrics):
            return "compute_metrics gets the predictions"
        if (reason := hooked(self.model.modules())) is not None:
            return reason
        return self.override_reason(*(_TRAINING if description == "Training" else _EVALUATION))
