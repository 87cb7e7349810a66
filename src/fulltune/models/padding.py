"""Batch items of unequal length: sort and pad them, and return results in input order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Number of batches that are sorted by length together.
SORTED_BATCHES = 32


def sorted_batches(
    items: Iterable[Item],
    apply: Callable[[Sequence[Item]], list[Result]],
    length: Callable[[Item], int],
    batch_size: int,
) -> Iterator[Result]:
    """Apply a function to batches of items sorted by length within a bounded buffer; yield results in input order."""
    iterator = iter(items)
    while buffer := list(islice(iterator, batch_size * SORTED_BATCHES)):
        order = sorted(range(len(buffer)), key=lambda index: length(buffer[index]), reverse=True)
        results: dict[int, Result] = {}
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            results.update(zip(indices, apply([buffer[index] for index in indices]), strict=True))
        for index in range(len(buffer)):
            yield results[index]


def pad(
    rows: Sequence[Sequence[int]], value: int, device: torch.device, *, left: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows of ids as ``(B, T)``, and their attention mask, which depends on lengths, not on the padding id."""
    width = max(1, *(len(row) for row in rows)) if len(rows) > 1 else max(1, len(rows[0]))
    ids = torch.full((len(rows), width), value, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        columns = slice(width - len(row), width) if left else slice(0, len(row))
        ids[index, columns] = torch.tensor(row, dtype=torch.long)
        mask[index, columns] = 1
    return ids.to(device), mask.to(device)
