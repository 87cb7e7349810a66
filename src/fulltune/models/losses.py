"""Compute losses as sums and counts per row.

In a mean of micro-batch means, the weight of a token depends on the size of its micro-batch. So every function returns
two tensors of shape ``(B,)``, a sum and a count per row, and the caller divides once: Σ sums / Σ counts over all rows
of an effective batch or an evaluation set.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fulltune.models.token_ids import IGNORED


def shift(labels: Tensor) -> Tensor:
    """Shift labels ``(B, T)`` of a decoder one to the left, so that position t holds the token predicted there."""
    return F.pad(labels[:, 1:], (0, 1), value=IGNORED)


def token_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of tokens in nats.

    Args:
        logits: ``(B, T, V)``.
        labels: ``(B, T)``, aligned with the logits; positions labeled -100 do not count.
        smoothing: ε of Szegedy et al. 2016 ("Rethinking the Inception Architecture", section 7): the target is
            1 − ε on the label plus ε / V on every token.

    Returns:
        Sums ``(B,)`` and numbers of labeled tokens ``(B,)``.
    """
    kept = labels != IGNORED
    flat = logits.flatten(0, 1)
    targets = labels.flatten()
    positions = kept.flatten().nonzero().squeeze(1)
    if 2 * positions.numel() > targets.numel():
        losses = F.cross_entropy(
            flat.float(), targets, reduction="none", ignore_index=IGNORED, label_smoothing=smoothing
        )
    else:
        # Most positions are prompt or padding: the softmax over the vocabulary is skipped there.
        chosen = F.cross_entropy(
            flat.index_select(0, positions).float(), targets[positions], reduction="none", label_smoothing=smoothing
        )
        losses = chosen.new_zeros(targets.shape).index_copy(0, positions, chosen)
    return losses.view(labels.shape).sum(dim=1), kept.sum(dim=1)


def class_cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of one class per row in nats.

    Args:
        logits: ``(B, C)``.
        labels: ``(B,)`` class indices; rows labeled -100 do not count.
        weights: Class weights ``(C,)``, as in :class:`torch.nn.CrossEntropyLoss`.
        smoothing: ε, distributed over the classes in proportion to their weights, as there.

    Returns:
        Sums ``(B,)`` and the weights of the rows ``(B,)`` (1 without weights).
    """
    sums = F.cross_entropy(
        logits.float(), labels, weight=weights, reduction="none", ignore_index=IGNORED, label_smoothing=smoothing
    )
    return sums, class_counts(labels, weights)


def class_counts(labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the counts of :func:`class_cross_entropy` for class indices ``(B,)``."""
    kept = labels != IGNORED
    return kept if weights is None else torch.where(kept, weights[labels.clamp(min=0)], 0.0)


def multi_label_bce(logits: Tensor, labels: Tensor, positive_weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the binary cross-entropy of several labels per row in nats.

    Args:
        logits: ``(B, C)``.
        labels: Zeros and ones, ``(B, C)``.
        positive_weights: Weights ``(C,)`` of the ones, as ``pos_weight`` of :class:`torch.nn.BCEWithLogitsLoss`.

    Returns:
        Sums over the labels ``(B,)`` and numbers of labels ``(B,)``.
    """
    losses = F.binary_cross_entropy_with_logits(
        logits.float(), labels.float(), pos_weight=positive_weights, reduction="none"
    )
    return losses.sum(dim=1), torch.full_like(labels[:, 0], labels.shape[1], dtype=torch.long)


def squared_error(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squared errors of predicted numbers.

    Args:
        logits: ``(B, C)``.
        labels: ``(B, C)``, or ``(B,)`` for a single number.

    Returns:
        Sums over the numbers of a row ``(B,)`` and the count of numbers ``(B,)``.
    """
    targets = labels.float().view(logits.shape)
    counts = torch.full((len(logits),), logits.shape[1], dtype=torch.long, device=logits.device)
    return (logits.float() - targets).square().sum(dim=1), counts


def class_divergence(first: Tensor, second: Tensor) -> Tensor:
    """Return ½ KL(p ‖ q) + ½ KL(q ‖ p) of two class distributions in nats (Liang et al. 2021, R-Drop, equation 2).

    Args:
        first: Logits ``(B, C)``.
        second: Logits ``(B, C)`` of the same rows with another dropout mask.

    Returns:
        ``(B,)``; gradients flow through both.
    """
    p = F.log_softmax(first.float(), dim=-1)
    q = F.log_softmax(second.float(), dim=-1)
    return ((p.exp() - q.exp()) * (p - q)).sum(dim=-1) / 2


def label_divergence(first: Tensor, second: Tensor) -> Tensor:
    """Return :func:`class_divergence` of the binary distribution of each label, summed over the labels, ``(B,)``."""
    first = first.float()
    second = second.float()
    # log p/(1-p) is the logit itself, so both terms of a label's divergence combine into one product.
    return ((first.sigmoid() - second.sigmoid()) * (first - second)).sum(dim=-1) / 2
