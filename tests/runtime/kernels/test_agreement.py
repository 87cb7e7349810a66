"""Fast kernels are used only where they give the loss and the gradients of the plain ones."""

from __future__ import annotations

from typing import Any

import fakes
import pytest
import torch
from torch import Tensor, nn

from fulltune.models import kernel_check
from fulltune.models.fast_kernels import choices_for, fast_kernels
from fulltune.models.kernel_check import gradients_agree, kernels_agree
from fulltune.runtime.kernels.calibration import has_exact_onednn
from fulltune.runtime.kernels.products import PRODUCTS, Choices, shape_classes

pytestmark = pytest.mark.skipif(not has_exact_onednn(), reason="this torch has no oneDNN")

ALL = Choices(frozenset((product, sizes) for product in PRODUCTS for sizes in shape_classes()))


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_check, "_results", {})


@pytest.mark.parametrize("head", ["lm", "classification"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert", "t5", "bart"])
def test_kernels_are_checked_on_every_family(kind: str, head: str, caplog: pytest.LogCaptureFixture) -> None:
    model, _ = fakes.make(kind, head)
    model.train()
    assert kernels_agree(model, ALL)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not caplog.records


@pytest.mark.parametrize("fault", ["answers", "gradients", "crash"])
def test_a_model_that_kernels_would_change_computes_without_them(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original: Any = kernel_check.fast_linears

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: Tensor) -> Tensor:
            return value * (1.01 if fault == "answers" else 1)

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            return gradients[0] * 0.5

    def broken(model: Any, choices: Any) -> Any:
        def spoil(module: Any, args: Any, output: Any) -> Any:
            if fault == "crash":
                raise RuntimeError("a view is being modified inplace")
            return Wrong.apply(output)

        model.transformer.h[0].mlp.c_fc.register_forward_hook(spoil)
        return original(model, choices)

    monkeypatch.setattr(kernel_check, "fast_linears", broken)
    model, _ = fakes.gpt2()
    assert not kernels_agree(model, ALL)
    reason = "a view is being modified" if fault == "crash" else "its loss or its gradients would change"
    assert f"GPT2LMHeadModel computes without fast kernels: {reason}" in caplog.text.replace("RuntimeError: ", "")
    monkeypatch.setattr("fulltune.models.fast_kernels.current", lambda: ALL)
    assert choices_for(model) is None
    with fast_kernels(model):
        assert not any("forward" in module.__dict__ for module in model.modules())
    monkeypatch.setattr(kernel_check, "fast_linears", original)
    assert choices_for(fakes.bert()[0]) is ALL


def test_gradients_are_compared_entry_by_entry() -> None:
    layer = nn.Linear(3, 2)
    x = torch.tensor([[1.0, 2.0, 3.0]])

    def plain() -> Tensor:
        return layer(x).square().sum()

    assert gradients_agree(layer, plain, plain)
    assert not gradients_agree(layer, plain, lambda: plain() + 0.1)
    assert not gradients_agree(layer, plain, lambda: plain() + layer.weight[0, 0] - layer.weight[0, 0].detach())
    assert not gradients_agree(layer, plain, lambda: plain() * float("nan"))
    layer.requires_grad_(False)
    assert gradients_agree(layer, plain, plain)


def test_a_model_that_cannot_be_checked_keeps_its_layers() -> None:
    assert kernels_agree(nn.Linear(2, 2), ALL)
