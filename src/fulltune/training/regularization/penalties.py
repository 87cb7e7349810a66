"""What keeps the tuned model near the base while it learns: penalties, and rates that fall with depth.

A penalty adds its gradient once an optimizer step, beside the gradient of the task, before clipping; the logged loss
stays the task's own. All of them know the base as it was before the first step.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fulltune.config import Config
from fulltune.models.bundle import Bundle, with_base_head
from fulltune.models.losses import IGNORED, shift
from fulltune.tasks.base import Features
from fulltune.training.batches.collate import Collator
from fulltune.training.next_tokens import aligned_labels

#: Sequences of general text that a step of distillation reads at most, and that Fisher information is taken on.
DISTILLED, FISHER = 4, 64

#: Blocks of a transformer by the names that its families give them; what follows is their number.
_BLOCK = re.compile(r"^(.*?\b(?:h|layer|layers|block|blocks))\.(\d+)\.")

#: Parts below the first block.
_BOTTOM = re.compile(r"embed|\bwte\b|\bwpe\b|\bshared\b")


class Regularizer(Protocol):
    """Adds the gradient of a penalty to the parameters' ``.grad``; called once an optimizer step (from 0)."""

    def backward(self, step: int) -> None: ...


# ---- Towards the base's weights ----


@dataclass(frozen=True)
class Shared:
    """A parameter of the student and what it was in the base; ``rows`` tells how many rows both have."""

    name: str
    parameter: nn.Parameter
    base: Tensor

    @property
    def rows(self) -> int:
        return int(self.base.shape[0])


def shared_parameters(base: Bundle, student: Bundle) -> list[Shared]:
    """The student's parameters that learn and that the base has too: all, or those of the body where the head is new.

    The base's tensors are its own, not copies; embeddings that grew share the rows that were there.
    """
    same_head = student.head == base.head
    ours = student.model if same_head else student.model.base_model
    theirs = base.model if same_head else base.model.base_model
    known = dict(theirs.named_parameters())
    return [
        Shared(name, parameter, known[name].detach())
        for name, parameter in ours.named_parameters()
        if parameter.requires_grad and name in known and known[name].shape[1:] == parameter.shape[1:]
    ]


@dataclass(frozen=True)
class Anchor:
    """``weight / 2 · Σ importance · (θ − θ_base)²``: L2-SP where every parameter is equally important (Li et al. 2018,
    equation 2, its α part), EWC where the importance is the diagonal Fisher information (Kirkpatrick et al. 2017,
    equation 3).

    Attributes:
        weight: Of the penalty.
        anchors: Parameters and where they are pulled to; the tensors must not change during training.
        importance: By name; None for 1 everywhere.
    """

    weight: float
    anchors: Sequence[Shared]
    importance: Mapping[str, Tensor] | None = None

    @torch.no_grad()
    def backward(self, step: int) -> None:
        for shared in self.anchors:
            parameter = shared.parameter
            pull = parameter[: shared.rows] - shared.base
            if self.importance is not None:
                pull *= self.importance[shared.name]
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad[: shared.rows].add_(pull, alpha=self.weight)


def copied(anchors: Sequence[Shared]) -> list[Shared]:
    """The same with copies of the base's tensors: for a base that is about to be trained in place."""
    return [replace(shared, base=shared.base.clone()) for shared in anchors]


def diagonal_fisher(base: Bundle, features: Sequence[Features], names: Iterable[str]) -> dict[str, Tensor]:
    """How much the base's likelihood of general text hangs on each of its parameters, scaled to a mean of 1.

    The mean over sequences of the squared gradient of the sequence's mean negative log-likelihood: the empirical Fisher
    information, which for text that the base itself made up is the Fisher information (Kirkpatrick et al. 2017). Scaled
    so that ``ewc: x`` pulls as hard as ``l2_sp: x`` on the average.

    Args:
        base: Left as it was.
        features: At most :data:`FISHER` of them are used.
        names: Parameters of its model, or of its body, to measure.
    """
    model: Any = base.model
    known = dict(model.base_model.named_parameters()) | dict(model.named_parameters())
    chosen = {name: known[name] for name in names}
    sums = {name: torch.zeros_like(parameter) for name, parameter in chosen.items()}
    kept = {parameter: parameter.requires_grad for parameter in chosen.values()}
    collate = Collator(int(base.tokenizer.pad_token_id or 0))
    for parameter in kept:
        parameter.requires_grad_(True)
    for item in aligned_labels(base, features[:FISHER]):
        loss = model(**_batch(collate, [item], model.device)).loss
        gradients = torch.autograd.grad(loss, list(chosen.values()), allow_unused=True)
        for total, gradient in zip(sums.values(), gradients, strict=True):
            if gradient is not None:
                total.add_(gradient.detach().square())
    for parameter, wanted in kept.items():
        parameter.requires_grad_(wanted)
    mean = sum(float(total.sum()) for total in sums.values()) / max(1, sum(total.numel() for total in sums.values()))
    return {name: total / mean if mean else total for name, total in sums.items()}


# ---- Towards the base's predictions ----


