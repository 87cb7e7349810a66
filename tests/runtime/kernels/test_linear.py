"""Linear layers through oneDNN: the same numbers as in float64, and layers that are restored afterwards."""

from __future__ import annotations

import copy
import io
from typing import Any

import fakes
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from fulltune.runtime.kernels.calibration import has_exact_onednn
from fulltune.runtime.kernels.linear import fast_linears, linear
from fulltune.runtime.kernels.products import (
    FEATURES,
    NONE,
    PRODUCTS,
    ROWS,
    Choices,
    choose_by_rule,
    shape_class,
    shape_classes,
)

pytestmark = pytest.mark.skipif(not has_exact_onednn(), reason="this torch has no oneDNN")

ALL = Choices(frozenset((product, sizes) for product in PRODUCTS for sizes in shape_classes()))
TOLERANCE = 1e-5


def relative(found: Tensor, reference: Tensor) -> float:
    return float(((found.double() - reference).norm() / reference.norm()).detach())


def operands(*shape: int, outputs: int, transposed: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(sum(shape) + outputs)
    weight = torch.randn(shape[-1], outputs) if transposed else torch.randn(outputs, shape[-1])
    return torch.randn(*shape), weight, torch.randn(outputs)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("shape", [(3, 5), (1, 1), (2, 7, 33), (300, 130), (2, 3, 4, 16)])
def test_result_and_gradients_are_those_of_float64(shape: tuple[int, ...], has_bias: bool, transposed: bool) -> None:
    x, weight, bias = (one.requires_grad_() for one in operands(*shape, outputs=37, transposed=transposed))
    inputs = [x, weight, *([bias] if has_bias else [])]
    result = linear(x, weight, bias if has_bias else None, ALL, transposed=transposed)
    direction = torch.randn_like(result)
    gradients = torch.autograd.grad(result, inputs, direction)
    exact = [one.detach().double().requires_grad_() for one in inputs]
    reference = exact[0] @ (exact[1] if transposed else exact[1].T) + (exact[2] if has_bias else 0)
    references = torch.autograd.grad(reference, exact, direction.double())
    assert result.dtype == torch.float32
    assert relative(result, reference) <= TOLERANCE
    assert len(gradients) == len(inputs)
    for found, wanted, parameter in zip(gradients, references, inputs, strict=True):
        assert found.shape == parameter.shape
        assert relative(found, wanted) <= TOLERANCE


@pytest.mark.parametrize("product", PRODUCTS)
def test_each_product_can_go_to_onednn_alone(product: Any) -> None:
    x, weight, bias = (one.requires_grad_() for one in operands(20, 40, outputs=30))
    alone = Choices(frozenset((product, sizes) for sizes in shape_classes()))
    found = torch.autograd.grad(linear(x, weight, bias, alone).sum(), (x, weight, bias))
    wanted = torch.autograd.grad(nn.functional.linear(x, weight, bias).sum(), (x, weight, bias))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


def test_a_gradient_can_be_differentiated_again() -> None:
    x, weight, _ = (one.requires_grad_() for one in operands(6, 8, outputs=5))

    def penalty(x: Tensor, weight: Tensor, by: Any) -> Tensor:
        (gradient,) = torch.autograd.grad(by(x, weight).square().sum(), x, create_graph=True)
        return gradient.square().sum()

    found = torch.autograd.grad(penalty(x, weight, lambda x, w: linear(x, w, None, ALL)), weight)[0]
    wanted = torch.autograd.grad(penalty(x, weight, nn.functional.linear), weight)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)


def test_strided_inputs_and_gradients() -> None:
    x = torch.randn(40, 6, 10).transpose(0, 1).requires_grad_()
    layer = nn.Linear(10, 12)
    found = linear(x, layer.weight, layer.bias, ALL)
    torch.testing.assert_close(found, layer(x))
    direction = torch.randn(12, 40, 6).permute(2, 1, 0)
    torch.testing.assert_close(
        torch.autograd.grad(found, x, direction)[0], torch.autograd.grad(layer(x), x, direction)[0]
    )


