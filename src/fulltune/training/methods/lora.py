"""``lora``: two small factors beside every linear layer learn, and are added to its weight in the end.

Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models"; by PEFT.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fulltune.config import Config
from fulltune.errors import ModelError, did_you_mean
from fulltune.models.adapters import files, lora
from fulltune.models.adapters.packages import require
from fulltune.models.bundle import Bundle
from fulltune.training.methods.adapters import Partial, embedding_rows, head_modules, is_inside


class Lora(Partial):
    """Factors of rank ``adapter.rank`` beside the linear layers of the body; a classification head learns whole."""

    name = "lora"
    reads = frozenset({"rank", "alpha", "dropout", "targets"})
    refuses = frozenset({"l2_sp", "ewc"})
    is_beside = True

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        require(f"the method {self.name}", "peft")
        self._tuner: Any = None

    def attach(self, bundle: Bundle) -> None:
        settings, seed, rows = self.config.adapter, self.config.train.seed, embedding_rows(bundle)
        bundle.model.requires_grad_(False)
        whole = head_modules(bundle)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._tuner = lora.inject(
                bundle.model,
                targets(bundle, settings.targets, whole),
                rank=settings.rank,
                alpha=2 * settings.rank if settings.alpha is None else settings.alpha,
                dropout=settings.dropout,
                whole=whole,
                tokens=range(rows - bundle.grown, rows),
            )

    def is_added(self, name: str) -> bool:
        return "lora_" in name or "trainable_tokens" in name

    def stored(self, bundle: Bundle) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
        tensors = {f"{files.LORA_PREFIX}{name}": value for name, value in lora.state(self._tuner).items()}
        return lora.config_of(self._tuner), tensors

    def merge(self, bundle: Bundle) -> Bundle:
        lora.merge(self._tuner)
        bundle.model.requires_grad_(True)
        return bundle

    def _check_tokens(self, bundle: Bundle) -> None:
        """New tokens get embeddings, which learn."""


def targets(bundle: Bundle, wanted: str | Sequence[str], whole: Sequence[str] = ()) -> list[str]:
    """Whole names of the layers that ``adapter.targets`` means.

    Args:
        bundle: The model.
        wanted: ``all-linear`` for every linear layer of the body, or endings of names (``q_proj``, ``attn.c_attn``).
        whole: Modules that learn whole, and so take no factors.

    Raises:
        ModelError: A name ends that of no linear layer.
    """
    model: Any = bundle.model
    body, output = model.base_model, model.get_output_embeddings()
    inside = {id(layer) for layer in body.modules()} - {id(output)}
    known = [
        name
        for name in lora.linear_layers(model)
        if id(model.get_submodule(name)) in inside and not is_inside(name, whole)
    ]
    if wanted == "all-linear":
        return known
    asked = [wanted] if isinstance(wanted, str) else list(wanted)
    found = {ending: [name for name in known if f".{name}".endswith(f".{ending}")] for ending in asked}
    missing = [ending for ending, names in found.items() if not names]
    if missing:
        endings = sorted({name.rpartition(".")[2] for name in known})
        raise ModelError(
            f"no linear layer of {type(model).__name__} is called {' or '.join(map(repr, missing))}",
            expected=f"all-linear, or some of {', '.join(endings)}",
            fix=did_you_mean(missing[0], endings) or "name some of these",
            field="adapter.targets",
        )
    return [name for name in known if any(name in names for names in found.values())]
