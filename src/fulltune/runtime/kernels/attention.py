"""Attention with dropout on a CPU, a stretch of queries at a time: no (queries × keys) matrix is ever kept.

``scaled_dot_product_attention`` leaves its memory-saving path as soon as there is dropout, and then keeps the softmax
of the scores, the mask and their product for the backward pass: 640 MB a layer for GPT-2 at 4 × 1024 tokens. Here the
backward pass makes them again, as Dao et al. 2022 ("FlashAttention", algorithm 4) do, with the mask drawn again from
its seed, in stretches that stay in the cache. Keys that no query of a stretch may see are left out.
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

from fulltune.runtime.kernels.dropout import as_numbers, draw_seed, keep_mask, rounded
from fulltune.runtime.kernels.linear import is_plain

#: Bytes of the scores of one stretch: the second-level cache of a core.
_STRETCH_BYTES = 2**21

#: Queries of one stretch where a later query sees more keys.
_CAUSAL_QUERIES = 256

Stretch = tuple[slice, slice, slice, slice]


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
    """As :func:`torch.nn.functional.scaled_dot_product_attention`, with another dropout mask.

    Args:
        query: ``(B, H, T, D)``.
        key, value: ``(B, H, S, D)`` and ``(B, H, S, E)``.
        mask: Broadcasts to ``(B, H, T, S)``: True where a key is seen, or a number that is added to its score.
        p: Dropout of the attention weights.
        is_causal: A query sees the keys up to its own place; not together with a mask.
        scale: Of the scores; default: 1/√D.
    """
    if not takes(query, key, value, mask, p):
        return F.scaled_dot_product_attention(query, key, value, mask, p, is_causal, scale=scale)
    if mask is not None:
        mask = _additive(mask, query.dtype)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    apply: Any = _Attention.apply
    result: Tensor = apply(query, key, value, mask, p, is_causal, scale, draw_seed())
    return result


def takes(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, p: float) -> bool:
    """Whether there is dropout, and the tensors are ordinary ones of four dimensions with the same heads."""
    if not 0.0 < p < 1.0 or not is_plain(query, key, value) or {query.dim(), key.dim(), value.dim()} != {4}:
        return False
    heads = query.shape[:2] == key.shape[:2] == value.shape[:2]
    return heads and (mask is None or (mask.dim() == 4 and mask.dtype in (torch.bool, torch.float32)))


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Hidden keys get the lowest number, so that a query that sees none (padding) does not become NaN."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *settings: Any) -> Tensor:
        ctx.save_for_backward(query, key, value, mask)
        ctx.settings = settings
        p, is_causal, scale, seed = settings
        scaled, output = query * scale, query.new_empty(*query.shape[:3], value.shape[3])
        for number, (b, h, q, k) in enumerate(_stretches(query, key, is_causal)):
            weights = _weights(scaled, key, mask, (b, h, q, k), is_causal)
            output[b, h, q] = weights.mul_(_kept(weights, p, seed + number)) @ value[b, h, k]
        return output.mul_(1 / (1 - rounded(p)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        query, key, value, mask = ctx.saved_tensors
        p, is_causal, scale, seed = ctx.settings
        scaled, above = query * scale, gradients[0] * (1 / (1 - rounded(p)))
        of_query, of_key, of_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        of_mask = torch.zeros_like(mask) if ctx.needs_input_grad[3] else None
        for number, (b, h, q, k) in enumerate(_stretches(query, key, is_causal)):
            weights = _weights(scaled, key, mask, (b, h, q, k), is_causal)
            kept = _kept(weights, p, seed + number)
            of_value[b, h, k] += (weights * kept).transpose(2, 3) @ above[b, h, q]
            of_weights = (above[b, h, q] @ value[b, h, k].transpose(2, 3)).mul_(kept)
            of_scores = torch._softmax_backward_data(of_weights, weights, -1, torch.float32)
            if of_mask is not None:
                _add(of_mask, of_scores, (b, h, q, k))
            of_query[b, h, q] = of_scores @ key[b, h, k]
            of_key[b, h, k] += of_scores.transpose(2, 3) @ scaled[b, h, q]
        return of_query.mul_(scale), of_key, of_value, of_mask, None, None, None, None


def _weights(scaled: Tensor, key: Tensor, mask: Tensor | None, stretch: Stretch, is_causal: bool) -> Tensor:
    """The softmax of one stretch's scores."""
    b, h, q, k = stretch
    scores = scaled[b, h, q] @ key[b, h, k].transpose(2, 3)
    if mask is not None:
        scores += mask[_within(mask, stretch)]
    if is_causal and k.stop > q.start:
        scores[..., q.start :] += _later(q.stop - q.start, k.stop - q.start)
    return torch.softmax(scores, -1, out=scores)


def _kept(weights: Tensor, p: float, seed: int) -> Tensor:
    """A one for each weight that is kept, else a zero."""
    return as_numbers(keep_mask(weights.numel(), p, seed)).view(weights.shape)


@lru_cache(maxsize=4)
def _later(queries: int, keys: int) -> Tensor:
    """``(queries, keys)``: the lowest number where a key is after the query, else 0; quicker to add than to fill in."""
    return torch.full((queries, keys), torch.finfo(torch.float32).min).triu_(1)


def _stretches(query: Tensor, key: Tensor, is_causal: bool) -> Iterator[Stretch]:
    """Rows, heads, queries and the keys that these see, of about :data:`_STRETCH_BYTES` of scores each."""
    rows, heads, queries, keys = *query.shape[:3], key.shape[2]
    length = min(queries, _CAUSAL_QUERIES) if is_causal else queries
    for start in range(0, queries, length):
        end = min(start + length, queries)
        seen = min(end, keys) if is_causal else keys
        matrices = max(1, _STRETCH_BYTES // (4 * (end - start) * seen))
        some_heads, some_rows = min(heads, matrices), max(1, matrices // heads)
        for row in range(0, rows, some_rows):
            for head in range(0, heads, some_heads):
                yield (
                    slice(row, min(row + some_rows, rows)),
                    slice(head, min(head + some_heads, heads)),
                    slice(start, end),
                    slice(0, seen),
                )


def _within(mask: Tensor, stretch: Stretch) -> Any:
    """The part of a mask that a stretch sees; a dimension of one serves all."""
    return tuple(slice(None) if size == 1 else part for size, part in zip(mask.shape, stretch, strict=True))


def _add(of_mask: Tensor, of_scores: Tensor, stretch: Stretch) -> None:
    part = of_mask[_within(of_mask, stretch)]
    part += of_scores.sum_to_size(part.shape)


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
    """What transformers calls for ``sdpa``: its own function wherever there is nothing to gain.

    Where the library calls SDPA with more than one query, an attention mask or none, and dropout, this one does the
    same by :func:`attention`.
    """
    from transformers.integrations.sdpa_attention import create_position_bias_mask, repeat_kv, sdpa_attention_forward

    others = {name for name, given in kwargs.items() if given is not None and name in ("cache", "softcap")}
    groups = getattr(module, "num_key_value_groups", 1)
    repeated = (repeat_kv(key, groups), repeat_kv(value, groups)) if groups > 1 and dropout else (key, value)
    if others or not takes(query, *repeated, attention_mask, dropout):
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
    """While it lasts, ``sdpa`` attention of transformers goes through :func:`attention_forward`."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as functions

    before = functions["sdpa"]
    functions["sdpa"] = attention_forward
    try:
        yield
    finally:
        functions["sdpa"] = before
