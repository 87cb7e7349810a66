"""A stored classification head for labels in another order, or for other labels: its rows follow their names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from fulltune.data.findings import listed
from fulltune.errors import ModelError

#: Names that the models of transformers give to the matrices of a head for classes.
_HEAD = re.compile(r"^(classifier|score|classification_head|logits_proj|out_proj)\b.*weight$")


@dataclass(frozen=True)
class StoredHead:
    """The classification head that a checkpoint holds.

    Attributes:
        labels: Names of its classes, in the order of its rows.
        multi_label: Several of them may hold at once.
    """

    labels: tuple[str, ...]
    multi_label: bool = False

    @classmethod
    def of(cls, config: PretrainedConfig, folder: Path) -> StoredHead | None:
        """Return the head that a config describes and the files hold; None where there is none."""
        labels = stored_labels(config)
        if not labels or stored_rows(config, folder) is not None:
            return None
        return cls(labels, config.problem_type == "multi_label_classification")

    def obstacle(self, labels: Sequence[str], multi_label: bool) -> str:
        """Return why this head cannot answer with these labels; an empty text where it can."""
        known = {_key(label) for label in self.labels}
        if len(known) < len(self.labels):
            return "names two of its classes alike"
        missing = [repr(label) for label in labels if _key(label) not in known]
        if missing:
            return f"lacks {listed(missing)}"
        kinds = ("one label per row", "several labels per row")
        return "" if self.multi_label == multi_label else f"was made for {kinds[self.multi_label]}"


def stored_labels(config: PretrainedConfig) -> tuple[str, ...]:
    """Return the labels of the classification head that a checkpoint holds, in the order of its rows; none without."""
    has_head = any(name.endswith("ForSequenceClassification") for name in config.architectures or [])
    names: dict[Any, Any] = config.id2label or {}
    return tuple(str(names[index]) for index in sorted(names)) if has_head else ()


def stored_rows(config: PretrainedConfig, folder: Path) -> int | None:
    """Return the rows of a stored classification head of another size than the config says; None where they agree."""
    count = len(stored_labels(config))
    rows = [shape[0] for file in sorted(folder.glob("*.safetensors")) for shape in _head_shapes(file)]
    return None if not count or not rows or count in rows else rows[-1]


def _head_shapes(file: Path) -> Iterator[list[int]]:
    """Return the shapes of the matrices of a head in a file; none of a file that cannot be read."""
    with suppress(OSError, SafetensorError), safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - no mapping
            if _HEAD.search(name) and len(shape := tensors.get_slice(name).get_shape()) == 2:
                yield shape


def relabel(model: PreTrainedModel, stored: Sequence[str], labels: Sequence[str], seed: int) -> str | None:
    """Give a loaded head one row for each label, in their order: the stored row of that name, else a new one.

    Args:
        model: Changed in place, its config too.
        stored: Names of the rows that the head has; they are compared without regard to case.
        labels: Names that it shall have.
        seed: For new rows.

    Returns:
        What was done; None where the rows were right as they are.
    """
    known = {_key(name): row for row, name in enumerate(stored)}
    rows = [known.get(_key(label)) for label in labels]
    _name_classes(model, labels)
    if rows == list(range(len(stored))):
        return None
    place = _output_layer(model, len(stored))
    model.set_submodule(place, _layer_of(model, model.get_submodule(place), rows, seed))
    kept = [f"{label!r}" for label, row in zip(labels, rows, strict=True) if row is not None]
    new = [f"{label!r}" for label, row in zip(labels, rows, strict=True) if row is None]
    found = f"the checkpoint has a classification head for {', '.join(map(repr, stored[:20]))}"
    if not new and len(kept) == len(stored):
        return f"{found}: its rows were put in the order of the labels, {', '.join(kept[:20])}"
    if not kept:
        return f"{found}, none of which the data has: a new head was made for {', '.join(new[:20])}"
    made = f", rows for {', '.join(new[:20])} are new" if new else ""
    return f"{found}: rows for {', '.join(kept[:20])} were kept{made}"


def _key(label: str) -> str:
    """Return what two spellings of a class have in common."""
    return label.strip().casefold()


def _name_classes(model: PreTrainedModel, labels: Sequence[str]) -> None:
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {label: index for index, label in enumerate(labels)}
    if hasattr(model, "num_labels"):
        setattr(model, "num_labels", len(labels))  # noqa: B010 - losses read it; mypy takes attributes for tensors


def _output_layer(model: PreTrainedModel, count: int) -> str:
    """Return the dotted name of the last linear layer with one output for each class.

    Raises:
        ModelError: There is none.
    """
    body = {id(layer) for layer in model.base_model.modules()} if model.base_model is not model else set()
    names = [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and layer.out_features == count and id(layer) not in body
    ]
    if not names:
        raise ModelError(
            f"{type(model).__name__} has no linear layer with {count} outputs",
            expected="a classification head with one for each label",
            fix="name the base that this checkpoint was tuned from",
            field="model",
        )
    return str(names[-1])


@torch.no_grad()
def _layer_of(model: Any, stored: Any, rows: Sequence[int | None], seed: int) -> nn.Linear:
    """Return a linear layer whose rows are those of the stored one, or new where there is none."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = nn.Linear(stored.in_features, len(rows), bias=stored.bias is not None)
        model._init_weights(layer)
    for row, source in enumerate(rows):
        if source is not None:
            layer.weight[row] = stored.weight[source]
            if stored.bias is not None:
                layer.bias[row] = stored.bias[source]
    return layer.to(stored.weight.device, stored.weight.dtype)
