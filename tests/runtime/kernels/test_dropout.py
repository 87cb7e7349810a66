"""Fast dropout: the right fraction, independent between positions and calls, and repeatable on demand."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import chisquare
from torch import nn
from torch.utils.checkpoint import checkpoint

from fulltune.runtime.kernels.dropout import SMALLEST, draw_seed, dropout, fast_dropouts, keep_mask, rounded_probability

SIZE = 2**20 + 4099  # more than a block, and not a multiple of four


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.25, 0.5, 0.9, 1 - 1e-6])
def test_the_fraction_that_is_dropped(p: float) -> None:
    dropped = SIZE - int(keep_mask(SIZE, p, seed=3).sum())
    sigma = math.sqrt(SIZE * rounded_probability(p) * (1 - rounded_probability(p)))
    assert abs(dropped - SIZE * rounded_probability(p)) < 4.5 * sigma
    assert abs(rounded_probability(p) - p) < 2**-16


def test_probabilities_of_zero_and_one() -> None:
    assert (rounded_probability(0.0), rounded_probability(1.0)) == (0.0, 1.0)
    assert rounded_probability(0.5) == 0.5


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 8, 64, 768, 4096, 2**20])
def test_neighbors_are_independent(lag: int) -> None:
    kept = keep_mask(4 * 2**20, 0.25, seed=5).double() - 0.75
    pairs = len(kept) - lag
    correlation = float((kept[:-lag] * kept[lag:]).sum()) / (0.25 * 0.75 * math.sqrt(pairs))
    assert abs(correlation) < 4.5


def test_masks_of_neighboring_seeds_are_independent() -> None:
    masks = torch.stack([keep_mask(50_000, 0.5, seed) for seed in range(40)]).double() * 2 - 1
    correlations = (masks @ masks.T / math.sqrt(50_000))[torch.triu(torch.ones(40, 40), 1).bool()]
    assert len(correlations) == 780
    assert float(correlations.abs().max()) < 5
    assert 0.85 < float(correlations.std()) < 1.15


def test_all_patterns_of_eight_are_equally_frequent() -> None:
    kept = keep_mask(8 * 200_000, 0.5, seed=9).view(-1, 8).long()
    counts = torch.bincount((kept * 2 ** torch.arange(8)).sum(1), minlength=256)
    assert chisquare(counts.numpy()).pvalue > 1e-4


def test_a_mask_follows_its_seed_and_not_the_threads() -> None:
    many = torch.get_num_threads()
    reference = keep_mask(3 * 2**20 + 5, 0.1, seed=1)
    try:
        torch.set_num_threads(3 - min(2, many))
        assert torch.equal(keep_mask(3 * 2**20 + 5, 0.1, seed=1), reference)
    finally:
        torch.set_num_threads(many)
    assert not torch.equal(keep_mask(3 * 2**20 + 5, 0.1, seed=2), reference)
    assert torch.equal(keep_mask(1000, 0.1, seed=1), reference[:1000])


def test_masks_follow_the_state_of_torchs_generator() -> None:
    x = torch.ones(SMALLEST)
    torch.manual_seed(4)
    state = torch.get_rng_state()
    first, second = dropout(x, 0.5), dropout(x, 0.5)
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(dropout(x, 0.5), first)
    assert torch.equal(dropout(x, 0.5), second)
    assert draw_seed() >= 0


def test_what_is_kept_is_scaled_and_carries_the_gradient() -> None:
    x = torch.randn(512, 128, requires_grad=True)
    torch.manual_seed(0)
    result = dropout(x, 0.1)
    kept = result != 0
    torch.testing.assert_close(result[kept], (x / (1 - rounded_probability(0.1)))[kept])
    (gradient,) = torch.autograd.grad(result, x, torch.ones_like(x))
    torch.testing.assert_close(gradient, kept / (1 - rounded_probability(0.1)))


def test_torchs_own_dropout_is_used_where_nothing_is_gained() -> None:
    x = torch.randn(SMALLEST - 1)
    torch.manual_seed(1)
    found = dropout(x, 0.3)
    torch.manual_seed(1)
    assert torch.equal(found, nn.functional.dropout(x, 0.3))
    large = torch.randn(2 * SMALLEST)
    assert dropout(large, 0.3, training=False) is large
    assert torch.equal(dropout(large, 0.0), large)
    assert not dropout(large, 1.0).any()
    assert dropout(large.double(), 0.5).dtype == torch.float64


def test_layers_are_changed_only_inside_the_context() -> None:
    model, x = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5, inplace=True), nn.AlphaDropout(0.5)), torch.ones(20_000)
    with fast_dropouts(model) as layers:
        assert layers == 2
        torch.manual_seed(2)
        first = model[0](x)
        torch.manual_seed(2)
        assert torch.equal(first, dropout(x, 0.5))
        assert model[1](given := x.clone()).data_ptr() == given.data_ptr()
        assert torch.equal(model.eval()(x), x)
    assert all("forward" not in layer.__dict__ for layer in model)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_layer_gets_the_same_mask_again(reentrant: bool) -> None:
    layer, x = nn.Dropout(0.5), torch.ones(20_000, requires_grad=True)
    with fast_dropouts(layer):
        result = checkpoint(layer, x, use_reentrant=reentrant)
        result.sum().backward()
    assert torch.equal(x.grad, result.detach())
