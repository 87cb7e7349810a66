"""Tokenizers as part of what a run depends on."""

from __future__ import annotations

import json
from typing import Any

from fulltune.store.cache import cache_key


def tokenizer_sha256(tokenizer: Any) -> str:
    """Return one hash over the vocabulary, the special tokens, the chat template and, of a fast tokenizer, the whole
    pipeline, but not over how it cut and padded the last texts that it saw.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    pipeline = None if backend is None else json.loads(backend.to_str()) | {"truncation": None, "padding": None}
    parts = [type(tokenizer).__name__, tokenizer.chat_template, sorted(tokenizer.special_tokens_map.items())]
    vocabulary = sorted(tokenizer.get_vocab().items()) if pipeline is None else pipeline
    return cache_key({"tokenizer": parts, "vocabulary": vocabulary})
