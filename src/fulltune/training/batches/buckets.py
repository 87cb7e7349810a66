"""Build micro-batches with a limit of padded tokens instead of rows: rows of similar length, in shuffled order.

The rows of each batch and the order of batches depend on the seed and the epoch only. The number of batches depends on
the lengths only. The steps of a run are therefore known before it starts, and a resumed run skips a number of batches
and continues identically.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from transformers.trainer_pt_utils import BatchRebalanceSampler, get_length_grouped_indices

from fulltune.config import Config
from fulltune.tasks.base import Features
from fulltune.training.batches.collate import Item, columns_of
from fulltune.training.batches.unpadding import Lengths, parts
from fulltune.training.device import training_device, unpads

#: Lengths are treated as equal if this many leading bits agree. Rows of equal length are assigned to batches again in
#: every epoch, at the cost of some padding.
LEADING_BITS = 4


def lengths_of(rows: Any, is_encoder_decoder: bool) -> list[Lengths]:
    """Return the lengths of the rows of a dataset with ``input_ids`` and ``labels``."""

    def target(row: Item) -> int:
        labels = row.get("labels") if is_encoder_decoder else None
        return len(labels) if labels is not None else 0

    items = (columns_of(rows[number]) for number in range(len(rows)))
    return [(len(row["input_ids"]), target(row)) for row in items]


def micro_batches(
    batch_tokens: int | None, features: Sequence[Features], *, is_encoder_decoder: bool, reserved: int = 0
) -> int | None:
    """Return the number of micro-batches per epoch; None if ``speed.batch_tokens`` is not set.

    Args:
        batch_tokens: ``speed.batch_tokens``, the limit of padded tokens per micro-batch.
        features: All training sequences.
        is_encoder_decoder: Inputs and targets are padded separately.
        reserved: Tokens that the method inserts before every input.
    """
    if batch_tokens is None:
        return None
    return batch_count(_feature_lengths(features, is_encoder_decoder, reserved), batch_tokens)


def padding_shares(config: Config, features: Sequence[Features]) -> dict[str, float]:
    """Return the fraction of padding in the inputs of an epoch.

    Returns:
        ``random``: for random batches of ``train.batch_size`` rows. ``used``: for one epoch as training draws it.
    """
    lengths = _feature_lengths(features, False, 0)
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(config.train.seed)).tolist()
    random = _padding(lengths, _slices(order, config.train.batch_size))
    return {"random": random, "used": _padding(lengths, computed(config, lengths))}


def computed(config: Config, lengths: Sequence[Lengths], epoch: int = 0) -> list[list[int]]:
    """Return the numbers of the rows that are computed together in an epoch: micro-batches, or their parts."""
    batches = _drawn(config, lengths, epoch)
    if not unpads(config, training_device(config.trainer)):
        return batches
    split = []
    for batch in batches:
        for part in parts([lengths[row] for row in batch]):
            split.append([batch[place] for place in part])
    return split


def _drawn(config: Config, lengths: Sequence[Lengths], epoch: int) -> list[list[int]]:
    if config.speed.batch_tokens is not None:
        return budget_batches(lengths, config.speed.batch_tokens, config.train.seed, epoch)
    size = config.train.batch_size
    generator = torch.Generator().manual_seed(config.train.seed + epoch)
    if config.trainer.get("train_sampling_strategy", "group_by_length") == "group_by_length":
        widths = [width for width, _ in lengths]
        order = get_length_grouped_indices(widths, size * config.train.accumulation, generator=generator)
    else:
        order = torch.randperm(len(lengths), generator=generator).tolist()
    return _slices(order, size)


def _feature_lengths(features: Sequence[Features], is_encoder_decoder: bool, reserved: int) -> list[Lengths]:
    def target(labels: Any) -> int:
        return len(labels) if is_encoder_decoder and isinstance(labels, list) else 0

    return [(reserved + len(item.input_ids), target(item.labels)) for item in features]


def _slices(order: list[int], size: int) -> list[list[int]]:
    return [order[start : start + size] for start in range(0, len(order), size)]


def _padding(lengths: Sequence[Lengths], batches: Sequence[Sequence[int]]) -> float:
    positions = sum(len(batch) * max(lengths[row][0] for row in batch) for batch in batches)
    tokens = sum(lengths[row][0] for batch in batches for row in batch)
    return round(1 - tokens / positions, 4) if positions else 0.0


def budget_batches(lengths: Sequence[Lengths], budget: int, seed: int, epoch: int) -> list[list[int]]:
    """Return the numbers of the rows of each batch of an epoch.

    The longest batch is the first one of the first epoch, so that an out-of-memory error occurs at once.

    Args:
        lengths: Lengths of all rows.
        budget: Largest number of padded tokens per batch; a batch of a single row may have more.
        seed: Seed of the order.
        epoch: Index of the epoch.
    """
    random = np.random.default_rng([seed, epoch])
    keys = [(_ceiling(source), _ceiling(target)) for source, target in lengths]
    order = sorted(random.permutation(len(keys)).tolist(), key=lambda row: keys[row], reverse=True)
    batches = []
    start = 0
    for size in _sizes([keys[row] for row in order], budget):
        batches.append(order[start : start + size])
        start += size
    shuffled = [batches[place] for place in random.permutation(len(batches))]
    if epoch == 0 and batches:
        longest = shuffled.index(batches[0])
        shuffled[0], shuffled[longest] = shuffled[longest], shuffled[0]
    return shuffled


def batch_count(lengths: Sequence[Lengths], budget: int) -> int:
    """Return the number of batches of :func:`budget_batches`, which is the same for all seeds and epochs."""
    keys = sorted(((_ceiling(source), _ceiling(target)) for source, target in lengths), reverse=True)
    return sum(1 for _ in _sizes(keys, budget))


def _ceiling(length: int) -> int:
    """Return a length rounded up to :data:`LEADING_BITS` bits."""
    step = 1 << max(0, length.bit_length() - LEADING_BITS)
    return -(-length // step) * step


def _sizes(keys: Sequence[Lengths], budget: int) -> Iterator[int]:
    """Yield the number of rows of each batch, chosen greedily from rows by decreasing rounded length."""
    rows = 0
    widths = (0, 0)
    for source, target in keys:
        wider = (max(widths[0], source), max(widths[1], target))
        if rows and (rows + 1) * sum(wider) > budget:
            yield rows
            rows = 0
            wider = (source, target)
        rows += 1
        widths = wider
    if rows:
        yield rows


class BudgetSampler(BatchRebalanceSampler):
    """Sample :func:`budget_batches` for a data loader; each process gets every n-th batch.

    If the number of batches is not divisible by the number of processes, the first ones are repeated, as in
    :class:`torch.utils.data.DistributedSampler`. The base class is the only batch sampler that
    ``transformers.Trainer`` passes to the loader unchanged; its code is not used.

    Args:
        lengths: Lengths of all rows.
        budget: Largest number of padded tokens per batch.
        seed: Seed of the order.
        rank: Index of this process.
        processes: Number of processes.
    """

    def __init__(self, lengths: Sequence[Lengths], budget: int, seed: int, rank: int = 0, processes: int = 1) -> None:
        self.rows = tuple(lengths)
        self.budget = budget
        self.seed = seed
        self.rank = rank
        self.processes = processes
        self.epoch = 0

    def __len__(self) -> int:
        return math.ceil(batch_count(self.rows, self.budget) / self.processes)

    def __iter__(self) -> Iterator[list[int]]:
        batches = budget_batches(self.rows, self.budget, self.seed, self.epoch)
        turns = range(self.rank, len(self) * self.processes, self.processes)
        return iter([batches[turn % len(batches)] for turn in turns])
