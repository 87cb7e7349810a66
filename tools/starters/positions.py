"""Let the first layer of a small BERT attend to neighboring tokens, by construction.

A BERT of this size, trained on tens of millions of tokens, stays at a loss at which its attention is an average over
the text: it does not use the order of words. Weights that look like those of a trained model end this stage at once
(Trockman & Kolter 2023, "Mimetic Initialization of Self-Attention Layers"). Here, position embeddings become
sinusoids (Vaswani et al. 2017, 3.5) in the subspace that token embeddings use least, and the heads of the first layer
compare them: a rotation by an offset makes each position most similar to the one at this offset.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

#: Offsets that each head of the first layer attends to: the previous token, the next one, and a few before and after.
OFFSETS = ((-1,), (1,), (-2, -3, -4, -5, -6), (2, 3, 4, 5, 6))

#: Length of the position vectors relative to that of token embeddings.
RELATIVE_LENGTH = 0.5

#: Attention logit of the right offset above those of others, roughly.
SHARPNESS = 6.0

#: Radians per token: high frequencies tell neighbors apart, low ones regions of a text.
FREQUENCIES = torch.cat([torch.linspace(0.2, 3.0, 20), torch.logspace(math.log10(1 / 80), math.log10(0.15), 12)])


@torch.no_grad()
def attend_to_neighbors(model: Any, counts: Tensor) -> None:
    """Change a ``BertForMaskedLM`` with four heads of 64 in place.

    Args:
        model: Trained or untrained; training continues afterwards.
        counts: Number of occurrences of each token ``(V,)`` in the training text.
    """
    embeddings = model.bert.embeddings
    tokens, places, types = (
        getattr(embeddings, f"{kind}_embeddings").weight for kind in ("word", "position", "token_type")
    )
    frequency = (counts.float() + 1) / (counts.float() + 1).sum()
    free = _least_used(tokens, frequency)
    others = torch.eye(tokens.shape[1]) - free @ free.T
    mean = tokens + types[0] + places.mean(dim=0)
    length = (frequency * (mean - mean.mean(dim=1, keepdim=True)).norm(dim=1)).sum()
    angles = torch.arange(len(places))[:, None] * FREQUENCIES
    waves = torch.cat([angles.cos(), angles.sin()], dim=1)
    scale = RELATIVE_LENGTH * length / math.sqrt(len(FREQUENCIES))

    tokens.copy_(tokens @ others)
    types.copy_(types @ others)
    places.copy_(places @ others + scale * waves @ free.T)
    _compare_positions(model, free, others)


def _least_used(tokens: Tensor, frequency: Tensor) -> Tensor:
    """Return an orthonormal basis ``(hidden, 2 × frequencies)`` of the directions in which tokens vary least.

    They are orthogonal to the vector of ones, which LayerNorm removes.
    """
    width = tokens.shape[1]
    tokens, frequency = tokens.double(), frequency.double()
    ones = torch.ones(width, 1, dtype=torch.float64) / math.sqrt(width)
    centered = (tokens - (frequency[:, None] * tokens).sum(dim=0)) * frequency.sqrt()[:, None]
    project = torch.eye(width, dtype=torch.float64) - ones @ ones.T
    covariance = project @ centered.T @ centered @ project
    last = covariance.trace() * ones @ ones.T
    vectors: torch.Tensor = torch.linalg.eigh(covariance + last).eigenvectors
    return vectors[:, : 2 * len(FREQUENCIES)].float()


def _compare_positions(model: Any, free: Tensor, others: Tensor) -> None:
    norm, attention = model.bert.embeddings.LayerNorm, model.bert.encoder.layer[0].attention.self
    read = free.T / norm.weight
    after_norm = RELATIVE_LENGTH**2 / (1 + RELATIVE_LENGTH**2) * len(norm.weight)
    size = attention.attention_head_size
    scale = math.sqrt(SHARPNESS * math.sqrt(size) / after_norm * len(FREQUENCIES) / 24)
    for head, offsets in enumerate(OFFSETS):
        rows = slice(size * head, size * (head + 1))
        asked = scale * sum(map(_rotation, offsets)) / _overlap(offsets) @ read
        for linear, weight in ((attention.query, asked), (attention.key, scale * read)):
            linear.weight[rows] = weight
            linear.bias[rows] = -weight @ norm.bias
    # What the heads read is about tokens, as before.
    attention.value.weight.copy_(attention.value.weight @ (norm.weight[:, None] * others / norm.weight))


def _rotation(offset: int) -> Tensor:
    """Return the matrix that maps the vector of each position to that of the position at an offset."""
    cos, sin = torch.diag((offset * FREQUENCIES).cos()), torch.diag((offset * FREQUENCIES).sin())
    return torch.cat([torch.cat([cos, -sin], dim=1), torch.cat([sin, cos], dim=1)])


def _overlap(offsets: tuple[int, ...]) -> float:
    """Return the similarity of the sum of several offsets to the one in their middle; 1 for a single offset."""
    middle = offsets[len(offsets) // 2]
    return sum(float((FREQUENCIES * (offset - middle)).cos().mean()) for offset in offsets)
