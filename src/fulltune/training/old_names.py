"""Support names of earlier versions of transformers: arguments, attributes, and methods with fewer arguments."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Sequence
from typing import Any

from transformers.integrations.integration_utils import TensorBoardCallback

from fulltune.errors import ArgumentError
from fulltune.training.old_arguments import note

#: Arguments that earlier versions did not have, so that methods of a subclass may not take them.
_LATER = {
    "compute_loss": ("num_items_in_batch",),
    "training_step": ("num_items_in_batch",),
    "log": ("start_time",),
    "evaluate": ("ignore_keys", "metric_key_prefix"),
    "prediction_step": ("ignore_keys",),
    "save_model": ("_internal_call",),
    "_get_train_sampler": ("train_dataset",),
}

#: Old names of attributes and methods.
_RENAMED = {
    "tokenizer": "processing_class",
    "is_world_master": "is_world_process_zero",
    "is_local_master": "is_local_process_zero",
}


def renamed(options: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    """Return options with one of them renamed.

    Raises:
        ArgumentError: Both names are passed, with different values.
    """
    if old not in options:
        return options
    value = options[old]
    if options.get(new) not in (None, value):
        raise ArgumentError(f"{old} and {new} are both passed, with different values", fix=f"leave {old} out")
    note(old, f"taken as `{new}`")
    return {name: one for name, one in options.items() if name != old} | {new: value}


class OldNames:
    """Support names of earlier versions; a mixin before :class:`transformers.Trainer`."""

    loss_is_scaled_for_ga: bool | None = None
    args: Any
    callback_handler: Any
    add_callback: Any

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name, later in _LATER.items():
            owner = next((one for one in cls.__mro__ if name in vars(one)), OldNames)
            method: Any = getattr(cls, name, None)
            is_checked = owner is not cls and issubclass(owner, OldNames)
            missing = [] if is_checked or not inspect.isfunction(method) else _missing(method, later)
            if not missing:
                continue
            if name == "compute_loss":
                method = _with_outputs(method) if _missing(method, ["return_outputs"]) else method
                if vars(cls).get("loss_is_scaled_for_ga") is None:
                    # Without the count of all labels its loss is a mean, which must be averaged over the micro-batches.
                    cls.loss_is_scaled_for_ga = False
            setattr(cls, name, _as_before(method, missing))

    def __getattr__(self, name: str) -> Any:
        if name not in _RENAMED:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        value = object.__getattribute__(self, _RENAMED[name])
        note(f"Trainer.{name}", f"`{_RENAMED[name]}` is used")
        return value

    def _take_old_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return the options of the constructor under their current names; keep others for later."""
        options = renamed(options, "tokenizer", "processing_class")
        self._old_options = {name: options.pop(name) for name in ("prediction_loss_only", "tb_writer") & options.keys()}
        return options

    def _apply_old_options(self) -> None:
        """Set the options that now belong to the arguments or to a callback."""
        old = vars(self).pop("_old_options")
        if "prediction_loss_only" in old:
            note("Trainer(prediction_loss_only=…)", "taken as the argument of TrainingArguments")
            self.args.prediction_loss_only = old["prediction_loss_only"]
        if old.get("tb_writer") is not None:
            note("Trainer(tb_writer=…)", "taken as `callbacks=[TensorBoardCallback(tb_writer)]`")
            self.callback_handler.pop_callback(TensorBoardCallback)
            self.add_callback(TensorBoardCallback(old["tb_writer"]))
        folder = getattr(self.args, "logging_dir", None)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and folder is not None:
                callback.logging_dir = os.path.expanduser(folder)

    def _resume_from(self, checkpoint: Any, options: dict[str, Any]) -> Any:
        """Return the checkpoint to resume from; earlier versions named it ``model_path``."""
        options = renamed({"resume_from_checkpoint": checkpoint, **options}, "model_path", "resume_from_checkpoint")
        checkpoint = options.pop("resume_from_checkpoint")
        if options:
            raise TypeError(f"train() got an unexpected keyword argument {next(iter(options))!r}")
        return checkpoint


def _missing(method: Callable[..., Any], names: Sequence[str]) -> list[str]:
    """Return which of these arguments a method does not take."""
    parameters = inspect.signature(method).parameters
    takes_any = any(one.kind in (one.VAR_KEYWORD, one.VAR_POSITIONAL) for one in parameters.values())
    return [] if takes_any else [name for name in names if name not in parameters]


def _as_before(method: Callable[..., Any], missing: Sequence[str]) -> Callable[..., Any]:
    """Return a method that drops the arguments that the original does not take."""
    taken = len(inspect.signature(method).parameters)

    @functools.wraps(method)
    def call(*values: Any, **options: Any) -> Any:
        taken_options = {name: value for name, value in options.items() if name not in missing}
        return method(*values[:taken], **taken_options)

    return call


def _with_outputs(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a ``compute_loss`` that can return outputs, with a second pass, for a method that returns a loss only."""

    @functools.wraps(method)
    def compute_loss(self: Any, model: Any, inputs: dict[str, Any], return_outputs: bool = False) -> Any:
        loss = method(self, model, dict(inputs))
        return (loss, model(**inputs)) if return_outputs else loss

    del compute_loss.__wrapped__  # its signature differs
    return compute_loss
