"""Linear layers whose products go to the faster library, forward and backward, in float32 throughout.

torch sends every float32 product on a CPU to the BLAS it was built with. oneDNN, which is part of torch too, makes them
at about twice the speed on processors with AVX-512 that are not Intel's. It takes a transposed matrix as it lies, so
that neither gradient needs a copy of the weight.

Layers are changed in place for as long as :func:`fast_linears` lasts: parameters, their names, hooks and what is saved
stay what they are.
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
    """``x @ weight.T + bias``, as :func:`torch.nn.functional.linear` gives it up to rounding.

    Args:
        x: ``(…, in)``.
        weight: ``(out, in)``; ``(in, out)`` where ``transposed``.
        bias: ``(out,)``.
        choices: The products that oneDNN takes.
        transposed: The weight lies as in GPT-2's ``Conv1D``.
    """
    if not is_plain(x, weight, bias):
        return _reference(x, weight, bias, transposed)
    learns = torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in (x, weight, bias))
    rows, inputs, outputs = _sizes(x, weight, transposed)
    products: tuple[Product, ...] = ("forward", "grad_input", "grad_weight") if learns else ("forward",)
    if not any(choices.takes(product, rows, inputs, outputs) for product in products):
        return _reference(x, weight, bias, transposed)
    if not learns:
        return _onednn(x, weight.t() if transposed else weight, bias)
    apply: Any = _Linear.apply
    result: Tensor = apply(x, weight, bias, choices, transposed)
    return result


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether these are ordinary float32 tensors on the CPU, outside autocast, compilation and function transforms."""
    if torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling() or _is_transformed():
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


def _is_transformed() -> bool:
    """Inside vmap, jvp or forward-mode differentiation, which a function of our own does not define."""
    functorch = torch._C._are_functorch_transforms_active()
    return bool(functorch) or torch.autograd.forward_ad._current_level >= 0


def _sizes(x: Tensor, weight: Tensor, transposed: bool) -> tuple[int, int, int]:
    """Rows, in and out."""
    inputs, outputs = weight.shape if transposed else weight.shape[::-1]
    return x.numel() // max(1, x.shape[-1]), inputs, outputs


def _reference(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    if not transposed:
        return F.linear(x, weight, bias)
    flat = x.reshape(-1, x.shape[-1])
    product = flat @ weight if bias is None else torch.addmm(bias, flat, weight)
    return product.view(*x.shape[:-1], weight.shape[1])


def _onednn(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """``a @ b.T + bias``; ``b`` may be a transposed view, ``a`` is copied if it is one."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return product


def _not_a_view(product: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a new ``product`` in another shape, without marking it as a view.

    Autograd forbids in-place changes of a view that a custom function returns, and some models scale or shift the
    output of a layer in place (DeBERTa, Longformer, LED).
    """
    result: Tensor = torch.ops.aten._unsafe_view(product, shape)
    return result


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, choices: Choices, transposed: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.choices, ctx.transposed = choices, transposed
        rows, inputs, outputs = _sizes(x, weight, transposed)
        flat = x.reshape(-1, inputs)
        if choices.takes("forward", rows, inputs, outputs):
            product = _onednn(flat, weight.t() if transposed else weight, bias)
        else:
            product = _reference(flat, weight, bias, transposed)
        return _not_a_view(product, [*x.shape[:-1], outputs])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, weight = ctx.saved_tensors
        gradient, flat = gradients[0].reshape(-1, gradients[0].shape[-1]), x.reshape(-1, x.shape[-1])
        sizes = _sizes(x, weight, ctx.transposed)
        # A graph of the gradient itself was asked for: only torch's own products can be differentiated again.
        fast = not torch.is_grad_enabled() and is_plain(gradient)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            by = _onednn if fast and ctx.choices.takes("grad_input", *sizes) else _blas
            grad_x = by(gradient, weight if ctx.transposed else weight.t()).view_as(x)
        if ctx.needs_input_grad[1]:
            by = _onednn if fast and ctx.choices.takes("grad_weight", *sizes) else _blas
            grad_weight = by(flat.t(), gradient.t()) if ctx.transposed else by(gradient.t(), flat.t())
        if ctx.needs_input_grad[2]:
            grad_bias = gradient.sum(dim=0)
        return grad_x, grad_weight, grad_bias, None, None


def _blas(a: Tensor, b: Tensor) -> Tensor:
    return a @ b.t()


@contextmanager
def fast_linears(model: nn.Module, choices: Choices) -> Iterator[int]:
    """While it lasts, the model's linear layers multiply by ``choices``; gives how many do.

    Only ``nn.Linear`` and GPT-2's ``Conv1D`` themselves are changed: a subclass (quantised, sharded, somebody else's)
    or a layer whose ``forward`` was replaced already is left alone.
    """

    def linear_forward(layer: Any, input: Tensor) -> Tensor:
        return linear(input, layer.weight, layer.bias, choices)

    def conv1d_forward(layer: Any, x: Tensor) -> Tensor:
        return linear(x, layer.weight, layer.bias, choices, transposed=True)

    with replaced_forwards(model, {nn.Linear: linear_forward, Conv1D: conv1d_forward}) as layers:
        yield layers


@contextmanager
def replaced_forwards(model: nn.Module, kinds: dict[type, Callable[[Any, Tensor], Tensor]]) -> Iterator[int]:
    """While it lasts, modules of exactly these types have another ``forward``; gives how many have."""
    for function in kinds.values():
        function.__name__ = "forward"  # as which a bound method is pickled
    chosen = [module for module in model.modules() if type(module) in kinds and "forward" not in module.__dict__]
    for module in chosen:
        # A bound method: a copy of the model then has layers that know their own weights.
        module.__dict__["forward"] = MethodType(kinds[type(module)], module)
    try:
        yield len(chosen)
    finally:
        for module in chosen:
            module.__dict__.pop("forward", None)