@dataclass(frozen=True)
class Distillation:
    """``weight · KL(base ‖ tuned)``, the mean over the tokens of a few sequences of general text, others at each step.

    Attributes:
        weight: Of the penalty.
        base: Whose head the student is asked with, where that was given another.
        teacher: The base with weights that do not change.
        student: What learns.
        features: General text.
        seed: Of the order in which it is read.
    """

    weight: float
    base: Bundle
    teacher: Bundle
    student: Bundle
    features: Sequence[Features]
    seed: int

    def backward(self, step: int) -> None:
        collate = Collator(int(self.base.tokenizer.pad_token_id or 0))
        batch = _batch(collate, self.chosen(step), self.student.model.device)
        with torch.no_grad():
            wanted = self._logits(self.teacher, batch)
        with with_base_head(self.base, self.student) as bundle:
            found = self._logits(bundle, batch)
        (self.weight * kl_divergence(wanted, found)).backward()  # type: ignore[no-untyped-call]

    def chosen(self, step: int) -> list[Features]:
        """The sequences of a step: a function of its number, so that a resumed run goes on alike."""
        n = len(self.features)
        size = min(DISTILLED, n)
        places = range(step * size, (step + 1) * size)
        orders = {place // n: np.random.default_rng([self.seed, place // n]).permutation(n) for place in places}
        return [self.features[orders[place // n][place % n]] for place in places]

    @staticmethod
    def _logits(bundle: Bundle, batch: dict[str, Tensor]) -> Tensor:
        """Logits ``(P, V)`` at the positions whose token is predicted."""
        logits = bundle.model(**batch).logits
        labels = shift(batch["labels"]) if bundle.family == "decoder" else batch["labels"]
        found: Tensor = logits[labels != IGNORED]
        return found


def kl_divergence(base: Tensor, tuned: Tensor) -> Tensor:
    """Mean over rows of KL(base ‖ tuned), in nats, of two sets of logits ``(P, V)``; only columns that both have count
    (Hinton et al. 2015 at temperature 1, less a constant).
    """
    columns = min(base.shape[-1], tuned.shape[-1])
    before = F.log_softmax(base[:, :columns].float(), dim=-1)
    after = F.log_softmax(tuned[:, :columns].float(), dim=-1)
    return F.kl_div(after, before, reduction="batchmean", log_target=True)


def _batch(collate: Collator, items: Sequence[Features], device: torch.device) -> dict[str, Tensor]:
    rows = [{"input_ids": item.input_ids, "labels": item.labels} for item in items]
    return {name: value.to(device) for name, value in collate(rows).items()}


# ---- Made from the config ----


def regularizers(config: Config, base: Bundle, student: Bundle, features: Sequence[Features]) -> list[Regularizer]:
    """The penalties that ``regularize`` asks for, ready before the first step.

    Args:
        config: The job.
        base: The untouched base; where it is itself the student, what must not change is copied.
        student: What will learn, prepared by its method.
        features: General text from :func:`general_text.encode`; empty where none is needed.
    """
    return list(_regularizers(config, base, student, features))


def _regularizers(config: Config, base: Bundle, student: Bundle, features: Sequence[Features]) -> Iterator[Regularizer]:
    wanted, in_place = config.regularize, student.model is base.model
    anchors: Sequence[Shared] = ()
    if wanted.l2_sp or wanted.ewc:
        anchors = shared_parameters(base, student)
        anchors = copied(anchors) if in_place else anchors
    if wanted.l2_sp:
        yield Anchor(wanted.l2_sp, anchors)
    if wanted.ewc:
        yield Anchor(wanted.ewc, anchors, diagonal_fisher(base, features, [shared.name for shared in anchors]))
    if wanted.distill:
        teacher = replace(base, model=copy.deepcopy(base.model).eval()) if in_place else base
        teacher.model.requires_grad_(False)
        yield Distillation(wanted.distill, base, teacher, student, features, config.train.seed)


# ---- Rates by depth ----


def distances(model: nn.Module) -> dict[str, int]:
    """How far below the top each parameter lies: 0 for the head and what follows the last block, 1 for the last block,
    and one more than all blocks for the embeddings. The two stacks of an encoder-decoder are counted side by side.
    """
    names = [name for name, _ in model.named_parameters()]
    found = {name: match for name in names if (match := _BLOCK.match(name))}
    heights: dict[str, int] = {}
    for match in found.values():
        heights[match[1]] = max(heights.get(match[1], 0), int(match[2]) + 1)
    bottom = max(heights.values(), default=0) + 1
    return {
        name: heights[found[name][1]] - int(found[name][2])
        if name in found
        else (bottom if _BOTTOM.search(name) else 0)
        for name in names
    }


def decay_by_layer(optimizer: torch.optim.Optimizer, model: nn.Module, factor: float) -> None:
    """Split the optimizer's groups so that a parameter at distance d learns at ``rate · factor^d`` (Howard & Ruder
    2018, discriminative fine-tuning). The first group keeps the full rate, which is the one that is logged.

    Call it before the first step and before the scheduler is made.
    """
    depth = {id(parameter): distances(model)[name] for name, parameter in model.named_parameters()}
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        for distance in sorted({depth[id(parameter)] for parameter in group["params"]}):
            own = [parameter for parameter in group["params"] if depth[id(parameter)] == distance]
            groups.append(group | {"params": own, "lr": group["lr"] * factor**distance})
    optimizer.param_groups = sorted(groups, key=lambda group: -group["lr"])
