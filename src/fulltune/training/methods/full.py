"""Implement ``full``: train every parameter in 32-bit floats, and prove it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fulltune.config import Config
from fulltune.records.run import Parameters
from fulltune.training.methods.base import Method, refuse_reduced

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import TrainerCallback

    from fulltune.models.bundle import Bundle


class Full(Method):
    """Train all parameters in float32; tied weights stay tied."""

    name = "full"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        refuse_reduced(config.trainer, self.name)
        self._before: dict[str, bytes] = {}
        self._sample: dict[str, Tensor] = {}
        self._tied: tuple[str, ...] = ()
        self._grown = 0

    def prepare(self, bundle: Bundle) -> None:
        import torch

        from fulltune.training.methods.proof import fingerprints, require, samples, tied_parameters

        model: Any = bundle.model
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        self._grown = bundle.grown
        model.float().requires_grad_(True)
        self._tied = tied_parameters(model)
        require("are not float32", [n for n, p in model.named_parameters() if p.dtype != torch.float32])
        self._before = fingerprints(model)
        self._sample = samples(model)

    def callbacks(self) -> Sequence[TrainerCallback]:
        return (self.first_step,)

    def proof(self, bundle: Bundle) -> Parameters:
        import torch

        from fulltune.training.methods.proof import fingerprints, largest_change, require, samples, tied_parameters

        named = dict(bundle.model.named_parameters())
        require("are frozen", [name for name, value in named.items() if not value.requires_grad])
        require("are not float32", [name for name, value in named.items() if value.dtype != torch.float32])
        require("are no longer tied", sorted(set(self._tied) - set(tied_parameters(bundle.model))))
        after = fingerprints(bundle.model)
        moved = sum(after[name] != self._before[name] for name in after)
        total = sum(value.numel() for value in named.values())
        return Parameters(
            total=total,
            trainable=total,
            frozen=0,
            dtype="float32",
            tied=self._tied,
            moved=moved / len(after),
            largest_change=largest_change(self._sample, samples(bundle.model)),
            evidence=self._evidence(moved, len(after)),
        )

    def _evidence(self, moved: int, tensors: int) -> tuple[str, ...]:
        lines = [f"all {tensors} tensors trainable and float32, 0 frozen", "TF32 off", *self.first_step.evidence]
        lines.append(f"{moved} of {tensors} tensors moved")
        if self.config.speed.precision == "bf16-mixed":
            lines.append("products in bfloat16, as configured (speed.precision: bf16-mixed)")
        if self._tied:
            lines.append(f"still tied: {', '.join(self._tied)}")
        if self._grown:
            lines.append(f"embeddings grown by {self._grown} rows for new tokens")
        return tuple(lines)
