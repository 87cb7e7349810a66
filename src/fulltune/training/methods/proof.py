"""Prove what a method trains: computation in float32, trained tensors change, frozen tensors do not."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fulltune.errors import ModelError, abridged

#: Largest number of tensor names in a message.
_NAMED = 5

#: Number of weights per tensor whose change is measured.
_SAMPLED = 256

#: Lower bound of the size of weights to which changes are relative: weights may be zero.
_LEAST = 1e-3


@dataclass
class FirstStep(TrainerCallback):
    """Check the gradients and the moments of the optimizer in the first optimizer step.

    Attributes:
        is_8bit: The moments may be 8-bit numbers, because the configured optimizer stores them so.
        evidence: Results of the checks, one per line.
        done: The first step is over.

    Raises (in training):
        ModelError: A gradient or a moment is not float32, or no parameter has a gradient.
    """

    is_8bit: bool = False
    evidence: list[str] = field(default_factory=list)
    done: bool = False

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # DeepSpeed has taken its step before this event, and its gradients are gone.
        if self.done or args.deepspeed_plugin is not None:
            return
        trainable = [(name, value) for name, value in kwargs["model"].named_parameters() if value.requires_grad]
        with_gradient = [(name, value.grad) for name, value in trainable if value.grad is not None]
        require("have gradients that are not float32", [n for n, g in with_gradient if g.dtype != torch.float32])
        missing = [name for name, value in trainable if value.grad is None]
        if not with_gradient:
            require("have no gradient", missing)
        self.evidence.append(f"gradients of {len(with_gradient)} tensors float32")
        if missing:
            self.evidence.append(f"no gradient (not part of the loss): {abridged(missing)}")

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.done:
            return
        self.done = True
        names = {value: name for name, value in kwargs["model"].named_parameters()}
        moments = [
            (names.get(parameter, "a shard"), moment)
            for parameter, kept in kwargs["optimizer"].state.items()
            for moment in kept.values()
            if isinstance(moment, torch.Tensor) and moment.shape == parameter.shape and moment.dim() > 0
        ]
        allowed = {torch.float32, torch.uint8} if self.is_8bit else {torch.float32}
        require("have optimizer moments that are not float32", [n for n, m in moments if m.dtype not in allowed])
        small = sum(moment.dtype == torch.uint8 for _, moment in moments)
        if small:
            self.evidence.append(f"{small} optimizer moments in 8-bit numbers, as configured")
        self.evidence.append(f"{len(moments) - small} optimizer moments float32")


def tied_parameters(model: nn.Module) -> tuple[str, ...]:
    """Return ``first = other`` for every parameter with a second name, sorted."""
    first: dict[int, str] = {}
    pairs = []
    for name, value in model.named_parameters(remove_duplicate=False):
        known = first.setdefault(id(value), name)
        if known != name:
            pairs.append(f"{known} = {name}")
    return tuple(sorted(pairs))


def fingerprints(model: nn.Module) -> dict[str, bytes]:
    """Return the SHA-256 of each parameter, which detects changes without a copy of the weights."""
    return {name: _sha256(value.detach()) for name, value in model.named_parameters()}


def samples(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of at most :data:`_SAMPLED` evenly spread weights of each parameter."""
    flat = {name: value.detach().reshape(-1) for name, value in model.named_parameters()}
    return {name: value[:: max(1, value.numel() // _SAMPLED)][:_SAMPLED].cpu().clone() for name, value in flat.items()}


def largest_change(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> float:
    """Return the largest change of a weight, relative to the largest weight of its sample."""
    changes = (
        float((after[name] - old).abs().max() / old.abs().max().clamp(min=_LEAST)) for name, old in before.items()
    )
    return max(changes, default=0.0)


def _sha256(tensor: torch.Tensor) -> bytes:
    octets: Any = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(octets).digest()


def require(broken: str, names: Iterable[str]) -> None:
    """Check that no tensor violates a condition.

    Args:
        broken: The violation, as a predicate.
        names: Names of the tensors that violate the condition.

    Raises:
        ModelError: There are such tensors.
    """
    tensors = sorted(names)
    if tensors:
        raise ModelError(
            f"{len(tensors)} tensors {broken}: {abridged(tensors)}",
            expected="float32, trained or frozen as the method defines",
            fix="load the model with fulltune, and do not change its tensors",
            field="model",
        )
