"""Keep a tuned model close to the base by penalties.

A penalty adds its gradient to that of the task once per optimizer step, before clipping. The logged loss is that of the
task. All penalties refer to the base before the first step.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fulltune.config import Config
from fulltune.errors import ArgumentError
from fulltune.models.bundle import Bundle, with_base_head
from fulltune.models.losses import shift
from fulltune.models.token_ids import IGNORED
from fulltune.tasks.base import Features
from fulltune.training.batches.collate import Collator
from fulltune.training.next_tokens import aligned_labels

#: Largest number of sequences of general text per step of distillation.
DISTILLED = 4

#: Largest number of sequences on which Fisher information is estimated.
FISHER = 64


class Regularizer(Protocol):
    """A penalty."""

    def backward(self, step: int, scale: float = 1.0) -> None:
        """Add the gradient of the penalty to the ``.grad`` of the parameters.

        Args:
            step: Index of the optimizer step.
            scale: Factor on the gradient: that of the loss scaler with FP16, so that all gradients have the same.
        """


class StepPenalties:
    """Add the gradients of the penalties of a trainer once per optimizer step.

    Args:
        penalties: The penalties.
    """

    def __init__(self, penalties: Sequence[Regularizer]) -> None:
        self._penalties = tuple(penalties)
        self._last_step: int | None = None

    def check_not_sharded(self) -> None:
        """Check that there are no penalties, for an engine that shards gradients.

        Raises:
            ArgumentError: There are some.
        """
        if self._penalties:
            raise ArgumentError(
                "regularizers with an engine that shards gradients",
                expected="complete gradients on each process",
                fix="use DistributedDataParallel, or leave regularizers out",
                field="regularizers",
            )

    def add(self, step: int, scale: float) -> None:
        """Add the gradients; arguments as in :meth:`Regularizer.backward`."""
        for penalty in self._penalties:
            penalty.backward(step, scale)
        self._last_step = step

    def check(self, step: int) -> None:
        """Check that the gradients of a step contain those of the penalties.

        Raises:
            ArgumentError: They do not, because the method that adds them was replaced.
        """
        if self._penalties and self._last_step != step:
            raise ArgumentError(
                "regularizers, but training_step does not call that of fulltune.Trainer, which adds their gradients",
                expected="gradients with those of the penalties before the optimizer step",
                fix="call super().training_step(…) in your training_step, or leave regularizers out",
                field="regularizers",
            )


# ---- Penalties on weights ----


@dataclass(frozen=True)
class Shared:
    """A parameter of the trained model that the base has too.

    Attributes:
        name: Its name.
        parameter: The parameter of the trained model.
        base: Its value in the base; it may have fewer rows.
    """

    name: str
    parameter: nn.Parameter
    base: Tensor

    @property
    def rows(self) -> int:
        """Number of rows that both have."""
        return int(self.base.shape[0])


def shared_parameters(base: Bundle, tuned: Bundle) -> list[Shared]:
    """Return the trainable parameters that the base has too: all, or those of the body if the head is new.

    The tensors of the base are not copied. Of embeddings with new tokens, the rows of the base are shared.
    """
    same_head = tuned.head == base.head
    tuned_part = tuned.model if same_head else tuned.model.base_model
    base_part = base.model if same_head else base.model.base_model
    known = dict(base_part.named_parameters())
    return [
        Shared(name, parameter, known[name].detach())
        for name, parameter in tuned_part.named_parameters()
        if parameter.requires_grad and name in known and known[name].shape[1:] == parameter.shape[1:]
    ]


@dataclass(frozen=True)
class Anchor:
    """Penalize the distance from the base with ``weight / 2 · Σ importance · (θ − θ_base)²``.

    This is L2-SP with equal importance (Li et al. 2018, the α part of equation 2), and EWC with the diagonal Fisher
    information as importance (Kirkpatrick et al. 2017, equation 3).

    Attributes:
        weight: Weight of the penalty.
        anchors: Parameters with their value in the base, which must not change during training.
        importance: Importance by name of parameter; None for 1.
    """

    weight: float
    anchors: Sequence[Shared]
    importance: Mapping[str, Tensor] | None = None

    @torch.no_grad()
    def backward(self, step: int, scale: float = 1.0) -> None:
        for shared in self.anchors:
            parameter = shared.parameter
            pull = parameter[: shared.rows] - shared.base
            if self.importance is not None:
                pull *= self.importance[shared.name]
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad[: shared.rows].add_(pull, alpha=self.weight * scale)


def copied(anchors: Sequence[Shared]) -> list[Shared]:
    """Return anchors with copies of the tensors of the base, for a base that is trained in place."""
    return [replace(shared, base=shared.base.clone()) for shared in anchors]


def diagonal_fisher(base: Bundle, features: Sequence[Features], names: Iterable[str]) -> dict[str, Tensor]:
    """Return the diagonal Fisher information of the base on general text, scaled to a mean of 1.

    This is the mean over sequences of the squared gradient of the mean negative log-likelihood: the empirical Fisher
    information, which equals the Fisher information for text that is sampled from the base (Kirkpatrick et al. 2017).
    With the scale, ``ewc: x`` is on average as strong as ``l2_sp: x``.

    Args:
        base: The base; it is not changed.
        features: General text; at most :data:`FISHER` sequences are used.
        names: Names of parameters of the model or of its body.
    """
    model: Any = base.model
    known = dict(model.base_model.named_parameters()) | dict(model.named_parameters())
    chosen = {name: known[name] for name in names}
    sums = {name: torch.zeros_like(parameter) for name, parameter in chosen.items()}
    was_trainable = {parameter: parameter.requires_grad for parameter in chosen.values()}
    collate = Collator(int(base.tokenizer.pad_token_id or 0))
    for parameter in was_trainable:
        parameter.requires_grad_(True)
    for item in aligned_labels(base, features[:FISHER]):
        loss = model(**_batch(collate, [item], model.device)).loss
        gradients = torch.autograd.grad(loss, list(chosen.values()), allow_unused=True)
        for total, gradient in zip(sums.values(), gradients, strict=True):
            if gradient is not None:
                total.add_(gradient.detach().square())
    for parameter, is_trainable in was_trainable.items():
        parameter.requires_grad_(is_trainable)
    count = sum(total.numel() for total in sums.values())
    mean = sum(float(total.sum()) for total in sums.values()) / max(1, count)
    return {name: total / mean if mean else total for name, total in sums.items()}


# ---- Penalties on predictions ----


@dataclass(frozen=True)
class Distillation:
    """Penalize ``weight · KL(base ‖ tuned)``, the mean over the tokens of some sequences of general text per step.

    Attributes:
        weight: Weight of the penalty.
        base: The base, whose head is used for the student if the student has another one.
        teacher: The base with frozen weights.
        student: The trained model.
        features: General text.
        seed: Seed of the order in which it is read.
    """

    weight: float
    base: Bundle
    teacher: Bundle
    student: Bundle
    features: Sequence[Features]
    seed: int

    def backward(self, step: int, scale: float = 1.0) -> None:
        collate = Collator(int(self.base.tokenizer.pad_token_id or 0))
        batch = _batch(collate, self.chosen(step), self.student.model.device)
        with torch.no_grad():
            wanted = self._logits(self.teacher, batch)
        with with_base_head(self.base, self.student) as bundle:
            logits = self._logits(bundle, batch)
        # The scale is part of the loss: in half precision, gradients of activations would otherwise become 0.
        (self.weight * scale * kl_divergence(wanted, logits)).backward()  # type: ignore[no-untyped-call]

    def chosen(self, step: int) -> list[Features]:
        """Return the sequences of a step, which depend on its index only, so that a run resumes identically."""
        n = len(self.features)
        size = min(DISTILLED, n)
        places = range(step * size, (step + 1) * size)
        orders = {place // n: np.random.default_rng([self.seed, place // n]).permutation(n) for place in places}
        return [self.features[orders[place // n][place % n]] for place in places]

    @staticmethod
    def _logits(bundle: Bundle, batch: dict[str, Tensor]) -> Tensor:
        """Return the logits ``(P, V)`` of the positions with a label."""
        logits = bundle.model(**batch).logits
        labels = shift(batch["labels"]) if bundle.family == "decoder" else batch["labels"]
        labeled: Tensor = logits[labels != IGNORED]
        return labeled


def kl_divergence(base: Tensor, tuned: Tensor) -> Tensor:
    """Return the mean over rows of KL(base ‖ tuned) in nats (Hinton et al. 2015 at temperature 1, minus a constant).

    Args:
        base: Logits of the base, ``(P, V)``.
        tuned: Logits of the tuned model, ``(P, V')``; only the common columns are used.
    """
    columns = min(base.shape[-1], tuned.shape[-1])
    before = F.log_softmax(base[:, :columns].float(), dim=-1)
    after = F.log_softmax(tuned[:, :columns].float(), dim=-1)
    return F.kl_div(after, before, reduction="batchmean", log_target=True)


def _batch(collate: Collator, items: Sequence[Features], device: torch.device) -> dict[str, Tensor]:
    rows = [{"input_ids": item.input_ids, "labels": item.labels} for item in items]
    return {name: value.to(device) for name, value in collate(rows).items()}


# ---- Penalties of a config ----


def regularizers(config: Config, base: Bundle, tuned: Bundle, features: Sequence[Features]) -> list[Regularizer]:
    """Return the penalties of the section ``regularize``.

    Args:
        config: The config of the run.
        base: The untrained base; if it is trained in place, the tensors that must not change are copied.
        tuned: The model to train, prepared by its method.
        features: General text from :func:`general_text.encode`; empty if no penalty reads it.
    """
    return list(_regularizers(config, base, tuned, features))


def _regularizers(config: Config, base: Bundle, tuned: Bundle, features: Sequence[Features]) -> Iterator[Regularizer]:
    wanted = config.regularize
    in_place = tuned.model is base.model
    anchors: Sequence[Shared] = ()
    if wanted.l2_sp or wanted.ewc:
        anchors = shared_parameters(base, tuned)
        anchors = copied(anchors) if in_place else anchors
    if wanted.l2_sp:
        yield Anchor(wanted.l2_sp, anchors)
    if wanted.ewc:
        yield Anchor(wanted.ewc, anchors, diagonal_fisher(base, features, [shared.name for shared in anchors]))
    if wanted.distill:
        teacher = replace(base, model=copy.deepcopy(base.model).eval()) if in_place else base
        teacher.model.requires_grad_(False)
        yield Distillation(
            weight=wanted.distill, base=base, teacher=teacher, student=tuned, features=features, seed=config.train.seed
        )
