"""What is the library's own, so that the trainer may compute the same in another way.

The trainer knows the losses, batches and checkpoints of transformers' own classes. A class, method, loss or collator of
the user's means something that only the user knows: there the library's own path is taken.
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

#: Collators that pad with columns which the attention mask tells apart.
_COLLATORS = (
    transformers.DefaultDataCollator,
    transformers.DataCollatorWithPadding,
    transformers.DataCollatorForLanguageModeling,
    transformers.DataCollatorForTokenClassification,
    transformers.DataCollatorForSeq2Seq,
)

#: Models whose attention or position embeddings depend on the width of the batch.
_OF_ONE_WIDTH = frozenset({"reformer", "big_bird", "bigbird_pegasus"})

#: Columns with one value a token that can be cut together with ``input_ids``.
_PER_TOKEN = frozenset({"input_ids", "attention_mask", "token_type_ids", "position_ids", "labels"})


def library_class(model: nn.Module) -> type:
    """Return the class of a model; of one that is fully sharded, the class that it had before."""
    return next(one for one in type(model).__mro__ if not one.__name__.startswith("FSDP"))


def is_library_class(model: nn.Module) -> bool:
    """Return True if the class of a model is one of transformers', not a subclass or one of the same name."""
    return library_class(model).__module__.startswith("transformers.models.")


def changed_in_model(model: Any) -> str | None:
    """Return what of the model's way to its loss is not the library's own, or None.

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
    """Return which of the methods of ``base`` are not those of ``one``: a subclass or the object has others."""
    own = vars(one)
    return [name for name in names if name in own or getattr(type(one), name) is not getattr(base, name)]


def pads_freely(collator: Any) -> bool:
    """Return True if columns of padding may be cut from the batches of this collator of transformers'."""
    if getattr(collator, "pad_to_multiple_of", None) is not None:
        return False
    return collator is default_data_collator or type(collator) in _COLLATORS


def bears_any_width(model: Any) -> bool:
    """Return True if the width of a batch is of no meaning to a model."""
    return getattr(getattr(model, "config", None), "model_type", None) not in _OF_ONE_WIDTH


def has_only_tokens(batch: Mapping[str, Any]) -> bool:
    """Return True if what is as wide as the ``attention_mask`` has one value a token and a known name."""
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
