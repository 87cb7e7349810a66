"""Name the cache of keys and values: ``cache`` since transformers 5.24, ``past_key_values`` before."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from transformers.modeling_outputs import CausalLMOutputWithPast

_BEFORE = "past_key_values"

#: Name of the cache in the outputs of models, and among the arguments of ``generate``.
CACHE = "cache" if "cache" in {field.name for field in dataclasses.fields(CausalLMOutputWithPast)} else _BEFORE


def cache_argument(model: Any) -> str:
    """Return the name of the argument by which ``forward`` of a model takes a cache.

    A model with code of its own may have the earlier name.
    """
    has_earlier_name = _BEFORE in inspect.signature(model.forward).parameters
    return _BEFORE if has_earlier_name else CACHE


def cache_of(outputs: Any) -> Any:
    """Return the cache among the outputs of a model; None if it has none."""
    return getattr(outputs, CACHE, None)
