"""Check which loss a model computes from its labels, on a few tokens.

The trainer computes the loss itself, as a sum over labels and with its own denominator, only if this check shows that
the model would compute the same. Otherwise (auxiliary losses of routers, several predicted tokens per position,
penalties) the loss of the model is used, and micro-batches are weighted by the number of their labels.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fulltune.models.fast_paths import FAILURES, checking, special_ids
from fulltune.models.teacher_forcing import decoder_input_ids
from fulltune.models.token_ids import IGNORED
from fulltune.runtime.log_once import log_once
from fulltune.training.objective import LabelKind, Objective, is_of_classes

#: Largest relative difference of two losses of the same logits that are equal, in float32.
TOLERANCE = 1e-5

#: The same in 16 bits, in units of the rounding of the loss.
_ROUNDINGS = 4

#: Config values of losses of routers, which a loss in 16 bits may be too coarse to show.
_ROUTERS = ("router_aux_loss_coef", "router_z_loss_coef")

#: Tokens per row of the check.
_LENGTH = 6

#: Tokens per target of the check, if it is a separate text.
_TARGET = 4

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LossCheck:
    """Result of checking the loss of a model.

    Attributes:
        kind: Kind of the labels.
        is_cross_entropy: The loss equals that of :class:`~fulltune.training.objective.Objective` of this kind.
        is_checked: The check succeeded; if not, the kind is that of the class of the model.
    """

    kind: LabelKind
    is_cross_entropy: bool
    is_checked: bool = True


@torch.no_grad()
def check_loss(model: Any, kind: LabelKind) -> LossCheck:
    """Check the loss of a model.

    Decoders that are parts of encoder-decoders read labels without a shift; for ``causal`` this is tested too.

    Args:
        model: Unwrapped. The check runs in eval mode; the mode of the model is restored.
        kind: Kind of labels that the class of the model reads.
    """
    batch = _sample(model, kind)
    try:
        with checking(model), _problem_type_kept(model):
            # ``forward`` is called directly, so that hooks of the user are not called.
            loss = _first(model.forward(**batch), "loss")
            logits = _first(model.forward(**without_labels(model, batch, kind)), "logits")
        known: tuple[LabelKind, ...] = ("causal", "token") if kind == "causal" else (kind,)
        errors = {one: _difference(one, loss, logits, batch["labels"]) for one in known}
    except torch.OutOfMemoryError:
        raise
    except FAILURES as error:
        name = type(model).__name__
        reason = type(error).__name__
        log_once(
            _log,
            logging.WARNING,
            (name, kind, reason),
            "%s computes its own loss, which cannot be checked: %s: %s",
            name,
            reason,
            error,
        )
        return LossCheck(kind, is_cross_entropy=False, is_checked=False)
    nearest = min(errors, key=lambda one: errors[one])
    result = LossCheck(nearest, is_cross_entropy=errors[nearest] <= _tolerance(model, loss))
    if not result.is_cross_entropy:
        log_once(
            _log,
            logging.WARNING,
            (type(model).__name__, kind, "another loss"),
            "%s computes its own loss, which differs from the cross-entropy of its logits by %.1e on a sample: "
            "training uses it; the evaluation loss is the cross-entropy",
            type(model).__name__,
            errors[nearest],
        )
    return result


@contextmanager
def _problem_type_kept(model: Any) -> Iterator[None]:
    """Restore the kind of labels in the config, which the loss of a classifier sets to that of its first labels."""
    before = getattr(model.config, "problem_type", None)
    try:
        yield
    finally:
        if getattr(model.config, "problem_type", None) != before:
            model.config.problem_type = before


def without_labels(model: Any, batch: Mapping[str, Any], kind: LabelKind) -> dict[str, Any]:
    """Return a batch for a forward pass with the logits from which the model computes its loss.

    The cache is disabled, as with labels: some models (FSMT) otherwise read only the last token.

    Args:
        model: Unwrapped.
        batch: A batch with labels.
        kind: Kind of the labels.
    """
    rest = {name: value for name, value in batch.items() if name != "labels"}
    if kind == "seq2seq" and rest.keys().isdisjoint(("decoder_input_ids", "decoder_inputs_embeds")):
        rest["decoder_input_ids"] = decoder_input_ids(model, batch["labels"])
    if "use_cache" in inspect.signature(model.forward).parameters:
        rest.setdefault("use_cache", False)
    return rest


def _difference(kind: LabelKind, loss: Tensor, logits: Tensor, labels: Tensor) -> float:
    """Return the relative difference between the loss of the model and that of a kind."""
    sums, counts = Objective(kind)(logits, labels)
    expected = float(sums.sum() / counts.sum())
    difference = abs(float(loss) - expected) / max(abs(expected), 1e-6)
    return difference if math.isfinite(difference) else math.inf


def _tolerance(model: Any, loss: Tensor) -> float:
    """Return the largest relative difference of equal losses, by the precision in which the model computes its loss."""
    config = model.config.get_text_config()
    is_routed = any(getattr(config, name, None) for name in _ROUTERS)
    coarse = loss.dtype in (torch.float16, torch.bfloat16) and not is_routed
    return _ROUNDINGS * torch.finfo(loss.dtype).eps if coarse else TOLERANCE


def _first(outputs: Any, name: str) -> Tensor:
    value: Tensor = outputs[name] if isinstance(outputs, dict) else outputs[0]
    return value


def _sample(model: Any, kind: LabelKind) -> dict[str, Tensor]:
    """Return a fixed batch of rows of one length; the number of labels differs between rows."""
    random = torch.Generator().manual_seed(0)
    ids = _ordinary_ids(model)

    def drawn(*shape: int) -> Tensor:
        return ids[torch.randint(len(ids), shape, generator=random)]

    # Decoders with a classification head accept several rows only with a padding id, which marks their ends.
    rows = 1 if kind in ("class", "multi-label", "regression") and _pad_id(model) is None else 2
    input_ids = drawn(rows, _LENGTH)
    end = getattr(model.config, "eos_token_id", None)
    if model.config.is_encoder_decoder and isinstance(end, int):
        input_ids[:, -1] = end
    batch = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    batch["labels"] = _labels(model, kind, drawn(rows, _TARGET if kind == "seq2seq" else _LENGTH), random)
    if kind == "causal":
        batch["labels"] = input_ids.clone()
        batch["labels"][0, : _LENGTH // 2] = IGNORED
    if kind == "seq2seq":
        batch["decoder_input_ids"] = decoder_input_ids(model, batch["labels"])
    return {name: value.to(model.device) for name, value in batch.items()}


def _labels(model: Any, kind: LabelKind, words: Tensor, random: torch.Generator) -> Tensor:
    rows = len(words)
    classes = int(getattr(model.config, "num_labels", 2))
    if kind == "class":
        return torch.randint(classes, (rows,), generator=random)
    if kind == "multi-label":
        return torch.randint(2, (rows, classes), generator=random).float()
    if kind == "regression":
        return torch.rand((rows, classes) if classes > 1 else (rows,), generator=random)
    labels = torch.randint(classes, words.shape, generator=random) if is_of_classes(model) else words
    labels[0, -2:] = IGNORED
    return labels


def _ordinary_ids(model: Any) -> Tensor:
    """Return the ids of ordinary tokens that are in the vocabulary of all embeddings and heads of a model."""
    names = ("vocab_size", "src_vocab_size", "tgt_vocab_size", "decoder_vocab_size")
    configs = (model.config, model.config.get_text_config())
    sizes = [size for config in configs for name in names if isinstance(size := getattr(config, name, None), int)]
    special = special_ids(model.config)
    return torch.tensor([token for token in range(min(sizes, default=100)) if token not in special] or [0])


def _pad_id(model: Any) -> int | None:
    known = (getattr(config, "pad_token_id", None) for config in (model.config, model.config.get_text_config()))
    return next((value for value in known if value is not None), None)
