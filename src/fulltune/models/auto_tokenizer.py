"""Extend :class:`transformers.AutoTokenizer` to tokenizers without a padding token."""

from __future__ import annotations

import logging
from typing import Any

import transformers

from fulltune.runtime.log_once import log_once

_log = logging.getLogger(__name__)


class AutoTokenizer(transformers.AutoTokenizer):
    """:class:`transformers.AutoTokenizer`; a tokenizer without a padding token uses its end-of-text token for padding.

    Padding is identified by the attention mask, never by its token id, so that the end-of-text token is still learned.
    """

    @classmethod
    def from_pretrained(cls, *args: Any, **options: Any) -> Any:
        """Return the library's tokenizer; arguments as in :meth:`transformers.AutoTokenizer.from_pretrained`."""
        tokenizer = super().from_pretrained(*args, **options)
        if getattr(tokenizer, "pad_token", "") is None and getattr(tokenizer, "eos_token", None) is not None:
            tokenizer.pad_token = tokenizer.eos_token
            source = tokenizer.name_or_path
            message = "the tokenizer of %s has no padding token: its end-of-text token %r is used; it is still learned"
            log_once(_log, logging.WARNING, source, message, source, tokenizer.eos_token)
        return tokenizer
