"""Split a micro-batch into parts of similar length, to avoid computing padding.

A batch with one row of 512 tokens and fifteen rows of 60 is five sixths padding. Its loss is a sum over rows, divided
by the count of all rows, so the gradients of parts add up to the gradient of the batch: the step is the same, with less
work. Each part has a cost, since its gradients are added to those before it, so a batch is split only where that is
faster. On an accelerator, which is efficient with few large products, batches are not split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fulltune.training.batches.collate import trim
from fulltune.training.batches.out_of_memory import take
from fulltune.training.objective import LabelKind

#: Fixed cost of a part, in tokens. A token takes 6 operations per parameter (Kaplan et al. 2020, table 1). Adding
#: gradients moves 12 bytes per parameter, which takes as long as about 40 tokens on two cores; the rest is for calls.
OVERHEAD = 128

#: Tokens of the input of a row and, in an encoder-decoder, of its target.
Lengths = tuple[int, int]


def parts(lengths: Sequence[Lengths]) -> list[list[int]]:
    """Return the numbers of the rows of each part, the longest first.

    Of all ways to split the rows by decreasing length, this is the one with the fewest padded tokens and overheads. A
    single part has the rows in their order.
    """
    order = sorted(range(len(lengths)), key=lambda row: lengths[row], reverse=True)
    # By number of first rows in this order: their least cost, and the beginning of their last part.
    least = [0]
    begins = [0]
    for end in range(1, len(order) + 1):
        source = target = 0
        best = -1
        begin = end
        for start in range(end - 1, -1, -1):
            source = max(source, lengths[order[start]][0])
            target = max(target, lengths[order[start]][1])
            cost = least[start] + OVERHEAD + (end - start) * (source + target)
            if best < 0 or cost < best:
                best = cost
                begin = start
        least.append(best)
        begins.append(begin)
    split = list[list[int]]()
    end = len(order)
    while end:
        split.append(order[begins[end] : end])
        end = begins[end]
    return split[::-1] if len(split) > 1 else [list(range(len(lengths)))]


def unpadded(batch: Any, kind: LabelKind) -> list[Any]:
    """Return the parts of a batch, each as wide as its longest row; only the batch itself if splitting is not faster.

    Args:
        batch: ``(B, …)`` tensors by name, padded on the right. Values that are not per row are part of every one.
        kind: Kind of the labels, which may be a separate text.
    """
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return [batch]
    labels = batch["labels"] if kind == "seq2seq" and "decoder_input_ids" not in batch else None
    targets = [0] * len(mask) if labels is None else _used(labels != -100)
    split = parts(list(zip(_used(mask != 0), targets, strict=True)))
    if len(split) == 1:
        return [batch]
    return [_part(batch, rows, kind) for rows in split]


def _used(mask: Tensor) -> list[int]:
    """Return the width of each row up to its last used column."""
    numbers = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    widths: list[int] = (mask * numbers).amax(dim=1).tolist()
    return widths


def _part(batch: Mapping[str, Any], rows: list[int], kind: LabelKind) -> dict[str, Any]:
    part = take(batch, rows)
    trim(part, kind)
    return part