class Quantized(nn.Linear):
    """A layer type that this package does not know."""


def watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Record the shapes of the products that go to oneDNN from here on."""
    from fulltune.runtime.kernels import linear as module

    seen: list[tuple[int, ...]] = []
    original = module._onednn

    def spy(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
        seen.append((*a.shape, *b.shape))
        return original(a, b, bias)

    monkeypatch.setattr(module, "_onednn", spy)
    return seen


def test_layers_are_changed_only_inside_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(monkeypatch)
    model = nn.Sequential(nn.Linear(8, 8), Conv1D(8, 8), Quantized(8, 8))
    before, x = dict(model.state_dict()), torch.randn(4, 8)
    reference = model(x)
    with fast_linears(model, ALL) as layers:
        assert layers == 2
        torch.testing.assert_close(model(x), reference)
        assert len(seen) == 2
        assert model.state_dict().keys() == before.keys()
        assert [type(layer) for layer in model] == [nn.Linear, Conv1D, Quantized]
        with fast_linears(model, ALL) as more:
            assert more == 0
        model(x)
        assert len(seen) == 4
    assert all("forward" not in layer.__dict__ for layer in model)
    assert torch.equal(model(x), reference)
    assert len(seen) == 4


def test_layers_are_restored_after_an_error() -> None:
    model = nn.Linear(4, 4)
    with pytest.raises(RuntimeError), fast_linears(model, ALL):
        model(torch.randn(3, 5))
    assert "forward" not in model.__dict__


def test_a_copy_computes_with_its_own_weights_and_can_be_saved() -> None:
    model, x = nn.Linear(6, 6), torch.randn(2, 6)
    with fast_linears(model, ALL):
        twin, file = copy.deepcopy(model), io.BytesIO()
        torch.save(model, file)
        model.weight.data.zero_()
        assert not torch.equal(twin(x), model(x))
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    torch.testing.assert_close(loaded(x), twin(x))


def test_hooks_run() -> None:
    model, called = nn.Linear(4, 4), []
    model.register_forward_hook(lambda *_: called.append("forward"))
    model.register_full_backward_hook(lambda *_: called.append("backward"))
    with fast_linears(model, ALL):
        model(torch.randn(2, 4, requires_grad=True)).sum().backward()
    assert called == ["forward", "backward"]


def test_everything_but_plain_float32_uses_the_original_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(monkeypatch)
    layer = nn.Linear(8, 8)
    with fast_linears(layer, ALL):
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(torch.randn(4, 8)).dtype == torch.bfloat16
        assert layer(torch.randn(0, 8)).shape == (0, 8)
        assert torch.func.vmap(layer)(torch.randn(4, 8)).shape == (4, 8)
        assert layer(torch.randn(8)).shape == (8,)
        layer(torch.randn(4, 8))
    assert len(seen) == 2
    twice = copy.deepcopy(layer).double()
    with fast_linears(twice, ALL):
        assert twice(torch.randn(4, 8, dtype=torch.float64)).dtype == torch.float64
    assert len(seen) == 2


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("choices", [ALL, Choices(frozenset(("grad_weight", sizes) for sizes in shape_classes()))])
@pytest.mark.parametrize("shape", [(5, 8), (1, 8), (2, 5, 8), (1, 5, 8), (2, 1, 8)])
def test_a_result_can_be_changed_in_place(
    shape: tuple[int, ...], choices: Choices, has_bias: bool, transposed: bool
) -> None:
    x, weight, bias = (one.requires_grad_() for one in operands(*shape, outputs=16, transposed=transposed))
    used = bias if has_bias else None

    def changed(by: Choices) -> tuple[Tensor, ...]:
        result = linear(x, weight, used, by, transposed=transposed)
        result /= 2.0
        result.transpose(0, -1)[0] += 1.0
        return (result, *torch.autograd.grad(result.square().sum(), [x, weight]))

    for found, wanted in zip(changed(choices), changed(NONE), strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", ["Deberta", "Longformer", "LED"])
def test_models_that_change_the_output_of_a_layer_in_place(name: str) -> None:
    sizes = {"vocab_size": 60, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16}
    stacks = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    options: dict[str, dict[str, Any]] = {
        "Deberta": {"intermediate_size": 32, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
        "Longformer": {"intermediate_size": 32, "attention_window": 4, "max_position_embeddings": 40},
        "LED": {**stacks, "d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "attention_window": 4},
    }
    config = getattr(transformers, f"{name}Config")(
        **{**({} if name == "LED" else sizes), "vocab_size": 60, **options[name]}
    )
    head = "ForConditionalGeneration" if name == "LED" else "ForMaskedLM"
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}{head}")(config).eval()
    ids = torch.arange(5, 21).view(2, 8)

    def results(choices: Choices) -> list[Tensor]:
        learns = [parameter for parameter in model.parameters() if parameter.requires_grad]
        with fast_linears(model, choices):
            loss = model(input_ids=ids, labels=ids).loss
        return [
            loss.detach(),
            *(one for one in torch.autograd.grad(loss, learns, allow_unused=True) if one is not None),
        ]

    for found, wanted in zip(results(ALL), results(NONE), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_without_gradients_and_in_inference_mode() -> None:
    layer, x = nn.Linear(8, 8), torch.randn(4, 8)
    reference = layer(x).detach()
    with fast_linears(layer, ALL):
        with torch.no_grad():
            assert not layer(x).requires_grad
        with torch.inference_mode():
            torch.testing.assert_close(layer(x).clone(), reference)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant: bool) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
    x = torch.randn(5, 8, requires_grad=True)
    wanted = torch.autograd.grad(model(x).sum(), [x, *model.parameters()])
    with fast_linears(model, ALL):
        checkpoint(model, x, use_reentrant=reentrant).sum().backward()
    found = [x.grad, *(parameter.grad for parameter in model.parameters())]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert", "t5", "bart"])
def test_every_family_trains_to_the_same_weights(kind: str) -> None:
    def trained(choices: Choices) -> dict[str, Tensor]:
        model, tokenizer = fakes.make(kind)
        model.eval()
        ids = torch.arange(5, 45).view(2, 20) % len(tokenizer)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        with fast_linears(model, choices) as layers:
            assert layers >= 4
            for _ in range(3):
                model(input_ids=ids, labels=ids).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        return dict(model.named_parameters())

    found, wanted = trained(ALL), trained(NONE)
    assert len(found) > 10
    for name, value in wanted.items():
        assert float((found[name] - value).detach().norm()) <= TOLERANCE * float(value.detach().norm()) + 1e-8, name


@given(st.integers(1, 5000), st.integers(1, 60000), st.integers(1, 60000))
def test_a_size_is_in_the_nearest_class(rows: int, inputs: int, outputs: int) -> None:
    found = shape_class(rows, inputs, outputs)
    assert found in shape_classes()
    for size, rounded, (low, high) in zip((rows, inputs, outputs), found, (ROWS, FEATURES, FEATURES), strict=True):
        clipped = min(max(size, 2**low), 2**high)
        assert 2**-0.5 - 1e-3 <= rounded / clipped <= 2**0.5 + 1e-3


def test_the_rule_keeps_small_products_and_intel_with_the_blas() -> None:
    rule = choose_by_rule("AMD EPYC 9B45", "AVX512")
    assert rule.uses_onednn("forward", 1200, 384, 1536)
    assert not rule.uses_onednn("forward", 16, 64, 64)
    assert 0 < rule.fraction < 1
    assert choose_by_rule("Intel(R) Xeon(R) Gold", "AVX512").onednn == frozenset()
    assert choose_by_rule("AMD Ryzen", "AVX2").onednn == frozenset()
    assert rule.digest != NONE.digest == choose_by_rule("AMD Ryzen", "AVX2").digest
