"""What many texts begin with (the instruction, the shots) is read once by a decoder, and its keys and values are kept.

An encoder reads in both directions, so what follows changes what it makes of a beginning: nothing is shared there.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from fulltune.model import Bundle

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

    Args:
        bundle: A decoder; any other model shares nothing.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.model: Any = bundle.model
        self.is_usable = bundle.family == "decoder"
        self._ids: list[int] = []
        self._cache: DynamicCache | None = None

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
    def expanded(self, ids: Sequence[int], rows: int) -> DynamicCache | None:
        """A copy of the keys and values of ``ids`` for so many rows, to be written into; None where the model keeps
        them in another way, and then nothing is shared any more.
        """
        if list(ids) != self._ids:
            asked = torch.tensor([list(ids)], device=self.model.device)
            kept = self.model(input_ids=asked, use_cache=True, **last_logits(self.model)).past_key_values
            self.is_usable = type(kept) is DynamicCache
            self._ids, self._cache = list(ids), kept
        if not self.is_usable:
            return None
        cache = copy.deepcopy(self._cache)
        assert cache is not None
        cache.batch_repeat_interleave(rows)
        return cache


def last_logits(model: Any) -> dict[str, int]:
    """Keyword arguments for logits of the last position alone, where the model knows them."""
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
