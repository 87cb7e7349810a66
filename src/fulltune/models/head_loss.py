"""Compute the cross-entropy in the model's head, in chunks of positions, without storing all logits.

Logits ``(B, T, V)`` are the largest tensor of a language model: 0.8 GB for 4 × 1024 positions of GPT-2, and three times
as much with their softmax and its gradient. Here, the head returns the loss instead. Positions without a label are
skipped, and the gradient of a chunk is computed while its logits exist, as in Liger Kernel (Hsu et al. 2024, "Liger
Kernel: Efficient Triton Kernels for LLM Training", section 3.2), so nothing is computed twice.

The model returns the loss in place of its logits from its own forward pass, so this also works for sharded, wrapped or
replicated models.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fulltune.models.fast_paths import checking, replaced_forward
from fulltune.models.kernel_check import gradients_agree
from fulltune.models.losses import token_cross_entropy
from fulltune.models.modes import in_mode
from fulltune.models.token_ids import IGNORED
from fulltune.runtime.log_once import log_once

_log = logging.getLogger(__name__)

#: Bytes of the logits of one chunk. Each chunk adds one pass over the gradient of the head.
CHUNK_BYTES = 256 * 2**20

#: Size of the logits in bytes below which they are computed as usual.
MIN_BYTES = 16 * 2**20

#: Number of positions with which a model is checked.
_CHECKED_POSITIONS = 4


@dataclass
class HeadLoss:
    """Loss computed by the head; set when the model has run.

    Attributes:
        total: Sum of the losses, a scalar with a graph; NaN until the head was called.
        losses: Loss of each position ``(B, T)`` in nats, without a graph; 0 at positions without a label.
        counts: Number of labeled positions of each row ``(B,)``.
    """

    total: Tensor
    losses: Tensor
    counts: Tensor


@contextmanager
def loss_at(head: nn.Linear, labels: Tensor, smoothing: float = 0.0) -> Iterator[HeadLoss]:
    """Make ``head`` return the sum of its cross-entropies, a scalar, instead of its logits within the block.

    Args:
        head: Linear layer, called with hidden states ``(B, T', D)``, of which the last ``T`` positions are used.
        labels: ``(B, T)``, aligned with those positions; -100 means no label.
        smoothing: As in :func:`fulltune.models.losses.token_cross_entropy`.
    """
    result = HeadLoss(torch.tensor(float("nan")), torch.zeros(()), (labels != IGNORED).sum(dim=1))
    forward = head.forward
    size = max(1, CHUNK_BYTES // (4 * head.out_features))

    def compute_loss(hidden: Tensor) -> Tensor:
        if hidden.dim() != 3:  # ProphetNet predicts several tokens at each position
            return forward(hidden)
        targets = labels.to(hidden.device)
        flat = hidden[:, -targets.shape[1] :].flatten(0, 1)
        positions = (targets != IGNORED).flatten().nonzero()[:, 0]
        parameters = [parameter for parameter in head.parameters() if parameter.requires_grad]
        chunked = _ChunkedCrossEntropy(forward, targets.flatten()[positions], smoothing, size)
        chosen = flat.index_select(0, positions)
        if torch.is_grad_enabled():
            apply: Any = _LinearCrossEntropy.apply
            result.total, losses = apply(chunked, chosen, *parameters)
        else:
            losses, _ = chunked.losses(chosen, None)
            result.total = losses.sum()
        result.losses = losses.new_zeros(targets.numel()).index_copy(0, positions, losses).view(targets.shape)
        return result.total

    with replaced_forward(head, compute_loss):
        yield result


class LossAtHead:
    """Run a model so that its head returns the loss, if the model supports it and the logits are large.

    Args:
        head: Output embeddings of the model; None to compute logits as usual.

    Attributes:
        fits: True if the model returns the output of its head unchanged; None until it was checked.
    """

    def __init__(self, head: nn.Module | None) -> None:
        self.head = head
        self.fits = None if isinstance(head, nn.Linear) else False

    def run(
        self, model: nn.Module, inputs: Mapping[str, Any], labels: Tensor, smoothing: float
    ) -> tuple[Any, HeadLoss] | None:
        """Run the model with the loss computed in its head.

        Args:
            model: Model of the head, possibly wrapped.
            inputs: A batch without labels.
            labels: ``(B, T)``, aligned with the logits.
            smoothing: As in :func:`loss_at`.

        Returns:
            The outputs of the model, with the loss in place of the logits, and that loss. None if the logits must be
            computed as usual.
        """
        if self.fits is False or not isinstance(self.head, nn.Linear):
            return None
        is_large = 4 * labels.numel() * self.head.out_features >= MIN_BYTES
        # All processes must run the check at the same step, whatever the sizes of their batches.
        if self.fits is None and (is_large or torch.distributed.is_initialized()):
            self.fits = self._fits(model, self.head, inputs, labels)
        if not is_large or not self.fits:
            return None
        with loss_at(self.head, labels, smoothing) as result:
            return model(**inputs), result

    def _fits(self, model: nn.Module, head: nn.Linear, inputs: Mapping[str, Any], labels: Tensor) -> bool:
        """Check that the loss in the head equals that of the logits; a failure is logged."""
        fits = takes_loss_at_head(model, head, inputs, labels)
        # An extra backward pass would break the gradient reduction of distributed training.
        if fits and model.training and not torch.distributed.is_initialized():
            fits = _gradients_agree(model, head, inputs, labels)
        if not fits:
            name = type(model).__name__
            message = "%s computes all of its logits: a loss in the head would differ"
            log_once(_log, logging.INFO, name, message, name)
        return fits


def takes_loss_at_head(model: Any, head: nn.Module | None, inputs: Mapping[str, Any], labels: Tensor) -> bool:
    """Check that the model returns the output of its head unchanged (logits are not scaled, capped or biased).

    Args:
        model: Run on the first positions of the first row, in eval mode and without gradients.
        head: Output embeddings of the model.
        inputs: A batch of the model, without labels.
        labels: Labels ``(B, T)`` of that batch.
    """
    if not isinstance(head, nn.Linear):
        return False
    few = {name: _first_positions(value) for name, value in inputs.items()}
    with in_mode(model, training=False), torch.no_grad(), loss_at(head, labels[:1, :_CHECKED_POSITIONS]) as result:
        outputs = model(**few)
    return (outputs["logits"] if isinstance(outputs, dict) else outputs[0]) is result.total


def _gradients_agree(model: Any, head: nn.Linear, inputs: Mapping[str, Any], labels: Tensor) -> bool:
    """Compare the loss in the head and its gradients with those of the logits, on a few positions."""
    few = {name: _first_positions(value) for name, value in inputs.items()}
    targets = labels[:1, :_CHECKED_POSITIONS].clamp(min=0)

    def of_logits() -> Tensor:
        outputs = model(**few)
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        return token_cross_entropy(logits[:, -targets.shape[1] :], targets)[0].sum()

    def at_head() -> Tensor:
        with loss_at(head, targets) as result:
            model(**few)
        return result.total

    with checking(model):
        return gradients_agree(model, of_logits, at_head)


def _first_positions(value: Any) -> Any:
    """Return the first positions of the first row of a tensor ``(B, T)``; anything else unchanged."""
    return value[:1, :_CHECKED_POSITIONS] if isinstance(value, Tensor) and value.dim() == 2 else value


@dataclass(frozen=True)
class _ChunkedCrossEntropy:
    """Cross-entropy of ``forward(hidden)`` with ``targets`` ``(P,)``, in chunks of at most ``size`` positions."""

    forward: Callable[[Tensor], Tensor]
    targets: Tensor
    smoothing: float
    size: int

    def losses(self, hidden: Tensor, parameters: Sequence[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """Return the losses and the gradients of their sum.

        Args:
            hidden: Inputs of the head, ``(P, D)``.
            parameters: Trainable parameters of the head; None: no gradients are computed.

        Returns:
            Losses ``(P,)``, and the gradients with respect to ``hidden`` and the parameters.
        """
        losses = hidden.new_empty(len(hidden), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden)
        sums = list[Tensor]()
        for start in range(0, len(hidden), self.size):
            part = slice(start, start + self.size)
            with torch.set_grad_enabled(parameters is not None):
                chunk = hidden[part].detach().requires_grad_(parameters is not None)
                logits = self.forward(chunk)
            losses[part], grad_logits = _cross_entropy(logits.detach(), self.targets[part], self.smoothing)
            if parameters is not None:
                gradients = torch.autograd.grad(logits, (chunk, *parameters), grad_logits.to(logits.dtype))
                grad_hidden[part] = gradients[0]
                sums = _add(sums, list(gradients[1:]))
        if parameters is None:
            return losses, []
        return losses, [grad_hidden, *(sums or map(torch.zeros_like, parameters))]


def _add(sums: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
    """Add gradients to their sums in place; the first ones are the sums."""
    return [total.add_(gradient) for total, gradient in zip(sums, gradients, strict=True)] if sums else gradients


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum and parts of the cross-entropies; the gradients are computed in the forward pass."""

    @staticmethod
    def forward(ctx: Any, chunked: _ChunkedCrossEntropy, hidden: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        losses, gradients = chunked.losses(hidden, parameters)
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, total: Tensor, _: Tensor) -> tuple[Any, ...]:
        return None, *(gradient * total for gradient in ctx.saved_tensors)


def _cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Return the losses ``(P,)`` of logits ``(P, V)`` and their gradients, ``softmax − (1 − ε) · one-hot − ε / V``."""
    log_p = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
    index = targets.unsqueeze(1)
    losses = -(1 - smoothing) * log_p.gather(1, index).squeeze(1)
    if smoothing:
        losses -= smoothing * log_p.mean(dim=-1)
    gradient = log_p.exp_()
    gradient.scatter_add_(1, index, torch.full_like(index, smoothing - 1, dtype=gradient.dtype))
    return losses, gradient.sub_(smoothing / logits.shape[-1]) if smoothing else gradient
