"""Cache keys and values of prefixes that many texts share (the instruction, the shots), for decoders.

Encoders attend in both directions: the hidden states of a prefix depend on the rest of the text, so they share nothing.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from fulltune.models.bundle import Bundle
from fulltune.models.cache_names import cache_argument, cache_of
from fulltune.models.fast_paths import attempt, options
from fulltune.runtime.log_once import log_once

_log = logging.getLogger(__name__)

#: Results of :func:`keeps_keys_and_values` by model.
_kept: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()

#: Minimum length of a shared prefix in tokens.
SHORTEST = 16


def shared_length(rows: Sequence[Sequence[int]]) -> int:
    """Return the length of the common prefix of all rows, less than the shortest row, so that no row becomes empty."""
    ordered = sorted(map(list, rows))
    # Of lexicographically sorted rows, the first and the last have the shortest common prefix.
    first, last = ordered[0], ordered[-1]
    limit = max(0, min(map(len, ordered)) - 1)
    return next((index for index in range(limit) if first[index] != last[index]), limit)


class PrefixCache:
    """Keys and values of the most recent prefix.

    They are kept for all positions, even for layers with sliding-window attention: the model masks them itself.

    Args:
        bundle: A decoder. Other models, and decoders with another kind of cache, share nothing.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.model: Any = bundle.model
        self.is_usable = bundle.family == "decoder" and keeps_keys_and_values(bundle.model)
        self._ids: list[int] = []
        self._cache = DynamicCache()

    def length(self, rows: Sequence[Sequence[int]]) -> int:
        """Return the length of the prefix that these rows should share; 0 for none.

        The cached prefix is preferred to a slightly longer one.
        """
        if not self.is_usable or not rows:
            return 0
        shared = shared_length(rows)
        cached = len(self._ids)
        if SHORTEST <= cached <= shared < cached + SHORTEST and list(rows[0][:cached]) == self._ids:
            return cached
        return shared if shared >= SHORTEST and len(rows) > 1 else 0

    @torch.inference_mode()
    def placed(self, ids: Sequence[int], padding: Sequence[int]) -> DynamicCache:
        """Return a new cache with the keys and values of a prefix in the first ``len(ids)`` columns of a batch.

        Args:
            ids: Token ids of the prefix.
            padding: Number of padding columns on the left of each row. Its prefix is shifted right by that number, and
                truncated on the right.
        """
        if list(ids) != self._ids:
            prefix = torch.tensor([list(ids)], device=self.model.device)
            inputs = {**options(self.model), "use_cache": True, cache_argument(self.model): DynamicCache()}
            inputs |= {"input_ids": prefix, "attention_mask": torch.ones_like(prefix)}
            self._cache = cache_of(self.model(**inputs, **last_logits(self.model)))
            self._ids = list(ids)
        columns = torch.arange(len(ids))[None] - torch.tensor(list(padding))[:, None]
        columns = columns.clamp(min=0).to(self.model.device)
        layers = [(_gathered(keys, columns), _gathered(values, columns)) for keys, values in _layers(self._cache)]
        return DynamicCache(layers)


def keeps_keys_and_values(model: PreTrainedModel) -> bool:
    """Return whether a decoder's cache contains only keys and values of each position; checked once per model."""
    if model not in _kept:
        _kept[model] = bool(attempt(lambda: _has_plain_cache(model), model)[0])
        if not _kept[model]:
            name = type(model).__name__
            message = "%s computes a shared prefix for each text: it has no plain cache of keys and values"
            log_once(_log, logging.WARNING, name, message, name)
    return _kept[model]


def _has_plain_cache(model: Any) -> bool:
    ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    inputs = {**options(model), "use_cache": True, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    cache = cache_of(model(**inputs))
    plain = {DynamicLayer, DynamicSlidingWindowLayer}
    return type(cache) is DynamicCache and {type(layer) for layer in cache.layers} <= plain


def last_logits(model: Any) -> dict[str, int]:
    """Return keyword arguments that restrict logits to the last position, if the model supports it."""
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}


def _layers(cache: Any) -> list[tuple[Tensor, Tensor]]:
    """Return the keys and values of each layer, ``(1, heads, T, D)``."""
    return [(layer.keys, layer.values) for layer in cache.layers if layer.keys is not None]


def _gathered(states: Tensor, columns: Tensor) -> Tensor:
    """Return the positions ``columns`` ``(B, T)`` of ``(1, heads, T, D)`` as ``(B, heads, T, D)``."""
    return states[0][:, columns].transpose(0, 1)
