"""Implement ``lora``: train two small factors per linear layer, and add their product to its weight at the end.

Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models"; PEFT implements the layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fulltune.config import Config
from fulltune.errors import ModelError, did_you_mean
from fulltune.models.adapters.packages import require
from fulltune.training.methods.adapters import Partial, embedding_rows, head_modules, is_inside

if TYPE_CHECKING:
    from torch import Tensor

    from fulltune.models.bundle import Bundle


class Lora(Partial):
    """Train factors of rank ``adapter.rank`` for the linear layers of the body, and a complete classification head."""

    name = "lora"
    reads = frozenset({"rank", "alpha", "dropout", "targets"})
    refuses = frozenset({"l2_sp", "ewc"})
    stored_as = "merged"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        require(f"the method {self.name}", "peft")
        self._tuner: Any = None

    def attach(self, bundle: Bundle) -> None:
        import torch

        from fulltune.models.adapters import lora

        settings = self.config.adapter
        rows = embedding_rows(bundle)
        bundle.model.requires_grad_(False)
        head = head_modules(bundle)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.train.seed)
            self._tuner = lora.inject(
                bundle.model,
                targets(bundle, settings.targets, head),
                rank=settings.rank,
                alpha=2 * settings.rank if settings.alpha is None else settings.alpha,
                dropout=settings.dropout,
                full_modules=head,
                tokens=range(rows - bundle.grown, rows),
            )

    def is_added(self, name: str) -> bool:
        return "lora_" in name or "trainable_tokens" in name

    def stored(self, bundle: Bundle) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
        from fulltune.models.adapters import files, lora

        tensors = {f"{files.LORA_PREFIX}{name}": value for name, value in lora.state(self._tuner).items()}
        return lora.adapter_config(self._tuner), tensors

    def merge(self, bundle: Bundle) -> None:
        from fulltune.models.adapters import lora

        lora.merge(self._tuner)
        bundle.model.requires_grad_(True)

    def _check_tokens(self, bundle: Bundle) -> None:
        """Accept new tokens: their embeddings are trained."""


def targets(bundle: Bundle, wanted: str | Sequence[str], head: Sequence[str] = ()) -> list[str]:
    """Return the full names of the layers that ``adapter.targets`` selects.

    Args:
        bundle: The model.
        wanted: ``all-linear`` for every linear layer of the body, or endings of names (``q_proj``, ``attn.c_attn``).
        head: Modules that are trained completely, and so have no factors.

    Raises:
        ModelError: No linear layer has a name with one of the endings.
    """
    from fulltune.models.adapters import lora

    model: Any = bundle.model
    output = model.get_output_embeddings()
    inside = {id(layer) for layer in model.base_model.modules()} - {id(output)}
    known = [
        name
        for name in lora.linear_layers(model)
        if id(model.get_submodule(name)) in inside and not is_inside(name, head)
    ]
    if wanted == "all-linear":
        return known
    asked = [wanted] if isinstance(wanted, str) else list(wanted)
    matches = {ending: [name for name in known if f".{name}".endswith(f".{ending}")] for ending in asked}
    missing = [ending for ending, names in matches.items() if not names]
    if missing:
        endings = sorted({name.rpartition(".")[2] for name in known})
        raise ModelError(
            f"no linear layer of {type(model).__name__} is named {' or '.join(map(repr, missing))}",
            expected=f"all-linear, or some of {', '.join(endings)}",
            fix=did_you_mean(missing[0], endings) or "choose some of these",
            field="adapter.targets",
        )
    return [name for name in known if any(name in names for names in matches.values())]
