"""Pack several documents into one row of a batch, without attention between them and with hardly any padding.

Documents are packed within a micro-batch. The documents of a step, the number of steps, the loss and its gradient do
not change. The library derives the block-diagonal mask, or the variable lengths of flash attention, from positions that
restart at 0. Some models ignore these positions, so each model is tested before documents are packed.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fulltune.config import Config
from fulltune.models.fast_paths import FAILURES, checking, on_one_side
from fulltune.models.kernel_check import gradients_agree
from fulltune.models.reconcile import own_limit
from fulltune.models.token_ids import IGNORED
from fulltune.runtime.log_once import log_once
from fulltune.training.loss_check import check_loss
from fulltune.training.objective import Objective, kind_of

_log = logging.getLogger(__name__)

#: Largest difference between packed and separate logits, relative to the largest logit.
TOLERANCE = 1e-5

#: Lengths of the documents of the test.
_TRIED = (5, 9, 2)


def packs(model: Any, config: Config) -> bool:
    """Return True if training packs documents: ``speed.packing`` is on, and the model keeps them apart.

    Documents are not packed with NEFTune, whose noise decreases with the width of a row.
    """
    is_wanted = config.speed.packing == "auto" and not config.trainer.get("neftune_noise_alpha")
    if is_wanted:
        logging.getLogger("transformers.modeling_utils").addFilter(_is_not_about_masks)
    if not is_wanted or kind_of(model) != "causal":
        return False
    loss = check_loss(model, "causal")
    if loss.kind != "causal" or not loss.is_cross_entropy:
        return False
    # The longest document of a batch would change the positions of the others.
    longest = config.data.max_length or own_limit(model) or 1
    is_exact = on_one_side(model, (1, longest)) and keeps_documents_apart(model)
    if not is_exact:
        name = type(model).__name__
        message = "%s computes one document per row: packed documents would not be kept apart"
        log_once(_log, logging.INFO, name, message, name)
    return is_exact


def _is_not_about_masks(record: logging.LogRecord) -> bool:
    """Return False for a false warning: packed rows need no mask, and an end token may have the id of padding."""
    return "passing in an `attention_mask`" not in record.getMessage()


def groups(lengths: Sequence[int]) -> list[list[int]]:
    """Return the numbers of the documents of each row, which is as wide as the longest document.

    This is first fit by decreasing length (Johnson 1974), with at most 11/9 of the fewest possible rows plus 1.
    """
    width = max(lengths)
    packed = list[list[int]]()
    room = list[int]()
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        row = next((row for row, free in enumerate(room) if free >= lengths[number]), len(room))
        if row == len(room):
            packed.append([])
            room.append(width)
        packed[row].append(number)
        room[row] -= lengths[number]
    return packed


def pack(documents: Sequence[Mapping[str, Any]]) -> dict[str, Tensor] | None:
    """Pack documents into a batch without an attention mask.

    Args:
        documents: Rows with ``input_ids`` and ``labels`` of the same length.

    Returns:
        ``input_ids``, ``labels`` and ``position_ids``, each ``(B', T)`` for the longest document; None if packing saves
        no row. The first token of a document is not a label, because no token predicts it. Padding has position 0 and
        the id of an ordinary token: the embedding of a padding id is zero, and some models divide by its norm.
    """
    packed = groups([len(document["input_ids"]) for document in documents])
    if len(packed) == len(documents):
        return None
    filler = int(documents[0]["input_ids"][0])
    rows = [[documents[number] for number in row] for row in packed]
    return {
        "input_ids": _joined([[torch.as_tensor(one["input_ids"]) for one in row] for row in rows], filler),
        "labels": _joined([[_first_ignored(one["labels"]) for one in row] for row in rows], IGNORED),
        "position_ids": _joined([[torch.arange(len(one["input_ids"])) for one in row] for row in rows], 0),
    }


def with_token_mask(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch with an ``attention_mask``, computed from the positions if it is packed; for counts only."""
    if "attention_mask" in batch or "position_ids" not in batch:
        return dict(batch)
    return {**batch, "attention_mask": token_mask(batch["position_ids"]).long()}


def token_mask(position_ids: Tensor) -> Tensor:
    """Return the positions of tokens in a batch of :func:`pack`, ``(B, T)``.

    A document of a single token has no label and counts as padding.
    """
    starts = (position_ids == 0) & (F.pad(position_ids[:, 1:], (0, 1)) == 1)
    return starts | (position_ids > 0)


@dataclass
class PaddingCount:
    """Count tokens and padding in the computed inputs.

    Attributes:
        tokens: Number of positions with a token.
        positions: Number of all positions.
    """

    tokens: int = 0
    positions: int = 0

    def add(self, batch: Mapping[str, Any]) -> None:
        """Count a batch that has a mask."""
        mask = batch.get("attention_mask")
        if isinstance(mask, Tensor):
            self.tokens += int((mask != 0).sum())
            self.positions += mask.numel()

    @property
    def fraction(self) -> float:
        """Fraction of padding, 0 to 1; NaN if nothing was counted."""
        return 1 - self.tokens / self.positions if self.positions else math.nan


def keeps_documents_apart(model: Any) -> bool:
    """Return True if packed documents have the logits and gradients of separate ones, tested on a few tokens.

    The test runs in eval mode; the mode of the model is restored.

    Args:
        model: A decoder, unwrapped.
    """
    random = torch.Generator().manual_seed(0)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    documents = [torch.randint(vocabulary, (length,), generator=random) for length in _TRIED]
    try:
        with checking(model), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # some models warn that they ignore positions; the comparison of logits detects this
            return _logits_agree(model, documents) and _gradients_agree(model, documents)
    except torch.OutOfMemoryError:
        raise
    except FAILURES:  # the model takes no positions, or not these ones
        return False


@torch.no_grad()
def _logits_agree(model: Any, documents: Sequence[Tensor]) -> bool:
    orders = (documents, documents[::-1])
    alone = torch.cat([torch.cat([_logits(model, one[None]) for one in order], dim=1) for order in orders])
    places = torch.stack([torch.cat([torch.arange(len(one)) for one in order]) for order in orders])
    together = _logits(model, torch.stack([torch.cat(list(order)) for order in orders]), position_ids=places)
    return together.shape == alone.shape and bool((together - alone).abs().max() <= TOLERANCE * alone.abs().max())


def _gradients_agree(model: Any, documents: Sequence[Tensor]) -> bool:
    """Compare the losses and gradients of packed and separate documents; the packed row has padding."""
    packed = pack([{"input_ids": one.tolist(), "labels": one.tolist()} for one in documents])
    assert packed is not None
    loss = Objective("causal")

    def alone() -> Tensor:
        return torch.stack([loss(_logits(model, one[None]), one[None])[0].sum() for one in documents]).sum()

    def together() -> Tensor:
        logits = _logits(model, packed["input_ids"], position_ids=packed["position_ids"])
        return loss(logits, packed["labels"])[0].sum()

    return gradients_agree(model, alone, together)


def _logits(model: Any, ids: Tensor, **inputs: Tensor) -> Tensor:
    on_device = {name: value.to(model.device) for name, value in inputs.items()}
    logits: Tensor = model.forward(input_ids=ids.to(model.device), use_cache=False, **on_device).logits
    return logits.float()


def _first_ignored(labels: Sequence[int]) -> Tensor:
    changed = torch.as_tensor(labels).clone()
    changed[:1] = IGNORED
    return changed


def _joined(rows: Sequence[Sequence[Tensor]], fill: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.cat(list(row)) for row in rows], True, fill)
