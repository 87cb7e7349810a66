"""Cross-entropy taken at the model's head, a stretch of positions at a time: the full logits never exist.

Logits ``(B, T, V)`` are the largest tensor of a language model: 4 · 1024 positions of GPT-2 are 0.8 GB, three times
that once their softmax and its gradient are made. Here the head gives the loss in their place. Positions without a
label never get to it, and the gradient of a stretch is taken while its logits are there, as Liger Kernel does (Hsu et
al. 2024, "Liger Kernel: Efficient Triton Kernels for LLM Training", section 3.2), so nothing is computed twice.

The loss leaves the model in the place of its logits, inside its own forward pass: sharded, wrapped or replicated models
see nothing unusual.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fulltune.models.fast_paths import asked, replaced_forward
from fulltune.models.kernel_check import gradients_agree
from fulltune.models.losses import IGNORED, token_cross_entropy
from fulltune.runtime.log_once import log_once

if TYPE_CHECKING:
    from transformers import Trainer

_log = logging.getLogger(__name__)

#: Logits of one stretch of positions, in bytes. Each stretch adds one pass over the head's gradient.
STRETCH_BYTES = 256 * 2**20

#: Logits of fewer bytes than this are not worth the trouble.
WORTHWHILE_BYTES = 16 * 2**20

#: Positions of the row that a model is tried with.
_TRIED = 4


@dataclass
class HeadLoss:
    """What the head gave: set once the model has run.

    Attributes:
        total: Σ of the losses, a scalar with the graph behind it; NaN until the head was called.
        losses: Loss of each position ``(B, T)``, in nats, without a graph; 0 where there is no label.
        counts: Labeled positions of each row ``(B,)``.
    """

    total: Tensor
    losses: Tensor
    counts: Tensor


@contextmanager
def loss_at(head: nn.Linear, labels: Tensor, smoothing: float = 0.0) -> Iterator[HeadLoss]:
    """While it lasts, ``head`` gives the sum of its cross-entropies, a scalar, in place of its logits.

    Args:
        head: A linear layer; called with hidden states ``(B, T', D)``, of which the last ``T`` positions count.
        labels: ``(B, T)``, aligned with those positions; -100 is no label.
        smoothing: As in :func:`fulltune.models.losses.token_cross_entropy`.
    """
    found = HeadLoss(torch.tensor(float("nan")), torch.zeros(()), (labels != IGNORED).sum(dim=1))
    forward = head.forward
    size = max(1, STRETCH_BYTES // (4 * head.out_features))

    def give_loss(hidden: Tensor) -> Tensor:
        if hidden.dim() != 3:  # ProphetNet predicts several tokens at each position
            return forward(hidden)
        targets = labels.to(hidden.device)
        flat, places = hidden[:, -targets.shape[1] :].flatten(0, 1), (targets != IGNORED).flatten().nonzero()[:, 0]
        parameters = [parameter for parameter in head.parameters() if parameter.requires_grad]
        asked = _Asked(forward, targets.flatten()[places], smoothing, size)
        chosen = flat.index_select(0, places)
        if torch.is_grad_enabled():
            apply: Any = _LinearCrossEntropy.apply
            found.total, losses = apply(asked, chosen, *parameters)
        else:
            losses, _ = asked.losses(chosen, None)
            found.total = losses.sum()
        found.losses = losses.new_zeros(targets.numel()).index_copy(0, places, losses).view(targets.shape)
        return found.total

    with replaced_forward(head, give_loss):
        yield found


class LossAtHead:
    """Runs a trainer's model so that its head gives the loss, where that can be done and pays.

    Args:
        head: The model's output embeddings, or None to leave its logits alone.

    Attributes:
        fits: Whether the model returns what its head gives, unchanged; None until it was tried.
    """

    def __init__(self, head: nn.Module | None) -> None:
        self.head, self.fits = head, None if isinstance(head, nn.Linear) else False

    @classmethod
    def of(cls, trainer: Trainer, model: Any) -> LossAtHead:
        """For the plain model of a trainer."""
        # A scaler must see its scaled gradients overflow; replicas on several devices would share one patched head.
        args = trainer.args
        is_plain = trainer.accelerator.scaler is None and args.n_gpu <= 1 and not args.torch_compile
        is_plain = is_plain and not trainer.is_deepspeed_enabled
        return cls(model.get_output_embeddings() if is_plain and hasattr(model, "get_output_embeddings") else None)

    def run(
        self, model: nn.Module, inputs: Mapping[str, Any], labels: Tensor, smoothing: float
    ) -> tuple[Any, HeadLoss] | None:
        """The model's outputs, the loss standing for the logits, and that loss; None where logits are to be made.

        Args:
            model: The head's model, whatever it is wrapped in.
            inputs: A batch without labels.
            labels: ``(B, T)``, aligned with the logits.
            smoothing: As in :func:`loss_at`.
        """
        if self.fits is False or not isinstance(self.head, nn.Linear):
            return None
        pays = 4 * labels.numel() * self.head.out_features >= WORTHWHILE_BYTES
        # Processes try it at the same step, whatever the sizes of their batches.
        if self.fits is None and (pays or torch.distributed.is_initialized()):
            self.fits = self._fits(model, self.head, inputs, labels)
        if not pays or not self.fits:
            return None
        with loss_at(self.head, labels, smoothing) as found:
            return model(**inputs), found

    def _fits(self, model: nn.Module, head: nn.Linear, inputs: Mapping[str, Any], labels: Tensor) -> bool:
        fits = takes_loss_at_head(model, head, inputs, labels)
        # Processes that reduce their gradients together have no pass to spare for a check.
        if fits and model.training and not torch.distributed.is_initialized():
            fits = _gradients_agree(model, head, inputs, labels)
        if not fits:
            name, message = type(model).__name__, "%s makes all of its logits: a loss at the head would be another"
            log_once(_log, logging.INFO, name, message, name)
        return fits


def takes_loss_at_head(model: Any, head: nn.Module | None, inputs: Mapping[str, Any], labels: Tensor) -> bool:
    """Whether the model returns what its head gives, and nothing made of it (scaled, capped or biased logits).

    Args:
        model: Tried on the first positions of the first row, in eval mode and without gradients.
        head: Its output embeddings.
        inputs: A batch as the model takes it, without labels.
        labels: ``(B, T)`` of that batch.
    """
    if not isinstance(head, nn.Linear):
        return False
    few = {name: _few(value) for name, value in inputs.items()}
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), loss_at(head, labels[:1, :_TRIED]) as found:
            outputs = model(**few)
    finally:
        model.train(was_training)
    return (outputs["logits"] if isinstance(outputs, dict) else outputs[0]) is found.total


def _gradients_agree(model: Any, head: nn.Linear, inputs: Mapping[str, Any], labels: Tensor) -> bool:
    """Return True if the loss at the head and its gradients are those of the logits, on a few positions."""
    few, targets = {name: _few(value) for name, value in inputs.items()}, labels[:1, :_TRIED].clamp(min=0)

    def of_logits() -> Tensor:
        outputs = model(**few)
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        return token_cross_entropy(logits[:, -targets.shape[1] :], targets)[0].sum()

    def at_head() -> Tensor:
        with loss_at(head, targets) as found:
            model(**few)
        return found.total

    with asked(model):
        return gradients_agree(model, of_logits, at_head)


def _few(value: Any) -> Any:
    return value[:1, :_TRIED] if isinstance(value, Tensor) and value.dim() == 2 else value


@dataclass(frozen=True)
class _Asked:
    """Cross-entropies of ``forward(hidden)`` with ``targets`` ``(P,)``, at most ``size`` positions at a time."""

    forward: Callable[[Tensor], Tensor]
    targets: Tensor
    smoothing: float
    size: int

    def losses(self, hidden: Tensor, parameters: Sequence[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """Losses ``(P,)``, and the gradients of their sum by ``hidden`` and the parameters unless these are None."""
        losses = hidden.new_empty(len(hidden), dtype=torch.float32)
        by_hidden, sums = torch.empty_like(hidden), list[Tensor]()
        for start in range(0, len(hidden), self.size):
            part = slice(start, start + self.size)
            with torch.set_grad_enabled(parameters is not None):
                read = hidden[part].detach().requires_grad_(parameters is not None)
                logits = self.forward(read)
            losses[part], slope = _cross_entropy(logits.detach(), self.targets[part], self.smoothing)
            if parameters is not None:
                by_hidden[part], *others = torch.autograd.grad(logits, (read, *parameters), slope.to(logits.dtype))
                sums = [total.add_(other) for total, other in zip(sums, others, strict=True)] if sums else others
        if parameters is None:
            return losses, []
        return losses, [by_hidden, *(sums or map(torch.zeros_like, parameters))]


class _LinearCrossEntropy(torch.autograd.Function):
    """Σ and parts of the cross-entropies, whose gradients are ready with them."""

    @staticmethod
    def forward(ctx: Any, asked: _Asked, hidden: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        losses, gradients = asked.losses(hidden, parameters)
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, total: Tensor, _: Tensor) -> tuple[Any, ...]:
        return None, *(gradient * total for gradient in ctx.saved_tensors)


def _cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Losses ``(P,)`` of logits ``(P, V)`` and their gradients, ``softmax − (1 − ε) · one-hot − ε / V``."""
    log_p = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
    index = targets.unsqueeze(1)
    losses = -(1 - smoothing) * log_p.gather(1, index).squeeze(1)
    if smoothing:
        losses -= smoothing * log_p.mean(dim=-1)
    slope = log_p.exp_()
    slope.scatter_add_(1, index, torch.full_like(index, smoothing - 1, dtype=slope.dtype))
    return losses, slope.sub_(smoothing / logits.shape[-1]) if smoothing else slope
