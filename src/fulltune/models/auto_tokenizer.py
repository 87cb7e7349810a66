"""``fulltune.AutoTokenizer``: the library's, which lets a tokenizer pad that has no token for it."""

from __future__ import annotations

import logging
from typing import Any

import transformers

from fulltune.runtime.log_once import log_once

_log = logging.getLogger(__name__)


class AutoTokenizer(transformers.AutoTokenizer):
    """:class:`transformers.AutoTokenizer`; a tokenizer without a padding token pads with its end-of-text token.

    Padding is known by the attention mask and never by its token, so that a model learns to end its texts as before.
    """

    @classmethod
    def from_pretrained(cls, *args: Any, **options: Any) -> Any:
        """Return the library's own tokenizer; arguments as in :meth:`transformers.AutoTokenizer.from_pretrained`."""
        tokenizer = super().from_pretrained(*args, **options)
        if getattr(tokenizer, "pad_token", "") is None and getattr(tokenizer, "eos_token", None) is not None:
            tokenizer.pad_token = tokenizer.eos_token
            source = tokenizer.name_or_path
            line = "the tokenizer of %s has no padding token: %r, its end-of-text token, pads and is learned as before"
            log_once(_log, logging.WARNING, source, line, source, tokenizer.eos_token)
        return tokenizer
