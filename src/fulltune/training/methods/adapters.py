"""Define the base class of methods that train some tensors and freeze all others, with the proof of both."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fulltune.config import Config
from fulltune.errors import ModelError
from fulltune.records.run import Parameters
from fulltune.training.methods.base import Method, refuse_reduced

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, TrainerCallback

    from fulltune.models.adapters.files import Origin
    from fulltune.models.bundle import Bundle


class Partial(Method):
    """Base class of these methods. Trained tensors are float32; frozen tensors are unchanged, byte for byte."""

    trains_all = False
    dtype: ClassVar[str] = "float32"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        refuse_reduced(config.trainer, self.name)
        self._origin: Origin | None = None
        self._before: dict[str, bytes] = {}
        self._total = 0
        self._prepared: PreTrainedModel | None = None

    @abstractmethod
    def attach(self, bundle: Bundle) -> None:
        """Make the tensors of the method trainable; all parameters are frozen before.

        Raises:
            ModelError: The model has no such tensors.
        """

    def prepare(self, bundle: Bundle) -> None:
        import torch

        from fulltune.models.adapters.files import Origin
        from fulltune.training.methods.proof import fingerprints, require

        model: Any = bundle.model
        if model is self._prepared:
            return
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        self._origin = Origin.of(bundle, self.name)
        self._check_tokens(bundle)
        model.float().requires_grad_(False)
        total = sum(value.numel() for value in model.parameters())
        self.attach(bundle)
        trained = self._trained(model)
        require("are not float32", [name for name, value in trained.items() if value.dtype != torch.float32])
        self._total = total + sum(value.numel() for name, value in trained.items() if self.is_added(name))
        self._prepared = model
        self._before = fingerprints(model)

    def is_added(self, name: str) -> bool:
        """Return True if the method has added a trained tensor to the model."""
        return False

    def callbacks(self) -> Sequence[TrainerCallback]:
        return (self.first_step,)

    def proof(self, bundle: Bundle) -> Parameters:
        import torch

        from fulltune.training.methods.proof import fingerprints, require, tied_parameters

        model = bundle.model
        after = fingerprints(model)
        trained = self._trained(model)
        changed = [name for name in after if name not in trained and after[name] != self._before[name]]
        require("are frozen, but changed", changed)
        require("are not float32", [name for name, value in trained.items() if value.dtype != torch.float32])
        moved = sum(after[name] != self._before[name] for name in trained)
        count = sum(value.numel() for value in trained.values())
        total = self._total
        frozen = len(after) - len(trained)
        return Parameters(
            total=total,
            trainable=count,
            frozen=total - count,
            dtype=self.dtype,
            tied=tied_parameters(model),
            moved=moved / len(trained),
            evidence=(
                f"{count:,} of {total:,} parameters trained ({count / total:.3%}), in {len(trained)} tensors",
                f"{frozen} frozen tensors are unchanged, byte for byte",
                *self.first_step.evidence,
                f"{moved} of {len(trained)} trained tensors moved",
            ),
        )

    def save(self, bundle: Bundle, folder: Path) -> None:
        from fulltune.models.adapters import files

        assert self._origin is not None, "save after prepare"
        config, tensors = self.stored(bundle)
        files.write(folder, self._origin, config, tensors)

    def stored(self, bundle: Bundle) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
        """Return the config and the tensors of the adapter, in the format of PEFT if it has the method."""
        return {"peft_type": None}, dict(self._trained(bundle.model))

    @staticmethod
    def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
        return {name: value for name, value in model.named_parameters() if value.requires_grad}

    def _check_tokens(self, bundle: Bundle) -> None:
        if bundle.grown:
            raise ModelError(
                f"the model has no embeddings for {bundle.grown} tokens of its tokenizer, and {self.name} trains none",
                expected="an embedding for every token",
                fix="use full or lora, which train embeddings of new tokens",
                field="method",
            )


def embedding_rows(bundle: Bundle) -> int:
    """Return the number of tokens that have an embedding."""
    embeddings: Any = bundle.model.get_input_embeddings()
    return int(embeddings.weight.shape[0])


def head_modules(bundle: Bundle) -> list[str]:
    """Return the names of the modules that every method trains completely: a classification head and its new layers.

    A head on a pretrained body may add layers to the body that the checkpoint does not have, such as the pooler of BERT
    on a masked-LM checkpoint. They are initialized at random, so they must not be frozen.
    """
    if bundle.head != "classification":
        return []
    model: Any = bundle.model
    heads = [
        name
        for name, child in model.named_children()
        if child is not model.base_model and any(True for _ in child.parameters())
    ]
    owners = [name.rpartition(".")[0] for name in bundle.fresh]
    return heads + [name for name in dict.fromkeys(owners) if not is_inside(name, heads)]


def is_inside(name: str, modules: Sequence[str]) -> bool:
    """Return True if a dotted name is one of the modules, or inside one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def train_modules(model: nn.Module, names: Sequence[str]) -> None:
    """Make all parameters of these modules trainable."""
    for name in names:
        model.get_submodule(name).requires_grad_(True)
