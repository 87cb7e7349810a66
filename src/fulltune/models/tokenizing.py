"""Facts on tokenizers: a hash, and the ids around a text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from fulltune.store.cache import cache_key

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokenizer_sha256(tokenizer: Any) -> str:
    """Return one hash over the vocabulary, special tokens, chat template and, for a fast tokenizer, its pipeline.

    Truncation and padding are excluded, since they depend on the last call.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    pipeline = None if backend is None else json.loads(backend.to_str()) | {"truncation": None, "padding": None}
    parts = [type(tokenizer).__name__, tokenizer.chat_template, sorted(tokenizer.special_tokens_map.items())]
    vocabulary = sorted(tokenizer.get_vocab().items()) if pipeline is None else pipeline
    return cache_key({"tokenizer": parts, "vocabulary": vocabulary})


def frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the ids that the tokenizer puts before and after a text by default."""
    bare = list(tokenizer("a", add_special_tokens=False).input_ids)
    framed = list(tokenizer("a").input_ids)
    for start in range(len(framed) - len(bare) + 1):
        if framed[start : start + len(bare)] == bare:
            return framed[:start], framed[start + len(bare) :]
    return [], []
