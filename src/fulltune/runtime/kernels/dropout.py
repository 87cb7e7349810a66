"""Dropout whose masks are cheap on a CPU, and attention with dropout that keeps none of its matrices.

torch draws the mask of a dropout one number at a time from a Mersenne Twister: for GPT-2 with its default dropout that
is 40% of a forward pass. Here a call draws one seed from torch's generator, and the mask's bits, 16 for each element,
come from SFC64 (Doty-Humphrey's Small Fast Counting generator, as NumPy has it), block by block from that seed. So
masks follow ``torch.manual_seed``, are the same again when a checkpointed layer is computed twice, and a run that
resumes with torch's random state goes on with the masks that it would have had.

A probability is rounded to a multiple of 2⁻¹⁶, and what is kept is scaled by the rounded one, so that expectations are
exact.
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

from fulltune.runtime.kernels.linear import is_plain, replaced_forwards

#: Elements of one block, each with a generator of its own: blocks can be drawn side by side.
_BLOCK = 2**20

#: Below this many elements torch's own dropout costs less than a generator's seed.
SMALLEST = 2**14

_LEVELS = 2**16


def rounded(p: float) -> float:
    """The probability that a mask really has: a multiple of 2⁻¹⁶, and neither 0 nor 1 unless ``p`` is."""
    return p if p in (0.0, 1.0) else min(max(round(p * _LEVELS), 1), _LEVELS - 1) / _LEVELS


def draw_seed() -> int:
    """One number from torch's generator on the CPU: all that a mask depends on besides its size."""
    return int(torch.empty((), dtype=torch.int64).random_())


def keep_mask(size: int, p: float, seed: int) -> Tensor:
    """``(size,)`` of bool: what is kept, each element with probability 1 - :func:`rounded` ``(p)``."""
    # As signed numbers the levels run from -2¹⁵ to 2¹⁵ - 1: those below the threshold are dropped.
    threshold = np.int16(round(rounded(p) * _LEVELS) - _LEVELS // 2)
    kept = np.empty(size, dtype=np.bool_)
    blocks = range(0, size, _BLOCK)

    def draw(start: int) -> None:
        block = kept[start : start + _BLOCK]
        words = np.random.SFC64([seed, start // _BLOCK]).random_raw((len(block) + 3) // 4)
        np.greater_equal(words.view(np.int16)[: len(block)], threshold, out=block)

    if len(blocks) > 1 and torch.get_num_threads() > 1:
        list(_pool(torch.get_num_threads()).map(draw, blocks))
    else:
        for start in blocks:
            draw(start)
    return torch.from_numpy(kept)


def as_numbers(kept: Tensor) -> Tensor:
    """Ones and zeros in float32, for products: torch converts octets many times as fast as booleans."""
    return kept.view(torch.uint8).float()


@lru_cache(maxsize=4)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="fulltune-masks")


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """As :func:`torch.nn.functional.dropout`, with another mask."""
    if not training or not 0.0 < p < 1.0 or x.numel() < SMALLEST or not is_plain(x):
        return F.dropout(x, p, training)
    apply: Any = _Dropout.apply
    result: Tensor = apply(x, keep_mask(x.numel(), p, draw_seed()).view(x.shape), 1 / (1 - rounded(p)))
    return result


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return as_numbers(kept).mul_(scale).mul_(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (kept,) = ctx.saved_tensors
        return as_numbers(kept).mul_(ctx.scale).mul_(gradients[0]), None, None


@contextmanager
def fast_dropouts(model: nn.Module) -> Iterator[int]:
    """While it lasts, the model's ``nn.Dropout`` layers draw cheap masks; gives how many do."""

    def dropout_forward(layer: Any, input: Tensor) -> Tensor:
        return (
            F.dropout(input, layer.p, layer.training, True)
            if layer.inplace
            else dropout(input, layer.p, layer.training)
        )

    with replaced_forwards(model, {nn.Dropout: dropout_forward}) as layers:
        yield layers
