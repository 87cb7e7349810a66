"""Check on a few tokens that a fast computation gives the same loss and gradients as the plain one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fulltune.models.fast_paths import FAILURES, options, probes
from fulltune.models.modes import in_mode
from fulltune.models.padding import pad
from fulltune.models.teacher_forcing import decoder_input_ids
from fulltune.runtime.kernels.linear import fast_linears
from fulltune.runtime.kernels.products import PRODUCTS, Choices, shape_classes
from fulltune.runtime.log_once import log_once

#: Largest accepted difference of losses, relative to the loss, and of gradient entries, relative to the largest entry
#: of the parameter's gradient.
TOLERANCE = 1e-3

#: Gradient entries below this fraction of the largest gradient entry of the model are rounding errors.
_ROUNDING = 1e-5

#: Entries of each parameter's gradient that are compared.
_ENTRIES = 64

#: Tokens per row of a check.
_LENGTH = 12

#: All products of any size, so that a few tokens use the same kernels as many tokens.
_EVERYTHING = Choices(frozenset((product, sizes) for product in PRODUCTS for sizes in shape_classes()))

_log = logging.getLogger(__name__)

#: Results by architecture; the weights do not matter.
_results: dict[tuple[Any, ...], bool] = {}


def kernels_agree(model: nn.Module, choices: Choices) -> bool:
    """Return whether the products of ``choices`` leave a model's outputs and gradients unchanged.

    Results are cached by architecture. A model that does not run on token ids alone fails the check.
    """
    if not choices.onednn or not isinstance(model, PreTrainedModel) or not _is_plain(model):
        return True
    parts = tuple(sorted({type(module).__qualname__ for module in model.modules()}))
    is_trained = any(parameter.requires_grad for parameter in model.parameters())
    key = type(model), repr(vars(model.config)), parts, is_trained
    if key not in _results:
        _results[key] = _check_kernels(model)
    return _results[key]


def gradients_agree(model: nn.Module, plain: Callable[[], Tensor], fast: Callable[[], Tensor]) -> bool:
    """Return whether two computations give the same scalar and the same gradients of the trainable parameters.

    Only a few entries of each gradient are compared, so that one set of gradients at a time is in memory.

    Args:
        model: The model of both computations.
        plain: Returns the reference scalar.
        fast: Returns the scalar to check.

    Raises:
        Exception: Any error that the model raises.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    plain_loss, plain_entries = _sample(plain(), trainable)
    fast_loss, fast_entries = _sample(fast(), trainable)
    if not torch.isfinite(fast_loss):
        return False
    if abs(plain_loss - fast_loss) > TOLERANCE * max(1.0, abs(float(plain_loss))):
        return False
    largest = max((float(entries.abs().max()) for entries in plain_entries), default=0.0)
    return all(_close(*pair, largest) for pair in zip(plain_entries, fast_entries, strict=True))


def _close(plain: Tensor, fast: Tensor, largest: float) -> bool:
    allowed = max(TOLERANCE * float(plain.abs().max()), _ROUNDING * largest)
    return bool(torch.isfinite(fast).all()) and float((plain - fast).abs().max()) <= allowed


def _sample(loss: Tensor, trainable: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return a loss and some entries of each of its gradients, including the largest."""
    if not trainable or not loss.requires_grad:
        return loss.detach(), []
    gradients = torch.autograd.grad(loss, trainable, allow_unused=True)
    return loss.detach(), [_entries(gradient) for gradient in gradients]


def _entries(gradient: Tensor | None) -> Tensor:
    if gradient is None:
        return torch.zeros(1)
    flat = gradient.flatten()
    return torch.cat([flat[:: max(1, flat.numel() // _ENTRIES)], flat.abs().max()[None]]).float()


def _is_plain(model: PreTrainedModel) -> bool:
    """Return whether the kernels apply to a model: its weights are in float32 on the CPU."""
    first = next(model.parameters(), None)
    return first is not None and first.dtype == torch.float32 and first.device.type == "cpu"


def _check_kernels(model: PreTrainedModel) -> bool:
    """Compare a model with and without the kernels in eval mode; a failure is logged."""

    def accelerated() -> Tensor:
        with fast_linears(model, _EVERYTHING):
            return _projection(model)

    reason = "its loss or its gradients would change"
    try:
        with in_mode(model, training=False):
            if gradients_agree(model, lambda: _projection(model), accelerated):
                return True
    except torch.OutOfMemoryError:
        raise
    except FAILURES as error:
        reason = f"{type(error).__name__}: {error}"
    name = type(model).__name__
    log_once(_log, logging.WARNING, (name, reason), "%s computes without fast kernels: %s", name, reason)
    return False


def _projection(model: Any) -> Tensor:
    """Return one number that depends on every output of a model for two rows."""
    ids, mask = pad(probes(model, [_LENGTH, _LENGTH]), 0, model.device)
    inputs = {"input_ids": ids, "attention_mask": mask, **options(model)}
    if model.config.is_encoder_decoder and model.get_output_embeddings() is not None:
        inputs["decoder_input_ids"] = decoder_input_ids(model, ids)
    outputs = model.forward(**inputs)
    values: Tensor = (outputs["logits"] if "logits" in outputs else outputs[0]).flatten()
    return (values * torch.cos(torch.arange(len(values), device=values.device))).mean()
