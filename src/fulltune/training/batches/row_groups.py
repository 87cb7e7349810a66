"""Group the rows of a batch so that each has the loss that it has alone.

Padding changes the outputs of some models (FNet mixes all positions, XLNet reads the last one), and some classifiers
require the same number of end tokens in every row. Batches of these models are computed in groups of equal rows. Each
model is tested (:mod:`fulltune.models.fast_paths`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fulltune.models.fast_paths import batching_is_neutral, on_one_side, padding_is_neutral, side
from fulltune.models.token_ids import IGNORED
from fulltune.runtime.log_once import log_once
from fulltune.training.batches.collate import INPUT_COLUMNS
from fulltune.training.batches.out_of_memory import row_count, take
from fulltune.training.objective import LabelKind

_log = logging.getLogger(__name__)

#: First and end column of the input of a row, and the end column of its target.
Extent = tuple[int, int, int]


@dataclass(frozen=True)
class Computed:
    """Outputs and losses of some rows.

    Attributes:
        outputs: Outputs of the model.
        total: Sum of the losses, a scalar.
        counts: Contribution of each row to the denominator, ``(B,)``, or their sum.
        row_losses: ``(B, 2)``: plain loss and count of each row; None in training.
    """

    outputs: Any
    total: Tensor
    counts: Tensor
    row_losses: Tensor | None = None


def row_groups(model: Any, batch: Mapping[str, Any], kind: LabelKind) -> list[list[int]] | None:
    """Return the numbers of the rows of each group; None if the batch can be computed unchanged.

    Args:
        model: Unwrapped.
        batch: ``(B, …)`` tensors by name.
        kind: Kind of the labels.
    """
    rows = row_count(batch)
    mask = batch.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return None
    extents = _extents(batch, mask, kind)
    ends = _end_tokens(model, batch, kind, rows)
    lengths = [max(extent) for extent in extents]
    # The longest row of each side of a change of positions.
    longest = {side(model, length): length for length in sorted(lengths)}.values()
    is_padded = len(set(extents)) > 1 or bool((mask == 0).any()) or extents[0][2] < _target_width(batch, kind)
    if rows < 2 and not is_padded:
        return None
    is_neutral = padding_is_neutral if is_padded else batching_is_neutral
    if all(is_neutral(model, length, in_training=True) for length in longest):
        kinds = [(*side(model, length), *end) for length, end in zip(lengths, ends, strict=True)]
        is_kept = len(set(kinds)) < 2 and on_one_side(model, (max(lengths), mask.shape[1]))
        return None if is_kept else _alike(kinds)
    if is_padded and all(batching_is_neutral(model, length, in_training=True) for length in longest):
        return _alike([(*extent, *end) for extent, end in zip(extents, ends, strict=True)])
    return [[row] for row in range(rows)]


def longest_row(batch: Mapping[str, Any]) -> int:
    """Return the width of a batch."""
    widths = [value.shape[1] for value in batch.values() if isinstance(value, Tensor) and value.dim() == 2]
    return max(widths, default=1)


def warn_of_padding(model: Any, length: int) -> None:
    """Warn once per class of models if padding changes its outputs, for batches that are not computed in groups.

    Args:
        model: Unwrapped and not sharded.
        length: Longest row, in tokens.
    """
    if not on_one_side(model, (1, length)) or not padding_is_neutral(model, length, in_training=True, is_logged=False):
        name = type(model).__name__
        log_once(
            _log,
            logging.WARNING,
            name,
            "padding changes the outputs of %s, and with several processes rows of different lengths are padded: their "
            "losses are not those of the rows alone; train with one process, or on rows of one length",
            name,
        )


def part_of(batch: Mapping[str, Any], rows: list[int], kind: LabelKind) -> dict[str, Any]:
    """Return some rows of a batch, without the columns on both sides that are padding in all of them."""
    part = take(batch, rows)
    mask = part["attention_mask"]
    begin, end = _used(mask != 0)
    width = mask.shape[1]
    names = [*INPUT_COLUMNS, *(["labels"] if kind in ("causal", "token") else [])]
    for name in names:
        value = part.get(name)
        if isinstance(value, Tensor) and value.dim() >= 2 and value.shape[1] == width:
            part[name] = value[:, begin:end].contiguous()  # models call view() on their labels
    if kind == "seq2seq" and "decoder_input_ids" not in part:
        part["labels"] = part["labels"][:, : _used(part["labels"] != IGNORED)[1]].contiguous()
    return part


def joined(parts: Sequence[Computed], groups: Sequence[Sequence[int]]) -> Computed:
    """Join the results of groups to that of the batch; logits are padded with zeros on the right."""
    if len(parts) == 1:
        return parts[0]
    order = torch.tensor([row for group in groups for row in group]).argsort()
    logits = [_logits(part.outputs) for part in parts]
    kept = [part.row_losses for part in parts if part.row_losses is not None]
    return Computed(
        outputs={"logits": _stacked(logits)[order]} if logits[0].dim() else parts[0].outputs,
        total=torch.stack([part.total for part in parts]).sum(),
        counts=torch.stack([part.counts.sum() for part in parts]).sum(),
        row_losses=torch.cat(kept)[order] if kept else None,
    )


def _alike(keys: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Group the numbers of equal keys, in the order of their first occurrence."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, key in enumerate(keys):
        groups.setdefault(key, []).append(number)
    return list(groups.values())


def _target_width(batch: Mapping[str, Any], kind: LabelKind) -> int:
    """Return the width of labels that are a separate text; 0 for any other labels."""
    return batch["labels"].shape[1] if kind == "seq2seq" and "decoder_input_ids" not in batch else 0


def _extents(batch: Mapping[str, Any], mask: Tensor, kind: LabelKind) -> list[Extent]:
    is_text = _target_width(batch, kind) > 0
    ends = [_used(row[None])[1] for row in batch["labels"] != IGNORED] if is_text else [0] * len(mask)
    return [(*_used(row[None] != 0), end) for row, end in zip(mask, ends, strict=True)]


def _used(used: Tensor) -> tuple[int, int]:
    """Return the first and the end column of ``(B, T)`` that any row uses; at least one column."""
    columns = used.any(dim=0).nonzero()
    return (int(columns[0]), int(columns[-1]) + 1) if columns.numel() else (0, 1)


def _end_tokens(model: Any, batch: Mapping[str, Any], kind: LabelKind, rows: int) -> list[tuple[int, ...]]:
    """Return the number of end tokens of each row if a classifier reads the last one (BART, T5)."""
    end = getattr(model.config, "eos_token_id", None)
    ids = batch.get("input_ids")
    is_read = kind in ("class", "multi-label", "regression") and model.config.is_encoder_decoder
    if not is_read or not isinstance(end, int) or not isinstance(ids, Tensor):
        return [()] * rows
    return [(count,) for count in (ids == end).sum(dim=1).tolist()]


def _logits(outputs: Any) -> Tensor:
    logits: Tensor = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
    return logits


def _stacked(logits: Sequence[Tensor]) -> Tensor:
    if logits[0].dim() < 3:
        return torch.cat(list(logits))
    width = max(part.shape[1] for part in logits)
    return torch.cat([F.pad(part, (0, 0, 0, width - part.shape[1])) for part in logits])
