"""Draw dropout masks that are cheap on a CPU.

torch draws the mask of a dropout one number at a time from a Mersenne Twister: for GPT-2 with its default dropout, that
takes 40% of a forward pass. Here, a call draws one seed from torch's generator, and the bits of the mask, 16 per
element, come from SFC64 (Doty-Humphrey's Small Fast Counting generator, as implemented in NumPy), seeded per block.
So masks depend on ``torch.manual_seed``, are identical when activation checkpointing recomputes a layer, and a run that
resumes with torch's random state draws the same masks as an uninterrupted one.

The probability is rounded to a multiple of 2⁻¹⁶, and kept elements are scaled by the rounded probability, so that the
expectation is exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fulltune.runtime.kernels.linear import is_plain, replace_forwards

#: Elements per block. Each block has its own generator, so that blocks can be drawn in parallel.
_BLOCK = 2**20

#: Smallest tensor, in elements, for which seeding a generator costs less than torch's own dropout.
SMALLEST = 2**14

#: Number of representable probabilities: 16 bits per element.
_LEVELS = 2**16


def rounded_probability(p: float) -> float:
    """Return the probability that a mask has exactly: a multiple of 2⁻¹⁶, and neither 0 nor 1 unless ``p`` is."""
    if p in (0.0, 1.0):
        return p
    return min(max(round(p * _LEVELS), 1), _LEVELS - 1) / _LEVELS


def draw_seed() -> int:
    """Draw the seed of a mask from torch's CPU generator."""
    return int(torch.empty((), dtype=torch.int64).random_())


def keep_mask(size: int, p: float, seed: int) -> Tensor:
    """Draw a boolean mask of the elements to keep, each with probability 1 - :func:`rounded_probability` ``(p)``.

    Args:
        size: Number of elements.
        p: Probability of dropping an element.
        seed: From :func:`draw_seed`; the mask depends on nothing else.

    Returns:
        Booleans, ``(size,)``.
    """
    # As signed integers the levels run from -2¹⁵ to 2¹⁵ - 1; elements below the threshold are dropped.
    threshold = np.int16(round(rounded_probability(p) * _LEVELS) - _LEVELS // 2)
    kept = np.empty(size, dtype=np.bool_)
    blocks = range(0, size, _BLOCK)

    def draw_block(start: int) -> None:
        block = kept[start : start + _BLOCK]
        words = np.random.SFC64([seed, start // _BLOCK]).random_raw((len(block) + 3) // 4)
        np.greater_equal(words.view(np.int16)[: len(block)], threshold, out=block)

    if len(blocks) > 1 and torch.get_num_threads() > 1:
        list(_pool(torch.get_num_threads()).map(draw_block, blocks))
    else:
        for start in blocks:
            draw_block(start)
    return torch.from_numpy(kept)


def mask_to_float(kept: Tensor) -> Tensor:
    """Convert a boolean mask to ones and zeros in float32."""
    # torch converts bytes several times as fast as booleans.
    return kept.view(torch.uint8).float()


@lru_cache(maxsize=4)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="fulltune-masks")


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """Apply dropout like :func:`torch.nn.functional.dropout`, with a mask from :func:`keep_mask`."""
    if not training or not 0.0 < p < 1.0 or x.numel() < SMALLEST or not is_plain(x):
        return F.dropout(x, p, training)
    apply: Any = _Dropout.apply
    kept = keep_mask(x.numel(), p, draw_seed()).view(x.shape)
    result: Tensor = apply(x, kept, 1 / (1 - rounded_probability(p)))
    return result


class _Dropout(torch.autograd.Function):
    """Multiplication by a mask of which only the booleans are saved for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return mask_to_float(kept).mul_(scale).mul_(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (kept,) = ctx.saved_tensors
        return mask_to_float(kept).mul_(ctx.scale).mul_(gradients[0]), None, None


@contextmanager
def fast_dropouts(model: nn.Module) -> Iterator[int]:
    """Make the model's ``nn.Dropout`` layers use :func:`dropout` within the block; yield the number of layers."""

    def dropout_forward(layer: Any, input: Tensor) -> Tensor:
        if layer.inplace:
            return F.dropout(input, layer.p, layer.training, True)
        return dropout(input, layer.p, layer.training)

    with replace_forwards(model, {nn.Dropout: dropout_forward}) as layers:
        yield layers
