"""Implement ``linear-probe``: train the head only (Alain & Bengio 2017), a cheap baseline for the frozen body."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fulltune.errors import ModelError
from fulltune.training.methods.adapters import Partial, head_modules, train_modules

if TYPE_CHECKING:
    from fulltune.models.bundle import Bundle


class LinearProbe(Partial):
    """Train a classification head, or the output layer of a generating model unless it is tied to the embeddings."""

    name = "linear-probe"
    refuses = frozenset({"l2_sp", "ewc", "distill", "layer_decay"})

    def attach(self, bundle: Bundle) -> None:
        train_modules(bundle.model, head_modules(bundle) or [_output_layer(bundle.model)])


def _output_layer(model: Any) -> str:
    """Return the name of the module that maps hidden states to logits of tokens."""
    output = model.get_output_embeddings()
    if output is None or output.weight is model.get_input_embeddings().weight:
        raise ModelError(
            f"{type(model).__name__} has no separate output layer: its weight is that of the input embeddings",
            expected="a classification task, or a model whose output layer is not tied",
            fix="use bitfit or lora, which do not train the embeddings",
            field="method",
        )
    return next(str(name) for name, module in model.named_modules() if module is output)
