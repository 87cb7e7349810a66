"""Hash tokenizers."""

from __future__ import annotations

import json
from typing import Any

from fulltune.store.cache import cache_key


def tokenizer_sha256(tokenizer: Any) -> str:
    """Return one hash over the vocabulary, special tokens, chat template and, for a fast tokenizer, its pipeline.

    Truncation and padding are excluded, since they depend on the last call.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    pipeline = None if backend is None else json.loads(backend.to_str()) | {"truncation": None, "padding": None}
    parts = [type(tokenizer).__name__, tokenizer.chat_template, sorted(tokenizer.special_tokens_map.items())]
    vocabulary = sorted(tokenizer.get_vocab().items()) if pipeline is None else pipeline
    return cache_key({"tokenizer": parts, "vocabulary": vocabulary})
