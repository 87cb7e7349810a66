"""Micro-batches of one size in padded tokens instead of rows: rows of like length together, in shuffled order.

Which rows share a batch and in which order the batches come is a function of the seed and the epoch alone; how many
there are is a function of the lengths alone. So the steps of a run are known before it, and a resumed run skips a count
of batches and goes on alike.
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
from fulltune.training.batches.unpadding import Lengths, parts
from fulltune.training.device import training_device, unpads

#: Lengths count as equal when they agree in this many leading bits: rows of "equal" length are dealt to batches anew
#: every epoch, at the price of a little padding.
LEADING_BITS = 4


def lengths_of(rows: Any, is_encoder_decoder: bool) -> list[Lengths]:
    """Lengths of the rows of a dataset with ``input_ids`` and ``labels``."""

    def target(row: Any) -> int:
        labels = row.get("labels") if is_encoder_decoder else None
        return len(labels) if labels is not None else 0

    items = (rows[number] for number in range(len(rows)))
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
    """Share of padding in the inputs of an epoch: of ``random`` batches of ``train.batch_size`` rows, and of those that
    training will draw (``used``), told from one epoch that is like them.
    """
    lengths = _feature_lengths(features, False, 0)
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(config.train.seed)).tolist()
    random = _padding(lengths, _slices(order, config.train.batch_size))
    return {"random": random, "used": _padding(lengths, computed(config, lengths))}


def computed(config: Config, lengths: Sequence[Lengths], epoch: int = 0) -> list[list[int]]:
    """Numbers of rows that are computed together in an epoch like one of training: micro-batches, or their parts."""
    batches = _drawn(config, lengths, epoch)
    if not unpads(config, training_device(config.trainer)):
        return batches
    return [[batch[place] for place in part] for batch in batches for part in parts([lengths[row] for row in batch])]


def _drawn(config: Config, lengths: Sequence[Lengths], epoch: int) -> list[list[int]]:
    if config.speed.batch_tokens is not None:
        return budget_batches(lengths, config.speed.batch_tokens, config.train.seed, epoch)
    size, generator = config.train.batch_size, torch.Generator().manual_seed(config.train.seed + epoch)
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
    """Numbers of rows, batch by batch: none has more than ``budget`` padded tokens unless it is a single row.

    The longest batch comes first in the first epoch, so that what does not fit in memory is known at once.
    """
    random = np.random.default_rng([seed, epoch])
    keys = [(_ceiling(source), _ceiling(target)) for source, target in lengths]
    order = sorted(random.permutation(len(keys)).tolist(), key=lambda row: keys[row], reverse=True)
    batches, start = [], 0
    for size in _sizes([keys[row] for row in order], budget):
        batches.append(order[start : start + size])
        start += size
    shuffled = [batches[place] for place in random.permutation(len(batches))]
    if epoch == 0 and batches:
        longest = shuffled.index(batches[0])
        shuffled[0], shuffled[longest] = shuffled[longest], shuffled[0]
    return shuffled


def batch_count(lengths: Sequence[Lengths], budget: int) -> int:
    """How many batches :func:`budget_batches` makes, whatever the seed and the epoch."""
    keys = sorted(((_ceiling(source), _ceiling(target)) for source, target in lengths), reverse=True)
    return sum(1 for _ in _sizes(keys, budget))


def _ceiling(length: int) -> int:
    """The length rounded up to :data:`LEADING_BITS` bits."""
    step = 1 << max(0, length.bit_length() - LEADING_BITS)
    return -(-length // step) * step


def _sizes(keys: Sequence[Lengths], budget: int) -> Iterator[int]:
    """Rows a batch, taken greedily from rows in falling order of their rounded lengths."""
    rows, widths = 0, (0, 0)
    for source, target in keys:
        wider = max(widths[0], source), max(widths[1], target)
        if rows and (rows + 1) * sum(wider) > budget:
            yield rows
            rows, wider = 0, (source, target)
        rows, widths = rows + 1, wider
    if rows:
        yield rows


class BudgetSampler(BatchRebalanceSampler):
    """:func:`budget_batches` for a data loader, each process its own share.

    A subclass of the one batch sampler that ``transformers.Trainer`` lets through to the loader as it is; nothing else
    of it is used. Where batches do not divide by the processes, the first ones come again, as in
    :class:`torch.utils.data.DistributedSampler`.

    Args:
        lengths: Of all rows.
        budget: Padded tokens of a batch.
        seed: Of the order.
        rank, processes: Whose share it is, and of how many.
    """

    def __init__(self, lengths: Sequence[Lengths], budget: int, seed: int, rank: int = 0, processes: int = 1) -> None:
        self.rows, self.budget, self.seed = tuple(lengths), budget, seed
        self.rank, self.processes, self.epoch = rank, processes, 0

    def __len__(self) -> int:
        return math.ceil(batch_count(self.rows, self.budget) / self.processes)

    def __iter__(self) -> Iterator[list[int]]:
        batches = budget_batches(self.rows, self.budget, self.seed, self.epoch)
        turns = range(self.rank, len(self) * self.processes, self.processes)
        return iter([batches[turn % len(batches)] for turn in turns])
