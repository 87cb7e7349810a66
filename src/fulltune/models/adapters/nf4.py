"""Linear layers in 4 bits, NormalFloat with double quantisation (Dettmers et al. 2023, QLoRA), and back.

The numbers are those of bitsandbytes; products are taken in float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fulltune.models.adapters.packages import bitsandbytes


def quantize(model: nn.Module, names: Iterable[str]) -> None:
    """Replace linear layers (and GPT-2's ``Conv1D``) by 4-bit ones, one after the other."""
    for name in names:
        layer = model.get_submodule(name)
        model.set_submodule(name, _quantized(layer))


def _quantized(layer: Any) -> nn.Module:
    bnb = bitsandbytes()
    weight = layer.weight.detach()
    turned = isinstance(layer, Conv1D)
    weight = weight.T.contiguous() if turned else weight
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
    # On CPUs with bfloat16 products the layer would, outside of training, repack its weights for a product in bfloat16
    # that no gradient passes through; after the first evaluation training would learn nothing.
    new.support_avx512bf16_for_cpu = False
    new.compute_type_is_set = True
    new.is_turned = turned
    return new.train(layer.training)  # type: ignore[no-any-return]


def is_quantized(layer: nn.Module) -> bool:
    return hasattr(layer, "is_turned")


def dequantized(layer: Any) -> Tensor:
    """The weight ``(out, in)`` in float32 that the 4 bits stand for."""
    found: Tensor = bitsandbytes().functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return found.float()


def restored(layer: Any, weight: Tensor) -> nn.Module:
    """A plain layer of the kind that :func:`quantize` replaced, with this weight ``(out, in)``."""
    out, into = weight.shape
    new: Any = Conv1D(out, into) if layer.is_turned else nn.Linear(into, out, bias=layer.bias is not None)
    new.weight = nn.Parameter((weight.T if layer.is_turned else weight).contiguous(), requires_grad=False)
    if layer.bias is not None:
        new.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    return new.train(layer.training)  # type: ignore[no-any-return]


def restore(model: nn.Module) -> None:
    """Replace every 4-bit layer by a plain one in float32: what the 4 bits stand for."""
    for name, layer in list(model.named_modules()):
        if is_quantized(layer):
            model.set_submodule(name, restored(layer, dequantized(layer)))


def weights(layer: Any) -> int:
    """How many numbers a 4-bit layer's weight stands for."""
    out, into = layer.weight.quant_state.shape
    return int(out * into)


def held_bytes(layer: Any) -> int:
    """Bytes of a 4-bit layer's weight and of the scales that go with it."""
    state = layer.weight.quant_state
    parts = (layer.weight, state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
    return sum(int(part.numel() * part.element_size()) for part in parts)
