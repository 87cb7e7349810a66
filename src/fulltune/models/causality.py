"""Check that a decoder predicts each token from the preceding tokens only.

Some model types with a causal-LM head attend in both directions unless they get special inputs (XLNet's permutations,
CPM-Ant's segments). Their likelihoods and continuations would be meaningless.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from fulltune.errors import ModelError
from fulltune.models import fast_paths

#: Tokens per row of the check; the second half differs between the two rows.
_LENGTH = 16


def check_causality(name: str, model: PreTrainedModel) -> None:
    """Check that later tokens of a text do not change a decoder's logits for its first half.

    Args:
        name: Name of the model as the user gave it.
        model: A decoder with its language-modeling head; its mode is restored.

    Raises:
        ModelError: The decoder attends to later tokens.
    """
    agrees, _ = fast_paths.attempt(lambda: _first_halves_agree(model), model)
    if agrees is False:
        raise ModelError(
            f"{name!r} ({type(model).__name__}) attends to later tokens",
            expected="a decoder with causal attention",
            fix="choose another model, or the task classification, which does not need causal attention",
            field="model",
        )


def _first_halves_agree(model: Any) -> bool:
    """Return whether the logits of a first half are the same before two different second halves."""
    special = fast_paths.special_ids(model.config)
    half = _LENGTH // 2
    vocabulary = model.get_output_embeddings().weight.shape[0]
    ordinary = [token for token in range(min(vocabulary, 1000)) if token not in special]
    tokens = torch.tensor([ordinary[3 * index % len(ordinary)] for index in range(3 * half)], device=model.device)
    first_half = tokens[:half]
    logits = []
    for second_half in (tokens[half : 2 * half], tokens[2 * half :]):
        ids = torch.cat([first_half, second_half])[None]
        logits.append(model(input_ids=ids, **fast_paths.options(model)).logits[0, :half])
    return fast_paths.agree(logits[:1], logits[1:])
