from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from transformers.trainer_pt_utils import LabelSmoother

from fulltune.models.losses import class_cross_entropy, multi_label_bce, shift, token_cross_entropy


def _tokens(kept: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 9, 11, generator=generator)
    labels = torch.randint(0, 11, (4, 9), generator=generator)
    return logits, labels.masked_fill(torch.rand(4, 9, generator=generator) > kept, -100)


@given(kept=st.sampled_from([0.0, 0.1, 0.45, 0.7, 1.0]), smoothing=st.sampled_from([0.0, 0.1]), seed=st.integers(0, 99))
def test_token_loss_is_torchs(kept: float, smoothing: float, seed: int) -> None:
    logits, labels = _tokens(kept, seed)
    sums, counts = token_cross_entropy(logits, labels, smoothing)
    expected = F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), reduction="sum", ignore_index=-100, label_smoothing=smoothing
    )
    torch.testing.assert_close(sums.sum(), expected, rtol=1e-5, atol=1e-5)
    assert counts.tolist() == (labels != -100).sum(dim=1).tolist()


@pytest.mark.parametrize("kept", [0.2, 0.9])
def test_each_row_has_its_own_sum(kept: float) -> None:
    logits, labels = _tokens(kept)
    sums, counts = token_cross_entropy(logits, labels)
    for row in range(4):
        alone, count = token_cross_entropy(logits[row : row + 1], labels[row : row + 1])
        torch.testing.assert_close(sums[row], alone[0])
        assert counts[row] == count[0]


@pytest.mark.parametrize("kept", [0.2, 0.9])
def test_skipping_unlabeled_positions_does_not_change_the_gradient(kept: float) -> None:
    logits, labels = _tokens(kept)
    ours, torchs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    token_cross_entropy(ours, labels, 0.1)[0].sum().backward()
    F.cross_entropy(torchs.flatten(0, 1), labels.flatten(), reduction="sum", label_smoothing=0.1).backward()
    torch.testing.assert_close(ours.grad, torchs.grad)


def test_token_loss_with_smoothing_is_the_trainers_label_smoother() -> None:
    logits, labels = _tokens(0.6)
    sums, counts = token_cross_entropy(logits, labels, 0.15)
    expected = LabelSmoother(epsilon=0.15)({"logits": logits.clone()}, labels.clone())
    torch.testing.assert_close(sums.sum() / counts.sum(), expected)


def test_a_batch_without_labels_adds_nothing_and_can_be_differentiated() -> None:
    logits = torch.randn(2, 3, 5, requires_grad=True)
    sums, counts = token_cross_entropy(logits, torch.full((2, 3), -100))
    sums.sum().backward()
    assert sums.tolist() == [0.0, 0.0]
    assert counts.tolist() == [0, 0]
    assert logits.grad is not None
    assert not logits.grad.any()


def test_shift_predicts_the_next_token() -> None:
    assert shift(torch.tensor([[5, 6, 7]])).tolist() == [[6, 7, -100]]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 1.0, 4.0])])
def test_class_loss_is_torchs(weights: torch.Tensor | None, smoothing: float) -> None:
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, -100, 1])
    sums, counts = class_cross_entropy(logits, labels, weights, smoothing)
    expected = F.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing)
    torch.testing.assert_close(sums.sum() / counts.sum(), expected)


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 1.0, 4.0])])
def test_multi_label_loss_is_torchs(weights: torch.Tensor | None) -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([[0.0, 1, 1], [0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0]])
    sums, counts = multi_label_bce(logits, labels, weights)
    expected = F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weights)
    torch.testing.assert_close(sums.sum() / counts.sum(), expected)
