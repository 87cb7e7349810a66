"""Keys and values of what many texts begin with (the instruction, the shots), computed once by a decoder.

An encoder reads in both directions: what follows changes what it makes of a beginning, so nothing is shared there.
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
from fulltune.models.fast_paths import attempt, options
from fulltune.runtime.log_once import log_once

_log = logging.getLogger(__name__)

#: Whether a model keeps keys and values of the usual kind.
_kept: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()

#: Beginnings of fewer tokens than this are read with each text.
SHORTEST = 16


def shared_length(rows: Sequence[Sequence[int]]) -> int:
    """How many ids all rows begin with alike; always one less than the shortest row has, so that each has a rest."""
    ordered = sorted(map(list, rows))
    low, high = ordered[0], ordered[-1]  # in the order of lists the first and the last have the least in common
    longest = max(0, min(map(len, ordered)) - 1)
    return next((place for place in range(longest) if low[place] != high[place]), longest)


class PrefixCache:
    """Keys and values of the last beginning that was asked for.

    They are kept for all positions, also by layers that look back over a window only: the model's masks see to that.

    Args:
        bundle: A decoder; any other model shares nothing, nor does a decoder that keeps anything but keys and values.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.model: Any = bundle.model
        self.is_usable = bundle.family == "decoder" and keeps_keys_and_values(bundle.model)
        self._ids: list[int] = []
        self._cache = DynamicCache()

    def length(self, rows: Sequence[Sequence[int]]) -> int:
        """Ids at the beginning of these rows that are worth sharing; 0 for none.

        A beginning that is known is preferred to one that is a little longer by chance.
        """
        if not self.is_usable or not rows:
            return 0
        shared, known = shared_length(rows), len(self._ids)
        if SHORTEST <= known <= shared < known + SHORTEST and list(rows[0][:known]) == self._ids:
            return known
        return shared if shared >= SHORTEST and len(rows) > 1 else 0

    @torch.inference_mode()
    def placed(self, ids: Sequence[int], padding: Sequence[int]) -> DynamicCache:
        """Return the keys and values of ``ids`` for the first ``len(ids)`` columns of a batch, to be written into.

        Args:
            ids: The beginning.
            padding: Columns of padding on the left of each row: its beginning is moved to the right by as many, and
                what does not fit any more is left out.
        """
        if list(ids) != self._ids:
            asked = torch.tensor([list(ids)], device=self.model.device)
            given = {**options(self.model), "use_cache": True, "past_key_values": DynamicCache()}
            given |= {"input_ids": asked, "attention_mask": torch.ones_like(asked)}
            self._cache = self.model(**given, **last_logits(self.model)).past_key_values
            self._ids = list(ids)
        columns = torch.arange(len(ids))[None] - torch.tensor(list(padding))[:, None]
        columns = columns.clamp(min=0).to(self.model.device)
        return DynamicCache([tuple(_moved(kept, columns) for kept in layer) for layer in _keys_and_values(self._cache)])


def keeps_keys_and_values(model: PreTrainedModel) -> bool:
    """Return True if a decoder's cache holds keys and values of each position, and nothing else; asked once."""
    if model not in _kept:
        _kept[model] = bool(attempt(lambda: _has_plain_cache(model), model)[0])
        if not _kept[model]:
            name, message = type(model).__name__, "%s reads a shared beginning with each text: it keeps no plain cache"
            log_once(_log, logging.WARNING, name, message, name)
    return _kept[model]


def _has_plain_cache(model: Any) -> bool:
    asked = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    given = {**options(model), "use_cache": True, "input_ids": asked, "attention_mask": torch.ones_like(asked)}
    kept = getattr(model(**given), "past_key_values", None)
    plain = {DynamicLayer, DynamicSlidingWindowLayer}
    return type(kept) is DynamicCache and {type(layer) for layer in kept.layers} <= plain


def last_logits(model: Any) -> dict[str, int]:
    """Keyword arguments for logits of the last position alone, where the model knows them."""
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}


def _keys_and_values(cache: Any) -> list[tuple[Tensor, Tensor]]:
    return [(layer.keys, layer.values) for layer in cache.layers if layer.keys is not None]


def _moved(kept: Tensor, columns: Tensor) -> Tensor:
    """``(1, heads, T, D)`` with the positions ``columns`` ``(B, T)`` in the places of its own, ``(B, heads, T, D)``."""
    return kept[0][:, columns].transpose(0, 1)
