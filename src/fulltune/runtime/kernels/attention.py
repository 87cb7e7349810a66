"""Compute attention with dropout on a CPU in tiles, without storing a (queries × keys) matrix.

With dropout, ``scaled_dot_product_attention`` does not take its memory-efficient path on a CPU: it saves the softmax of
the scores, the mask and their product for the backward pass, 640 MB per layer for GPT-2 at 4 × 1024 tokens. Here, the
backward pass recomputes them (Dao et al. 2022, "FlashAttention", algorithm 4), with the mask drawn again from its seed,
in tiles that fit into the cache. Keys that are masked for every query of a tile are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fulltune.runtime.kernels.dropout import draw_seed, keep_mask, mask_to_float, rounded_probability
from fulltune.runtime.kernels.linear import is_plain

#: Bytes of the scores of one tile: about the second-level cache of a core.
_TILE_BYTES = 2**21

#: Queries per tile of causal attention, where later queries attend to more keys.
_CAUSAL_QUERIES = 256

#: Batch rows, heads, queries and keys of a tile.
Tile = tuple[slice, slice, slice, slice]


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    p: float = 0.0,
    *,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Compute :func:`torch.nn.functional.scaled_dot_product_attention` with dropout masks from :func:`keep_mask`.

    Args:
        query: ``(B, H, T, D)``.
        key: ``(B, H, S, D)``.
        value: ``(B, H, S, E)``.
        mask: Broadcasts to ``(B, H, T, S)``: True where a key is attended to, or numbers that are added to the scores.
        p: Dropout probability of the attention weights.
        is_causal: Attend only to keys up to the query's own position; not together with a mask.
        scale: Factor of the scores; default: 1/√D.

    Returns:
        ``(B, H, T, E)``.
    """
    if not is_supported(query, key, value, mask, p):
        return F.scaled_dot_product_attention(query, key, value, mask, p, is_causal, scale=scale)
    if mask is not None:
        mask = _additive(mask, query.dtype)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    apply: Any = _Attention.apply
    result: Tensor = apply(query, key, value, mask, p, is_causal, scale, draw_seed())
    return result


