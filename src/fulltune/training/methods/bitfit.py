"""Implement ``bitfit``: train biases only (Ben Zaken et al. 2022), and a classification head."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulltune.errors import ModelError
from fulltune.training.methods.adapters import Partial, head_modules, is_inside, train_modules

if TYPE_CHECKING:
    from fulltune.models.bundle import Bundle


class BitFit(Partial):
    """Train every parameter named ``bias``, those of norms included, and a complete classification head."""

    name = "bitfit"

    def attach(self, bundle: Bundle) -> None:
        heads = head_modules(bundle)
        biases = [
            value
            for name, value in bundle.model.named_parameters()
            if name.rpartition(".")[2] == "bias" and not is_inside(name, heads)
        ]
        if not biases:
            raise ModelError(
                f"{type(bundle.model).__name__} has no biases",
                expected="a model with biases, such as GPT-2, BERT or BART",
                fix="use lora",
                field="method",
            )
        for bias in biases:
            bias.requires_grad_(True)
        train_modules(bundle.model, heads)
