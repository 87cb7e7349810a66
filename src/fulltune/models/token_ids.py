"""Token ids of texts: everything that needs a tokenizer and the config of a model, but none of its weights.

Tasks use this module when they are loaded; torch is not imported by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fulltune.models.tokenizing import frame

if TYPE_CHECKING:
    from fulltune.models.bundle import Bundle

#: Label of a position or a row that carries no loss.
IGNORED = -100


@dataclass(frozen=True)
class Text:
    """A text to score.

    Attributes:
        context: Token ids before the target; at least one for a decoder, the encoder's input for an encoder-decoder.
        target: Token ids to score, each predicted from all preceding ids.
    """

    context: list[int]
    target: list[int]

    def __len__(self) -> int:
        return len(self.context) + len(self.target)


def text_ids(bundle: Bundle, text: str) -> list[int]:
    """Return the token ids of a text without special tokens."""
    return list(bundle.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids)


def start_ids(bundle: Bundle) -> list[int]:
    """Return the ids that the tokenizer puts before a text by default; empty for e.g. GPT-2."""
    return frame(bundle.tokenizer)[0]


def opening_ids(bundle: Bundle) -> list[int]:
    """Return the first input ids of a decoder: the tokenizer's start ids, else its begin- or end-of-text token."""
    tokenizer = bundle.tokenizer
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return start_ids(bundle) or ([] if first is None else [int(first)])


def end_ids(bundle: Bundle) -> list[int]:
    """Return the end-of-text token as a list; empty if there is none."""
    return [] if bundle.tokenizer.eos_token_id is None else [int(bundle.tokenizer.eos_token_id)]


def most_new_tokens(bundle: Bundle, prompt: int) -> int:
    """Return how many tokens can follow a prompt of ``prompt`` tokens; the last one does not need a position."""
    if bundle.family == "decoder":
        return bundle.window - prompt + 1
    return bundle.answer_window


def decode(bundle: Bundle, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
    """Return the text of token ids."""
    return str(bundle.tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))
