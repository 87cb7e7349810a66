"""A soft prompt: vectors before every input that no token has (Lester et al. 2021), inside a plain model.

The vectors get ids of their own, from the end of the vocabulary on, and the embedding looks them up like any token's.
So the model's own code sees ids as long as what it reads: positions, the last token of a text, the token that ends a
sequence are all where it expects them. Where a model reads embeddings alone, as PEFT gives it a prompt, a decoder with
a classification head takes padding for the last token, and T5 with such a head cannot be used. Everywhere else the
result is that of PEFT's prompt tuning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

#: Name of the vectors among the model's parameters.
NAME = "soft_prompt"


def attach(model: PreTrainedModel, vectors: Tensor) -> nn.Parameter:
    """Give a model a soft prompt, in place; ``Bundle.prompt_ids`` are then put before every input.

    Args:
        model: Any model with token embeddings.
        vectors: ``(n, hidden)``, where the prompt starts from.

    Returns:
        The vectors as a parameter of the model.
    """
    whole: Any = model
    shared: Any = whole.get_input_embeddings()
    rows, prompt = int(shared.weight.shape[0]), nn.Parameter(vectors.detach().clone())
    whole.register_parameter(NAME, prompt)
    for module in whole.modules():
        if isinstance(module, nn.Embedding) and module.weight is shared.weight:
            reader: Any = module
            reader.forward = partial(_look_up, reader.forward, prompt, rows)
            reader.prompt_ids = tuple(range(rows, rows + len(prompt)))
    return prompt


def _look_up(own: Callable[[Tensor], Tensor], prompt: Tensor, rows: int, ids: Tensor) -> Tensor:
    """Vectors ``(B, T, hidden)`` of ids ``(B, T)``: the prompt's from ``rows`` on, the tokens' own below."""
    virtual = ids >= rows
    vectors = own(ids.masked_fill(virtual, 0))
    return torch.where(virtual.unsqueeze(-1), prompt[(ids - rows).clamp(min=0)].to(vectors.dtype), vectors)


@torch.no_grad()
def vectors_of(model: PreTrainedModel, ids: Sequence[int], length: int) -> Tensor:
    """What the model's embedding makes of token ids, repeated or cut to ``length``: ``(length, hidden)``."""
    embed: Any = model.get_input_embeddings()
    repeated = (list(ids) * (length // len(ids) + 1))[:length]
    found: Tensor = embed(torch.tensor([repeated], device=embed.weight.device))[0]
    return found.float()
