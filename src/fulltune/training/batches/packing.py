"""Several documents in one row of a batch, kept apart: hardly any padding is computed, and no number changes.

Packing happens inside a micro-batch. Which documents are learnt from in a step stays as it was, and so do the steps,
the loss and its gradient; what goes is the empty room beside short documents. The library makes the block-diagonal
mask from positions that begin anew (flash attention its variable lengths); that a given model heeds them is tried, not
believed.
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
from fulltune.models.fast_paths import FAILURES, asked
from fulltune.models.kernel_check import gradients_agree
from fulltune.models.losses import IGNORED
from fulltune.runtime.log_once import log_once
from fulltune.training.loss_check import check_loss
from fulltune.training.objective import Objective, kind_of

_log = logging.getLogger(__name__)

#: Packed logits may differ from those of each document alone by this share of their largest value.
TOLERANCE = 1e-5

#: Lengths of the documents that a model is tried with.
_TRIED = (5, 9, 2)


def packs(model: Any, config: Config) -> bool:
    """Whether training packs documents: ``speed.packing`` asks for it and the model keeps them apart.

    NEFTune's noise shrinks with the width of a row, so packed documents would get less of it.
    """
    is_wanted = config.speed.packing == "auto" and not config.trainer.get("neftune_noise_alpha")
    if is_wanted:
        logging.getLogger("transformers.modeling_utils").addFilter(_is_no_false_alarm)
    if not is_wanted or kind_of(model) != "causal":
        return False
    facts = check_loss(model, "causal")
    if facts.kind != "causal" or not facts.is_cross_entropy:
        return False
    is_exact = keeps_documents_apart(model)
    if not is_exact:
        name, message = (
            type(model).__name__,
            "%s computes one document per row: packed documents would not be kept apart",
        )
        log_once(_log, logging.INFO, name, message, name)
    return is_exact


def _is_no_false_alarm(record: logging.LogRecord) -> bool:
    """Packed rows need no attention mask, and their ends of documents, where they pad too, look like padding."""
    return "passing in an `attention_mask`" not in record.getMessage()


def groups(lengths: Sequence[int]) -> list[list[int]]:
    """Documents, by number, that share a row as wide as the longest: first fit in falling order of length (Johnson
    1974, at most 11/9 of the fewest rows, and 1 more).
    """
    width, packed, room = max(lengths), list[list[int]](), list[int]()
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        row = next((row for row, free in enumerate(room) if free >= lengths[number]), len(room))
        if row == len(room):
            packed.append([])
            room.append(width)
        packed[row].append(number)
        room[row] -= lengths[number]
    return packed


def pack(documents: Sequence[Mapping[str, Any]]) -> dict[str, Tensor] | None:
    """Documents with ``input_ids`` and ``labels`` of equal length as one batch without an attention mask, or None where
    no row would be saved.

    Returns:
        ``input_ids``, ``labels`` and ``position_ids``, each ``(B', T)`` for the longest of the documents. A document's
        first token is no label, as nothing before it predicts it; padding has position 0 throughout, and is an ordinary
        token: the vector of a padding id is zero, and where nothing else is seen some models divide by its length.
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
    """A batch, its ``attention_mask`` told from the positions where it is packed (for counting; not for the model)."""
    if "attention_mask" in batch or "position_ids" not in batch:
        return dict(batch)
    return {**batch, "attention_mask": token_mask(batch["position_ids"]).long()}


def token_mask(position_ids: Tensor) -> Tensor:
    """Where a batch of :func:`pack` has tokens, ``(B, T)``; documents of a single token teach nothing and count as
    padding.
    """
    starts = (position_ids == 0) & (F.pad(position_ids[:, 1:], (0, 1)) == 1)
    return starts | (position_ids > 0)


@dataclass
class PaddingCount:
    """How much of what was computed were tokens.

    Attributes:
        tokens: Positions of inputs that hold one.
        positions: All positions of inputs.
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
    def share(self) -> float:
        """The share of padding, 0 to 1; NaN where nothing was counted."""
        return 1 - self.tokens / self.positions if self.positions else math.nan


def keeps_documents_apart(model: Any) -> bool:
    """Whether packed logits of this decoder equal those of each document alone, and their gradients too, tried on a few
    tokens.

    The model is asked in eval mode and left in the mode it was in.
    """
    random = torch.Generator().manual_seed(0)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    documents = [torch.randint(vocabulary, (length,), generator=random) for length in _TRIED]
    try:
        with asked(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some models only warn that they take no positions: their logits will tell
            return _logits_agree(model, documents) and _gradients_agree(model, documents)
    except torch.OutOfMemoryError:
        raise
    except FAILURES:  # it takes no positions, or none of this kind
        return False


@torch.no_grad()
def _logits_agree(model: Any, documents: Sequence[Tensor]) -> bool:
    orders = (documents, documents[::-1])
    alone = torch.cat([torch.cat([_logits(model, one[None]) for one in order], dim=1) for order in orders])
    places = torch.stack([torch.cat([torch.arange(len(one)) for one in order]) for order in orders])
    together = _logits(model, torch.stack([torch.cat(list(order)) for order in orders]), position_ids=places)
    return together.shape == alone.shape and bool((together - alone).abs().max() <= TOLERANCE * alone.abs().max())


def _gradients_agree(model: Any, documents: Sequence[Tensor]) -> bool:
    """Compare losses and gradients, those of padding beside the documents included."""
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
    found = torch.as_tensor(labels).clone()
    found[:1] = IGNORED
    return found


def _joined(rows: Sequence[Sequence[Tensor]], fill: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.cat(list(row)) for row in rows], True, fill)
