"""Check that a decoder predicts each token from those before it alone.

Some types with a head for causal language modeling read in both directions unless they are told otherwise in ways of
their own (XLNet's permutations, CPM-Ant's segments). A likelihood or a continuation of theirs says nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from fulltune.errors import ModelError
from fulltune.models import fast_paths

#: Tokens of a row of the check; the second half differs between two rows.
_LENGTH = 16


def check_causality(name: str, model: PreTrainedModel) -> None:
    """Check that what comes later in a text changes nothing of what a decoder makes of its beginning.

    Args:
        name: As the user gave it.
        model: A decoder with its head for words; asked in eval mode, left as it was.

    Raises:
        ModelError: The decoder reads ahead.
    """
    agrees, _ = fast_paths.attempt(lambda: _beginnings_agree(model), model)
    if agrees is False:
        raise ModelError(
            f"{name!r} ({type(model).__name__}) reads what follows a token before it predicts it",
            expected="a decoder that reads from left to right",
            fix="choose another model, or classification, for which reading in both directions is no fault",
            field="model",
        )


def _beginnings_agree(model: Any) -> bool:
    special, half = fast_paths.special_ids(model.config), _LENGTH // 2
    vocabulary = model.get_output_embeddings().weight.shape[0]
    ordinary = [token for token in range(min(vocabulary, 1000)) if token not in special]
    chosen = torch.tensor([ordinary[3 * place % len(ordinary)] for place in range(3 * half)], device=model.device)
    beginning, one, other = chosen[:half], chosen[half : 2 * half], chosen[2 * half :]
    logits = [
        model(input_ids=torch.cat([beginning, rest])[None], **fast_paths.options(model)).logits[0, :half]
        for rest in (one, other)
    ]
    return fast_paths.agree(logits[:1], logits[1:])
