"""Detect what the user has replaced, and what is unchanged code of the library.

The trainer computes the losses, batches and checkpoints of transformers' own classes in its own way. A class, method,
loss or collator of the user may have any meaning; for these the trainer uses the code of the library.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
from torch import Tensor, nn
from transformers import default_data_collator
from transformers.loss.loss_utils import LOSS_MAPPING

_PACKAGES = tuple(str(Path(str(package.__file__)).parent) for package in (transformers, accelerate, torch))

#: Collators whose padding the attention mask marks.
_COLLATORS = (
    transformers.DefaultDataCollator,
    transformers.DataCollatorWithPadding,
    transformers.DataCollatorForLanguageModeling,
    transformers.DataCollatorForTokenClassification,
    transformers.DataCollatorForSeq2Seq,
)

#: Models whose attention or position embeddings depend on the width of the batch.
_OF_ONE_WIDTH = frozenset({"reformer", "big_bird", "bigbird_pegasus"})

#: Columns with one value per token that can be cut together with ``input_ids``.
_PER_TOKEN = frozenset({"input_ids", "attention_mask", "token_type_ids", "position_ids", "labels"})


def library_class(model: nn.Module) -> type:
    """Return the class of a model; for a fully sharded model, the class before sharding."""
    return next(one for one in type(model).__mro__ if not one.__name__.startswith("FSDP"))


def is_library_class(model: nn.Module) -> bool:
    """Return True if the class of a model belongs to transformers and is not a subclass."""
    return library_class(model).__module__.startswith("transformers.models.")


def changed_in_model(model: Any) -> str | None:
    """Return which part of the loss computation of a model was replaced, or None.

    Args:
        model: Unwrapped.
    """
    name = type(model).__name__
    if not is_library_class(model):
        return f"{name} is not a class of transformers"
    if not _is_of_library(model.__dict__.get("_original_forward", model.forward)):
        return f"the forward method of {name} was replaced"
    losses = (model.__dict__.get("_loss_function"), LOSS_MAPPING.get(getattr(model, "loss_type", None) or ""))
    replaced = any(one is not None and not _is_of_library(one) for one in losses)
    if replaced or not isinstance(getattr(type(model), "loss_function", None), property):
        return f"the loss function of {name} was replaced"
    return None


def overridden(one: object, base: type, names: Iterable[str]) -> list[str]:
    """Return which methods of ``base`` the class of an object, or the object itself, overrides."""
    own = vars(one)
    return [name for name in names if name in own or getattr(type(one), name) is not getattr(base, name)]


def pads_freely(collator: Any) -> bool:
    """Return True if padding columns may be removed from the batches of a collator."""
    if getattr(collator, "pad_to_multiple_of", None) is not None:
        return False
    return collator is default_data_collator or type(collator) in _COLLATORS


def accepts_any_width(model: Any) -> bool:
    """Return True if the outputs of a model do not depend on the width of a batch."""
    return getattr(getattr(model, "config", None), "model_type", None) not in _OF_ONE_WIDTH


def has_only_tokens(batch: Mapping[str, Any]) -> bool:
    """Return True if all columns of the width of ``attention_mask`` are known and have one value per token."""
    mask = batch.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return False
    wide = {
        name: value
        for name, value in batch.items()
        if isinstance(value, Tensor) and value.dim() >= 2 and value.shape[1] == mask.shape[1]
    }
    return wide.keys() <= _PER_TOKEN and all(value.dim() == 2 for name, value in wide.items() if name != "labels")


def _is_of_library(function: Any) -> bool:
    function = getattr(function, "__func__", function)
    function = getattr(function, "func", function)  # Accelerate's hooks are partial functions
    code = getattr(function, "__code__", None)
    return code is not None and code.co_filename.startswith(_PACKAGES)
