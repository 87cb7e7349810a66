"""Detect what the user has replaced, and what is unchanged code of the library.

The trainer computes the losses, batches and checkpoints of transformers' own classes in its own way. A class, method,
loss or collator of the user may have any meaning; for these the trainer uses the code of the library.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules
from transformers import default_data_collator
from transformers.loss import loss_utils

_PACKAGES = tuple(str(Path(str(package.__file__)).parent) for package in (transformers, accelerate, torch))

#: Packages that install hooks which change neither labels nor loss.
_OF_HOOKS = _PACKAGES + tuple(
    str(Path(spec.origin).parent)
    for name in ("fulltune", "peft", "deepspeed")
    if (spec := find_spec(name)) is not None and spec.origin is not None
)

#: Attributes of a module with the hooks that see the inputs or outputs of its forward pass.
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")

#: Losses of torch that forward methods of the library call by these names.
_TORCH_LOSSES = ("CrossEntropyLoss", "MSELoss", "BCEWithLogitsLoss")

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
    own_property = getattr(type(model), "loss_function", None)
    if not isinstance(own_property, property) or not all(_is_of_library(one) for one in _losses(model)):
        return f"the loss function of {name} was replaced"
    return None


def hooked(modules: Iterable[nn.Module]) -> str | None:
    """Return which of these modules has hooks of the user, which may read or change labels, loss and outputs, or None.

    Hooks of fulltune, transformers, Accelerate, PEFT, DeepSpeed and torch do not count.

    Args:
        modules: A model and its wrappers, or parts of a model.
    """
    hook = next(_own_hooks(vars(torch_modules), "_global"), None)
    if hook is not None:
        return f"all modules have the hook {_name_of(hook)}, which may change their outputs"
    for module in modules:
        hook = next(_own_hooks(vars(module)), None)
        if hook is not None:
            return f"{type(module).__name__} has the hook {_name_of(hook)}, which may change its outputs"
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


def _losses(model: Any) -> Iterator[Any]:
    """Yield the functions that compute the loss of a model of the library."""
    own = model.__dict__.get("_loss_function")
    if own is not None:
        yield own
    mapping = loss_utils.LOSS_MAPPING
    known = mapping.get(getattr(model, "loss_type", None) or "")
    # As the library does for a type that it does not know.
    yield mapping["ForCausalLM"] if known is None else known
    yield loss_utils.fixed_cross_entropy
    module = sys.modules.get(library_class(model).__module__)
    known_losses = (getattr(module, name, None) for name in _TORCH_LOSSES)
    yield from (getattr(one, "forward", one) for one in known_losses if one is not None)


def _own_hooks(attributes: Mapping[str, Any], prefix: str = "") -> Iterator[Any]:
    """Yield the hooks of the user among the attributes of a module."""
    for name in _HOOKS:
        hooks = attributes.get(f"{prefix}{name}") or {}
        yield from (one for one in hooks.values() if not _is_of_library(one, _OF_HOOKS))


def _name_of(hook: Any) -> str:
    """Return the name of a function, or the class of any other hook, with its module."""
    function = list(_wrapped(hook))[-1]
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def _is_of_library(function: Any, packages: tuple[str, ...] = _PACKAGES) -> bool:
    """Return True if the code of a function, and of those that it wraps, is in one of these packages."""
    codes = [getattr(one, "__code__", None) for one in _wrapped(function)]
    return all(code is not None and code.co_filename.startswith(packages) for code in codes)


def _wrapped(function: Any) -> Iterator[Any]:
    """Yield a function, and those that its decorators wrap."""
    while function is not None:
        function = getattr(function, "__func__", function)
        function = getattr(function, "func", function)  # Accelerate's hooks are partial functions
        yield function
        function = getattr(function, "__wrapped__", None)
