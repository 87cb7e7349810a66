"""Items of unequal length in batches: sorted, padded, and given back in the order in which they came."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Batches looked at together when sorting by length.
SORTED_BATCHES = 32


def sorted_batches(
    items: Iterable[Item],
    apply: Callable[[Sequence[Item]], list[Result]],
    length: Callable[[Item], int],
    batch_size: int,
) -> Iterator[Result]:
    """Apply a batch function to items sorted by length within a bounded stretch; yield in the order of the input."""
    iterator = iter(items)
    while stretch := list(islice(iterator, batch_size * SORTED_BATCHES)):
        order = sorted(range(len(stretch)), key=lambda index: length(stretch[index]), reverse=True)
        results: dict[int, Result] = {}
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            results.update(zip(indices, apply([stretch[index] for index in indices]), strict=True))
        yield from (results[index] for index in range(len(stretch)))


def pad(
    rows: Sequence[Sequence[int]], value: int, device: torch.device, *, left: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids as ``(B, T)`` with an attention mask made from their lengths, never from the padding id."""
    width = max(1, *(len(row) for row in rows)) if len(rows) > 1 else max(1, len(rows[0]))
    ids = torch.full((len(rows), width), value, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[index, place] = torch.tensor(row, dtype=torch.long)
        mask[index, place] = 1
    return ids.to(device), mask.to(device)
