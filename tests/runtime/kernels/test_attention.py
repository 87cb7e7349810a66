"""Attention with dropout in stretches: output and gradients of a plain softmax with the same mask."""

from __future__ import annotations

from typing import Any

import fakes
import pytest
import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fulltune.runtime.kernels import attention as module
from fulltune.runtime.kernels.attention import attention, attention_forward, fast_attention
from fulltune.runtime.kernels.dropout import keep_mask, rounded_probability

SIZES = [(1, 1, 1, 1, 4, 4), (2, 3, 7, 7, 8, 8), (3, 4, 33, 20, 8, 5), (2, 2, 300, 300, 16, 16)]


def heads(sizes: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    b, h, t, s, d, e = sizes
    torch.manual_seed(sum(sizes))
    shapes = (b, t, h, d), (b, s, h, d), (b, s, h, e)
    query, key, value = (torch.randn(shape).transpose(1, 2).requires_grad_() for shape in shapes)
    return query, key, value


def plain(inputs: list[Tensor], mask: Tensor | None, p: float, is_causal: bool, scale: float, seed: int) -> Tensor:
    """Compute one matrix at a time in float64, with the masks of the stretches in their positions."""
    query, key, value = inputs[:3]
    kept = torch.zeros(*query.shape[:3], key.shape[2], dtype=torch.bool)
    for number, tile in enumerate(module._tiles(query, key, is_causal)):
        kept[tile] = keep_mask(kept[tile].numel(), p, seed + number).view(kept[tile].shape)
    scores = query @ key.transpose(2, 3) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    if is_causal:
        scores = scores.masked_fill(~torch.ones(scores.shape[2:], dtype=torch.bool).tril(), -torch.inf)
    return (scores.softmax(-1) * kept / (1 - rounded_probability(p))) @ value


@pytest.fixture(params=[2**20, 30_000])
def stretch_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(module, "_TILE_BYTES", request.param)
    return int(request.param)


@pytest.mark.usefixtures("stretch_bytes")
@pytest.mark.parametrize("kind", ["none", "causal", "padding", "bias"])
@pytest.mark.parametrize("sizes", SIZES)
def test_result_and_gradients_are_those_of_float64(sizes: tuple[int, ...], kind: str) -> None:
    query, key, value = heads(sizes)
    b, h, t, s, d, _ = sizes
    mask: Tensor | None = None
    if kind == "padding":
        mask = (torch.arange(s) < torch.arange(1, b + 1)[:, None] * max(1, s // b)).view(b, 1, 1, s)
    elif kind == "bias":
        mask = torch.randn(1, h, t, s, requires_grad=True)
    learned = [query, key, value, *([mask] if mask is not None and mask.requires_grad else [])]
    torch.manual_seed(3)
    result = attention(query, key, value, mask, 0.2, is_causal=kind == "causal")
    direction = torch.randn_like(result)
    found = torch.autograd.grad(result, learned, direction)
    torch.manual_seed(3)
    seed = module.draw_seed()
    exact = [one.detach().double().requires_grad_() for one in learned]
    hidden = exact[3] if len(exact) > 3 else mask
    reference = plain(exact, hidden, 0.2, kind == "causal", d**-0.5, seed)
    wanted = torch.autograd.grad(reference, exact, direction.double())
    torch.testing.assert_close(result.double(), reference, rtol=1e-5, atol=1e-5)
    assert len(found) == len(learned) >= 3
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=2e-5)


def test_expectation_is_that_of_no_dropout() -> None:
    query, key, value = (one.detach() for one in heads((1, 2, 4, 6, 8, 8)))
    wide = [one.expand(4000, -1, -1, -1) for one in (query, key, value)]
    torch.manual_seed(0)
    mean = attention(*wide, p=0.3).mean(0, keepdim=True)
    torch.testing.assert_close(mean, attention(query, key, value), rtol=0.1, atol=0.05)


def test_a_query_that_sees_nothing_is_finite() -> None:
    query, key, value = heads((1, 1, 2, 3, 4, 4))
    mask = torch.tensor([[True, True, False], [False, False, False]]).view(1, 1, 2, 3)
    result = attention(query, key, value, mask, 0.1)
    result[:, :, 0].sum().backward()
    assert torch.isfinite(result).all()
    assert torch.isfinite(query.grad).all()


def test_without_dropout_torchs_own_attention_is_used() -> None:
    query, key, value = heads(SIZES[1])
    wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    assert torch.equal(attention(query, key, value, is_causal=True), wanted)


def test_the_full_attention_matrix_is_never_kept() -> None:
    query, key, value = heads((1, 2, 256, 256, 8, 8))
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        attention(query, key, value, p=0.1, is_causal=True)
    assert len(kept) >= 3
    assert max(kept) == query.numel()


@pytest.mark.parametrize(("kind", "options"), [
    ("gpt2", {}), ("bert", {}), ("t5", {}), ("llama", {"attention_dropout": 0.1}), ("bart", {"attention_dropout": 0.1}),
])  # fmt: skip
def test_models_of_every_family_go_through_it(kind: str, options: dict[str, Any], monkeypatch: Any) -> None:
    model, tokenizer = fakes.make(kind, **options)
    calls: list[bool] = []
    original = module.attention

    def spy(*args: Any, **named: Any) -> Tensor:
        calls.append(True)
        return original(*args, **named)

    monkeypatch.setattr(module, "attention", spy)
    ids = torch.arange(5, 45).view(2, 20) % len(tokenizer)
    mask = torch.ones_like(ids)
    mask[1, 15:] = 0
    model.train()
    with fast_attention():
        loss = model(input_ids=ids, attention_mask=mask, labels=ids).loss
        loss.backward()
    assert len(calls) >= 2
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    model.eval()
    before = len(calls)
    with fast_attention():
        found = model(input_ids=ids, attention_mask=mask, labels=ids).loss
    assert torch.equal(found, model(input_ids=ids, attention_mask=mask, labels=ids).loss)
    assert len(calls) == before


@pytest.mark.parametrize("kind", ["gpt2", "bert", "t5", "llama"])
def test_a_negligible_dropout_gives_the_models_own_loss(kind: str) -> None:
    name = {"gpt2": "attn_pdrop", "bert": "attention_probs_dropout_prob", "t5": "dropout_rate"}
    others = {"gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0}, "bert": {"hidden_dropout_prob": 0.0}}
    tiny = {name.get(kind, "attention_dropout"): 1e-9}
    model, tokenizer = fakes.make(kind, **tiny, **others.get(kind, {}))
    ids = torch.arange(5, 25).view(2, 10) % len(tokenizer)
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    wanted = model.eval()(input_ids=ids, attention_mask=mask, labels=ids).loss
    torch.manual_seed(11)
    with fast_attention():
        found = model.train()(input_ids=ids, attention_mask=mask, labels=ids).loss
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_the_function_of_the_library_is_restored() -> None:
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    with fast_attention():
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is attention_forward
        with fast_attention():
            pass
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is attention_forward
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before
