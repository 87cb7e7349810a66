"""Compute linear layers with the faster of two libraries, forward and backward, in float32 throughout.

torch computes every float32 product on a CPU with the BLAS it was built with. oneDNN, which is also part of torch, is
about twice as fast on non-Intel processors with AVX-512. It accepts transposed views, so that neither gradient needs a
copy of the weight.

Within :func:`fast_linears`, only the ``forward`` of layers is replaced: parameters, their names, hooks and the state
dict are unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fulltune.runtime.kernels.products import Choices, Product


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, choices: Choices, *, transposed: bool = False) -> Tensor:
    """Compute ``x @ weight.T + bias``; equal to :func:`torch.nn.functional.linear` up to rounding.

    Args:
        x: ``(…, in)``.
        weight: ``(out, in)``; ``(in, out)`` if ``transposed``.
        bias: ``(out,)``.
        choices: Products that oneDNN computes.
        transposed: The weight is stored transposed, as in GPT-2's ``Conv1D``.

    Returns:
        ``(…, out)``.
    """
    if not is_plain(x, weight, bias):
        return _reference(x, weight, bias, transposed)
    tensors = (x, weight, bias)
    needs_grad = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    rows, inputs, outputs = _sizes(x, weight, transposed)
    products: tuple[Product, ...] = ("forward", "grad_input", "grad_weight") if needs_grad else ("forward",)
    if not any(choices.uses_onednn(product, rows, inputs, outputs) for product in products):
        return _reference(x, weight, bias, transposed)
    if not needs_grad:
        return _onednn(x, weight.t() if transposed else weight, bias)
    apply: Any = _Linear.apply
    result: Tensor = apply(x, weight, bias, choices, transposed)
    return result


def is_plain(*tensors: Tensor | None) -> bool:
    """Check for plain float32 tensors on the CPU, outside autocast, compilation and function transforms."""
    if torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling() or _is_in_transform():
        return False
    return all(
        tensor is None
        or (
            type(tensor) in (Tensor, nn.Parameter)
            and tensor.dtype == torch.float32
            and tensor.device.type == "cpu"
            and tensor.layout == torch.strided
            and tensor.numel() > 0
        )
        for tensor in tensors
    )


def _is_in_transform() -> bool:
    """Return whether this runs inside vmap, jvp or forward-mode differentiation, which custom functions lack."""
    functorch = torch._C._are_functorch_transforms_active()
    return bool(functorch) or torch.autograd.forward_ad._current_level >= 0


def _sizes(x: Tensor, weight: Tensor, transposed: bool) -> tuple[int, int, int]:
    """Return the number of rows, input features and output features of a product."""
    inputs, outputs = weight.shape if transposed else weight.shape[::-1]
    return x.numel() // max(1, x.shape[-1]), inputs, outputs


def _reference(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    if not transposed:
        return F.linear(x, weight, bias)
    flat = x.reshape(-1, x.shape[-1])
    product = flat @ weight if bias is None else torch.addmm(bias, flat, weight)
    return product.view(*x.shape[:-1], weight.shape[1])


def _onednn(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute ``a @ b.T + bias``; ``b`` may be a transposed view, ``a`` is copied if it is one."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return product


def _not_a_view(product: Tensor, shape: Sequence[int]) -> Tensor:
    """Reshape a newly computed product without marking it as a view.

    Autograd forbids in-place operations on a view returned by a custom function, and some models scale or shift the
    output of a linear layer in place (DeBERTa, Longformer, LED).
    """
    result: Tensor = torch.ops.aten._unsafe_view(product, shape)
    return result


class _Linear(torch.autograd.Function):
    """Linear layer whose three products each use the chosen library."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, choices: Choices, transposed: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.choices = choices
        ctx.transposed = transposed
        rows, inputs, outputs = _sizes(x, weight, transposed)
        flat = x.reshape(-1, inputs)
        if choices.uses_onednn("forward", rows, inputs, outputs):
            product = _onednn(flat, weight.t() if transposed else weight, bias)
        else:
            product = _reference(flat, weight, bias, transposed)
        return _not_a_view(product, [*x.shape[:-1], outputs])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, weight = ctx.saved_tensors
        gradient = gradients[0].reshape(-1, gradients[0].shape[-1])
        flat = x.reshape(-1, x.shape[-1])
        sizes = _sizes(x, weight, ctx.transposed)
        # With grad mode on (create_graph=True), only torch's own products can be differentiated again.
        allows_onednn = not torch.is_grad_enabled() and is_plain(gradient)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            multiply = _onednn if allows_onednn and ctx.choices.uses_onednn("grad_input", *sizes) else _blas
            grad_x = multiply(gradient, weight if ctx.transposed else weight.t()).view_as(x)
        if ctx.needs_input_grad[1]:
            multiply = _onednn if allows_onednn and ctx.choices.uses_onednn("grad_weight", *sizes) else _blas
            grad_weight = multiply(flat.t(), gradient.t()) if ctx.transposed else multiply(gradient.t(), flat.t())
        if ctx.needs_input_grad[2]:
            grad_bias = gradient.sum(dim=0)
        return grad_x, grad_weight, grad_bias, None, None


def _blas(a: Tensor, b: Tensor) -> Tensor:
    return a @ b.t()


@contextmanager
def fast_linears(model: nn.Module, choices: Choices) -> Iterator[int]:
    """Make the model's linear layers compute their products by ``choices`` within the block; yield their number.

    Only exact instances of ``nn.Linear`` and GPT-2's ``Conv1D`` are changed: subclasses (quantized, sharded or
    custom) and layers whose ``forward`` is already replaced are left as they are.
    """

    def linear_forward(layer: Any, input: Tensor) -> Tensor:
        return linear(input, layer.weight, layer.bias, choices)

    def conv1d_forward(layer: Any, x: Tensor) -> Tensor:
        return linear(x, layer.weight, layer.bias, choices, transposed=True)

    with replace_forwards(model, {nn.Linear: linear_forward, Conv1D: conv1d_forward}) as layers:
        yield layers


@contextmanager
def replace_forwards(model: nn.Module, kinds: dict[type, Callable[[Any, Tensor], Tensor]]) -> Iterator[int]:
    """Replace the ``forward`` of modules of exactly these types within the block; yield the number of modules."""
    for function in kinds.values():
        function.__name__ = "forward"  # a bound method is pickled by this name
    chosen = [module for module in model.modules() if type(module) in kinds and "forward" not in module.__dict__]
    for module in chosen:
        # A bound method, so that layers of a copied model use their own weights.
        module.__dict__["forward"] = MethodType(kinds[type(module)], module)
    try:
        yield len(chosen)
    finally:
        for module in chosen:
            module.__dict__.pop("forward", None)
