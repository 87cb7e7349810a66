"""``linear-probe``: only the head learns (Alain & Bengio 2017), a cheap reference for what the frozen body knows."""

from __future__ import annotations

from typing import Any

from fulltune.errors import ModelError
from fulltune.models.bundle import Bundle
from fulltune.training.methods.adapters import Partial, head_modules, train_modules


class LinearProbe(Partial):
    """A classification head; or the output layer of a model that generates, where it is not the embedding as well."""

    name = "linear-probe"
    refuses = frozenset({"l2_sp", "ewc", "distill", "layer_decay"})

    def attach(self, bundle: Bundle) -> None:
        train_modules(bundle.model, head_modules(bundle) or [_output_layer(bundle.model)])


def _output_layer(model: Any) -> str:
    """The name of what turns hidden states into words."""
    output = model.get_output_embeddings()
    if output is None or output.weight is model.get_input_embeddings().weight:
        raise ModelError(
            f"{type(model).__name__} has no output layer of its own: its weight is that of the input embeddings",
            expected="a classification task, or a model whose output layer is not tied",
            fix="use bitfit or lora, which leave the embeddings alone",
            field="method",
        )
    return next(str(name) for name, module in model.named_modules() if module is output)
