"""Quantize linear layers to 4-bit NormalFloat with double quantization (Dettmers et al. 2023, QLoRA), and restore them.

Weights are quantized by bitsandbytes; products are computed in float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fulltune.models.adapters.packages import bitsandbytes


def quantize(model: nn.Module, names: Iterable[str]) -> None:
    """Replace linear layers (and GPT-2's ``Conv1D``) by 4-bit ones, one at a time."""
    for name in names:
        layer = model.get_submodule(name)
        model.set_submodule(name, _quantized(layer))


def _quantized(layer: Any) -> nn.Module:
    """Return a 4-bit layer with the weight and bias of a linear layer."""
    bnb = bitsandbytes()
    weight = layer.weight.detach()
    is_transposed = isinstance(layer, Conv1D)
    weight = weight.T.contiguous() if is_transposed else weight
    new = bnb.nn.Linear4bit(
        weight.shape[1],
        weight.shape[0],
        bias=layer.bias is not None,
        compute_dtype=torch.float32,
        compress_statistics=True,
        quant_type="nf4",
        device="meta",
    )
    new.weight = bnb.nn.Params4bit(
        weight, requires_grad=False, compress_statistics=True, quant_type="nf4", module=new
    ).to(weight.device)
    if layer.bias is not None:
        new.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    # On CPUs with bfloat16 products, the layer would repack its weights in eval mode for a product without gradients:
    # after the first evaluation, training would have no effect.
    new.support_avx512bf16_for_cpu = False
    new.compute_type_is_set = True
    new.is_transposed = is_transposed
    return new.train(layer.training)  # type: ignore[no-any-return]


def is_quantized(layer: nn.Module) -> bool:
    """Return whether :func:`quantize` created this layer."""
    return hasattr(layer, "is_transposed")


def dequantized(layer: Any) -> Tensor:
    """Return the weight ``(out, in)`` of a 4-bit layer in float32."""
    weight: Tensor = bitsandbytes().functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return weight.float()


def restored(layer: Any, weight: Tensor) -> nn.Module:
    """Return a plain layer of the type that :func:`quantize` replaced, with a weight ``(out, in)``."""
    outputs, inputs = weight.shape
    new: Any = Conv1D(outputs, inputs)
    if not layer.is_transposed:
        new = nn.Linear(inputs, outputs, bias=layer.bias is not None)
    new.weight = nn.Parameter((weight.T if layer.is_transposed else weight).contiguous(), requires_grad=False)
    if layer.bias is not None:
        new.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    return new.train(layer.training)  # type: ignore[no-any-return]


def restore(model: nn.Module) -> None:
    """Replace every 4-bit layer by a plain one with its dequantized weight in float32."""
    for name, layer in list(model.named_modules()):
        if is_quantized(layer):
            model.set_submodule(name, restored(layer, dequantized(layer)))


def weights(layer: Any) -> int:
    """Return the number of weights of a 4-bit layer."""
    outputs, inputs = layer.weight.quant_state.shape
    return int(outputs * inputs)


def stored_bytes(layer: Any) -> int:
    """Return the bytes of a 4-bit layer's weight and of its scales."""
    state = layer.weight.quant_state
    parts = (layer.weight, state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
    return sum(int(part.numel() * part.element_size()) for part in parts)
