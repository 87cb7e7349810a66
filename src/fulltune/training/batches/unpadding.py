"""A micro-batch whose rows differ much in length, computed in parts of like length: padding is work too.

One row of 512 tokens among fifteen of 60 makes a batch that is five sixths padding. Its loss is a sum over rows divided
by what all of them count, so the parts' gradients add up to those of the whole: the same step for less work. A part
costs something of its own, because its gradients are added to those that are there, so few parts are made, and none
where they do not pay. On an accelerator, which wants few and large products, batches stay whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fulltune.training.batches.collate import trim
from fulltune.training.batches.out_of_memory import take
from fulltune.training.objective import Kind

#: What a part costs beside its tokens, in tokens. A token takes 6 operations a parameter (Kaplan et al. 2020, table 1);
#: adding gradients moves 12 bytes a parameter, the time of about 40 tokens on two cores; the rest is calls.
OVERHEAD = 128

#: Tokens of a row's input and, in an encoder-decoder, of its target.
Lengths = tuple[int, int]


def parts(lengths: Sequence[Lengths]) -> list[list[int]]:
    """Numbers of rows, part by part, the longest first: of all ways to cut the rows in falling order of length the one
    whose padded tokens and overheads are least. All rows in the order given where that is a single part.
    """
    order = sorted(range(len(lengths)), key=lambda row: lengths[row], reverse=True)
    least, begins = [0], [0]  # of the first rows in this order: their cost, and where their last part begins
    for end in range(1, len(order) + 1):
        source = target = 0
        best, begin = -1, end
        for start in range(end - 1, -1, -1):
            source, target = max(source, lengths[order[start]][0]), max(target, lengths[order[start]][1])
            cost = least[start] + OVERHEAD + (end - start) * (source + target)
            if best < 0 or cost < best:
                best, begin = cost, start
        least.append(best)
        begins.append(begin)
    found, end = list[list[int]](), len(order)
    while end:
        found.append(order[begins[end] : end])
        end = begins[end]
    return found[::-1] if len(found) > 1 else [list(range(len(lengths)))]


def unpadded(batch: Any, kind: Kind) -> list[Any]:
    """A batch in parts, each as wide as its longest row; the batch itself where it is no better in parts.

    Args:
        batch: ``(B, …)`` tensors by name, padded on the right. What is no tensor with a row each goes to every part.
        kind: Of the loss; it tells whether the labels are a text of their own.
    """
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return [batch]
    labels = batch["labels"] if kind == "seq2seq" and "decoder_input_ids" not in batch else None
    targets = [0] * len(mask) if labels is None else _used(labels != -100)
    found = parts(list(zip(_used(mask != 0), targets, strict=True)))
    if len(found) == 1:
        return [batch]
    return [_part(batch, rows, kind) for rows in found]


def _used(mask: Tensor) -> list[int]:
    """Columns of each row up to its last one that is used."""
    numbers = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    found: list[int] = (mask * numbers).amax(dim=1).tolist()
    return found


def _part(batch: Mapping[str, Any], rows: list[int], kind: Kind) -> dict[str, Any]:
    part = take(batch, rows)
    trim(part, kind)
    return part