def is_supported(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, p: float) -> bool:
    """Return whether there is dropout, and the tensors are plain, four-dimensional, with equal batch and heads."""
    if not 0.0 < p < 1.0 or not is_plain(query, key, value) or {query.dim(), key.dim(), value.dim()} != {4}:
        return False
    has_same_heads = query.shape[:2] == key.shape[:2] == value.shape[:2]
    return has_same_heads and (mask is None or (mask.dim() == 4 and mask.dtype in (torch.bool, torch.float32)))


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask as numbers to add to the scores."""
    if mask.dtype != torch.bool:
        return mask
    # The lowest finite number instead of -inf: a query without keys (padding) must not become NaN.
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)


class _Attention(torch.autograd.Function):
    """Tiled attention whose backward pass recomputes the attention weights."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *settings: Any) -> Tensor:
        ctx.save_for_backward(query, key, value, mask)
        ctx.settings = settings
        p, is_causal, scale, seed = settings
        scaled = query * scale
        output = query.new_empty(*query.shape[:3], value.shape[3])
        for number, (b, h, q, k) in enumerate(_tiles(query, key, is_causal)):
            weights = _weights(scaled, key, mask, (b, h, q, k), is_causal)
            output[b, h, q] = weights.mul_(_kept(weights, p, seed + number)) @ value[b, h, k]
        return output.mul_(1 / (1 - rounded_probability(p)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        query, key, value, mask = ctx.saved_tensors
        p, is_causal, scale, seed = ctx.settings
        scaled = query * scale
        grad_output = gradients[0] * (1 / (1 - rounded_probability(p)))
        grad_query = torch.empty_like(query)
        grad_key = torch.zeros_like(key)
        grad_value = torch.zeros_like(value)
        grad_mask = torch.zeros_like(mask) if ctx.needs_input_grad[3] else None
        for number, (b, h, q, k) in enumerate(_tiles(query, key, is_causal)):
            weights = _weights(scaled, key, mask, (b, h, q, k), is_causal)
            kept = _kept(weights, p, seed + number)
            grad_value[b, h, k] += (weights * kept).transpose(2, 3) @ grad_output[b, h, q]
            grad_weights = (grad_output[b, h, q] @ value[b, h, k].transpose(2, 3)).mul_(kept)
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, torch.float32)
            if grad_mask is not None:
                _accumulate(grad_mask, grad_scores, (b, h, q, k))
            grad_query[b, h, q] = grad_scores @ key[b, h, k]
            grad_key[b, h, k] += grad_scores.transpose(2, 3) @ scaled[b, h, q]
        return grad_query.mul_(scale), grad_key, grad_value, grad_mask, None, None, None, None


def _weights(scaled: Tensor, key: Tensor, mask: Tensor | None, tile: Tile, is_causal: bool) -> Tensor:
    """Return the softmax of the scores of one tile."""
    b, h, q, k = tile
    scores = scaled[b, h, q] @ key[b, h, k].transpose(2, 3)
    if mask is not None:
        scores += mask[_index(mask, tile)]
    if is_causal and k.stop > q.start:
        scores[..., q.start :] += _causal_mask(q.stop - q.start, k.stop - q.start)
    return torch.softmax(scores, -1, out=scores)


def _kept(weights: Tensor, p: float, seed: int) -> Tensor:
    """Return ones for the attention weights that are kept, zeros for the others."""
    return mask_to_float(keep_mask(weights.numel(), p, seed)).view(weights.shape)


@lru_cache(maxsize=4)
def _causal_mask(queries: int, keys: int) -> Tensor:
    """Return ``(queries, keys)``: the lowest number where a key comes after the query, else 0."""
    # Adding a cached mask is faster than filling the scores in place.
    return torch.full((queries, keys), torch.finfo(torch.float32).min).triu_(1)


def _tiles(query: Tensor, key: Tensor, is_causal: bool) -> Iterator[Tile]:
    """Yield tiles of about :data:`_TILE_BYTES` of scores each."""
    rows, heads, queries, keys = *query.shape[:3], key.shape[2]
    length = min(queries, _CAUSAL_QUERIES) if is_causal else queries
    for start in range(0, queries, length):
        end = min(start + length, queries)
        visible_keys = min(end, keys) if is_causal else keys
        matrices = max(1, _TILE_BYTES // (4 * (end - start) * visible_keys))
        heads_per_tile = min(heads, matrices)
        rows_per_tile = max(1, matrices // heads)
        for row in range(0, rows, rows_per_tile):
            for head in range(0, heads, heads_per_tile):
                yield (
                    slice(row, min(row + rows_per_tile, rows)),
                    slice(head, min(head + heads_per_tile, heads)),
                    slice(start, end),
                    slice(0, visible_keys),
                )


def _index(mask: Tensor, tile: Tile) -> Any:
    """Return the index of a tile in a mask; dimensions of size 1 broadcast."""
    return tuple(slice(None) if size == 1 else part for size, part in zip(mask.shape, tile, strict=True))


def _accumulate(grad_mask: Tensor, grad_scores: Tensor, tile: Tile) -> None:
    """Add the gradient of a tile's scores to that of the mask, summed over broadcast dimensions."""
    part = grad_mask[_index(grad_mask, tile)]
    part += grad_scores.sum_to_size(part.shape)


def attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Implement the ``sdpa`` attention function of transformers.

    Calls with dropout on plain tensors go to :func:`attention`; all others to transformers' own function. The arguments
    are those of ``transformers.integrations.sdpa_attention.sdpa_attention_forward``.
    """
    from transformers.integrations.sdpa_attention import create_position_bias_mask, repeat_kv, sdpa_attention_forward

    has_unsupported = any(kwargs.get(name) is not None for name in ("cache", "softcap"))
    groups = getattr(module, "num_key_value_groups", 1)
    repeated = (repeat_kv(key, groups), repeat_kv(value, groups)) if groups > 1 and dropout else (key, value)
    if has_unsupported or not is_supported(query, *repeated, attention_mask, dropout):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, position_bias, **kwargs
        )
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    causal = query.shape[2] > 1 and attention_mask is None and causal
    if position_bias is not None:
        attention_mask = create_position_bias_mask(position_bias, attention_mask, causal, query, key)
        causal = False
    result = attention(query, *repeated, attention_mask, dropout, is_causal=causal, scale=scaling)
    return result.transpose(1, 2).contiguous(), None


@contextmanager
def fast_attention() -> Iterator[None]:
    """Register :func:`attention_forward` as the ``sdpa`` attention of transformers within the block."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as functions

    before = functions["sdpa"]
    functions["sdpa"] = attention_forward
    try:
        yield
    finally:
        functions["sdpa"] = before
