"""Checks, on a few tokens, that a fast way of computing gives the loss and the gradients of the plain one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fulltune.models.fast_paths import FAILURES, options, probes
from fulltune.models.padding import pad
from fulltune.models.teacher_forcing import decoder_input_ids
from fulltune.runtime.kernels.linear import fast_linears
from fulltune.runtime.kernels.products import PRODUCTS, Choices, shape_classes
from fulltune.runtime.log_once import log_once

#: Largest difference between losses, and between entries of gradients, that count as equal; as a fraction of the loss,
#: and of the largest entry of the parameter's gradient.
TOLERANCE = 1e-3

#: A gradient whose entries are below this fraction of the largest of all is rounding, not a gradient.
_ROUNDING = 1e-5

#: Entries of each parameter's gradient that are compared.
_ENTRIES = 64

#: Tokens of the rows of a check.
_LENGTH = 12

#: Every product, of any size, so that a few tokens take the way that many take.
_EVERYTHING = Choices(frozenset((product, sizes) for product in PRODUCTS for sizes in shape_classes()))

_log = logging.getLogger(__name__)

#: Results by what a model is made of: its weights change nothing.
_results: dict[tuple[Any, ...], bool] = {}


def kernels_agree(model: nn.Module, choices: Choices) -> bool:
    """Return True if a model computes the same with the products of ``choices`` as without, its gradients included.

    A model that cannot be asked with tokens alone is none of which this is known. The result is kept by what the model
    is made of.
    """
    if not choices.onednn or not isinstance(model, PreTrainedModel) or not _is_plain(model):
        return True
    parts = tuple(sorted({type(module).__qualname__ for module in model.modules()}))
    key = type(model), model.config.to_json_string(), parts, any(one.requires_grad for one in model.parameters())
    if key not in _results:
        _results[key] = _check_kernels(model)
    return _results[key]


def gradients_agree(model: nn.Module, plain: Callable[[], Tensor], fast: Callable[[], Tensor]) -> bool:
    """Return True if two ways give the same scalar and the same gradients of the trainable parameters.

    Of each gradient a few entries are kept, so that only one set of gradients is in memory at a time.

    Raises:
        Exception: Whatever the model raises over the inputs.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    (one, ours), (other, theirs) = _sample(plain(), trainable), _sample(fast(), trainable)
    if not torch.isfinite(other) or abs(one - other) > TOLERANCE * max(1.0, abs(float(one))):
        return False
    largest = max((float(entries.abs().max()) for entries in ours), default=0.0)
    return all(_close(*pair, largest) for pair in zip(ours, theirs, strict=True))


def _close(plain: Tensor, fast: Tensor, largest: float) -> bool:
    allowed = max(TOLERANCE * float(plain.abs().max()), _ROUNDING * largest)
    return bool(torch.isfinite(fast).all()) and float((plain - fast).abs().max()) <= allowed


def _sample(loss: Tensor, trainable: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return a loss and some entries of each of its gradients, the largest among them."""
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
    """Return True for a model whose layers the kernels would change: in float32 on the CPU, all in one piece."""
    first = next(model.parameters(), None)
    return first is not None and first.dtype == torch.float32 and first.device.type == "cpu"


def _check_kernels(model: PreTrainedModel) -> bool:
    def accelerated() -> Tensor:
        with fast_linears(model, _EVERYTHING):
            return _projection(model)

    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    reason = "its loss or its gradients would change"
    try:
        if gradients_agree(model, lambda: _projection(model), accelerated):
            return True
    except torch.OutOfMemoryError:
        raise
    except FAILURES as error:
        reason = f"{type(error).__name__}: {error}"
    finally:
        for module, mode in modes:
            module.training = mode
    name = type(model).__name__
    log_once(_log, logging.WARNING, (name, reason), "%s computes without fast kernels: %s", name, reason)
    return False


def _projection(model: Any) -> Tensor:
    """Return what a model computes of two rows, as one number that each of its outputs moves."""
    ids, mask = pad(probes(model, [_LENGTH, _LENGTH]), 0, model.device)
    inputs = {"input_ids": ids, "attention_mask": mask, **options(model)}
    if model.config.is_encoder_decoder and model.get_output_embeddings() is not None:
        inputs["decoder_input_ids"] = decoder_input_ids(model, ids)
    outputs = model.forward(**inputs)
    values: Tensor = (outputs["logits"] if "logits" in outputs else outputs[0]).flatten()
    return (values * torch.cos(torch.arange(len(values), device=values.device))).mean()
