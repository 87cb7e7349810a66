"""Add a soft prompt to a plain model: trained vectors before every input (Lester et al. 2021).

The vectors have ids after the end of the vocabulary, and the embedding looks them up like tokens. So the model receives
ids for its entire input, and positions, the last token of a text and end tokens are computed correctly. PEFT passes
embeddings instead: then a decoder with a classification head mistakes padding for the last token, and T5 with such a
head fails. In all other cases, the result equals that of PEFT's prompt tuning.
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
    """Add a soft prompt to a model in place; ``Bundle.prompt_ids`` must then be prepended to every input.

    Args:
        model: Any model with token embeddings.
        vectors: Initial vectors ``(n, hidden)``.

    Returns:
        The vectors as a parameter of the model.
    """
    any_model: Any = model
    token_embeddings: Any = any_model.get_input_embeddings()
    rows = int(token_embeddings.weight.shape[0])
    prompt = nn.Parameter(vectors.detach().clone())
    any_model.register_parameter(NAME, prompt)
    for module in any_model.modules():
        if isinstance(module, nn.Embedding) and module.weight is token_embeddings.weight:
            embedding: Any = module
            embedding.forward = partial(_look_up, embedding.forward, prompt, rows)
            embedding.prompt_ids = tuple(range(rows, rows + len(prompt)))
    return prompt


def _look_up(own: Callable[[Tensor], Tensor], prompt: Tensor, rows: int, ids: Tensor) -> Tensor:
    """Return the vectors ``(B, T, hidden)`` of ids ``(B, T)``: those of the prompt for ids from ``rows`` on."""
    is_prompt = ids >= rows
    vectors = own(ids.masked_fill(is_prompt, 0))
    return torch.where(is_prompt.unsqueeze(-1), prompt[(ids - rows).clamp(min=0)].to(vectors.dtype), vectors)


@torch.no_grad()
def vectors_of(model: PreTrainedModel, ids: Sequence[int], length: int) -> Tensor:
    """Return the embeddings of token ids, repeated or truncated to ``length``: ``(length, hidden)``."""
    embed: Any = model.get_input_embeddings()
    repeated = (list(ids) * (length // len(ids) + 1))[:length]
    vectors: Tensor = embed(torch.tensor([repeated], device=embed.weight.device))[0]
    return vectors.float()
