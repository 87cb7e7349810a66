"""Adapt a stored classification head to the labels of a task, matching its rows by class name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from fulltune.errors import ModelError, abridged

#: Names of the weight matrices of classification heads in transformers.
_HEAD = re.compile(r"^(classifier|score|classification_head|logits_proj|out_proj)\b.*weight$")


@dataclass(frozen=True)
class StoredHead:
    """The classification head of a checkpoint.

    Attributes:
        labels: Names of its classes, in the order of its rows.
        multi_label: True if a row may have several labels.
    """

    labels: tuple[str, ...]
    multi_label: bool = False

    @classmethod
    def of(cls, config: PretrainedConfig, folder: Path) -> StoredHead | None:
        """Return the head that is in both the config and the weights; None if there is none."""
        labels = stored_labels(config)
        if not labels or stored_rows(config, folder) is not None:
            return None
        return cls(labels, config.problem_type == "multi_label_classification")

    def obstacle(self, labels: Sequence[str], multi_label: bool) -> str:
        """Return why this head cannot predict these labels; empty if it can."""
        if len(set(self.labels)) < len(self.labels):
            return "has two classes with the same name"
        rows = _matched(self.labels, labels)
        missing = [repr(label) for label, row in zip(labels, rows, strict=True) if row is None]
        if missing:
            return f"lacks {abridged(missing)}"
        kinds = ("one label per row", "several labels per row")
        return "" if self.multi_label == multi_label else f"was made for {kinds[self.multi_label]}"


def stored_labels(config: PretrainedConfig) -> tuple[str, ...]:
    """Return the labels of a checkpoint's classification head, in the order of its rows; empty without a head."""
    has_head = any(name.endswith("ForSequenceClassification") for name in config.architectures or [])
    names: dict[Any, Any] = config.id2label or {}
    return tuple(str(names[index]) for index in sorted(names)) if has_head else ()


def stored_rows(config: PretrainedConfig, folder: Path) -> int | None:
    """Return the number of rows of a stored classification head if it differs from the config; None otherwise."""
    count = len(stored_labels(config))
    rows = [shape[0] for file in sorted(folder.glob("*.safetensors")) for shape in _head_shapes(file)]
    return None if not count or not rows or count in rows else rows[-1]


def _head_shapes(file: Path) -> Iterator[list[int]]:
    """Yield the shapes of the matrices of a head in a file; none if it cannot be read."""
    with suppress(OSError, SafetensorError), safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - not a mapping
            if _HEAD.search(name) and len(shape := tensors.get_slice(name).get_shape()) == 2:
                yield shape


def relabel(model: PreTrainedModel, stored: Sequence[str], labels: Sequence[str], seed: int) -> str | None:
    """Rebuild a loaded head with one row per label: the stored row of that name, else a new one.

    Args:
        model: Changed in place, including its config.
        stored: Names of the head's rows; they are compared exactly, then without case if that is unambiguous.
        labels: Names of the new rows, in order.
        seed: Seed of new rows.

    Returns:
        A sentence that describes the change; None if nothing was changed.
    """
    rows = _matched(stored, labels)
    _name_classes(model, labels)
    if rows == list(range(len(stored))):
        return None
    name = output_layer(model, len(stored))
    model.set_submodule(name, _layer_of(model, model.get_submodule(name), rows, seed))
    kept = [f"{label!r}" for label, row in zip(labels, rows, strict=True) if row is not None]
    new = [f"{label!r}" for label, row in zip(labels, rows, strict=True) if row is None]
    keys = Counter(map(_key, stored))
    unclear = [repr(label) for label, row in zip(labels, rows, strict=True) if row is None and keys[_key(label)]]
    change = _change(stored, kept, new)
    if unclear:
        change += f" ({', '.join(unclear[:20])}: the same as other names except for case, so the stored row is unclear)"
    return change


def renewed(model: PreTrainedModel, fresh: Sequence[str], labels: Sequence[str], folder: Path, seed: int) -> str | None:
    """Replace the rows of a head that the checkpoint has for something else, such as classes of tokens.

    Args:
        model: Changed in place.
        fresh: Names of the weights that the checkpoint lacks.
        labels: Names of the classes.
        folder: Folder of the checkpoint.
        seed: Seed of the new rows.

    Returns:
        A sentence that describes the change; None if the head was not in the checkpoint.
    """
    if not any(shape for file in folder.glob("*.safetensors") for shape in _head_shapes(file)):
        return None
    name = output_layer(model, len(labels))
    if f"{name}.weight" in fresh:
        return None
    model.set_submodule(name, _layer_of(model, model.get_submodule(name), [None] * len(labels), seed))
    return (
        f"the checkpoint has a head of {len(labels)} rows, but config.json does not say that it classifies texts: a "
        f"new head was created for {abridged([repr(label) for label in labels])}"
    )


def _matched(stored: Sequence[str], labels: Sequence[str]) -> list[int | None]:
    """Return the stored row of each label, or None: that of the same name, else the only one that differs in case.

    A row belongs to one label: if several labels differ from its name in case only, it belongs to none of them.
    """
    exact = {name: row for row, name in enumerate(stored) if stored.count(name) == 1}
    keys = Counter(map(_key, stored)), Counter(map(_key, labels))
    row_of = {_key(name): row for row, name in enumerate(stored)}
    is_clear = {label: all(names[_key(label)] == 1 for names in keys) for label in labels}
    return [exact.get(label, row_of[_key(label)] if is_clear[label] else None) for label in labels]


def _change(stored: Sequence[str], kept: Sequence[str], new: Sequence[str]) -> str:
    """Return the sentence that describes a changed head."""
    head = f"the checkpoint has a classification head for {', '.join(map(repr, stored[:20]))}"
    if not new and len(kept) == len(stored):
        return f"{head}: its rows were put in the order of the labels, {', '.join(kept[:20])}"
    if not kept:
        return f"{head}, none of which occurs in the data: a new head was created for {', '.join(new[:20])}"
    added = f", rows for {', '.join(new[:20])} are new" if new else ""
    return f"{head}: rows for {', '.join(kept[:20])} were kept{added}"


def _key(label: str) -> str:
    """Return a class name without case and surrounding space, for comparison."""
    return label.strip().casefold()


def _name_classes(model: PreTrainedModel, labels: Sequence[str]) -> None:
    """Set the class names and their number in the config and the model."""
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {label: index for index, label in enumerate(labels)}
    if hasattr(model, "num_labels"):
        setattr(model, "num_labels", len(labels))  # noqa: B010 - losses read it; mypy would expect a tensor


def output_layer(model: PreTrainedModel, count: int) -> str:
    """Return the dotted name of the last linear layer outside the body with one output per class.

    Raises:
        ModelError: There is no such layer.
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
            expected="a classification head with one output per label",
            fix="use the base that this checkpoint was tuned from",
            field="model",
        )
    return str(names[-1])


def dropout_rate(model: PreTrainedModel) -> float:
    """Return the rate of the last dropout layer of a model, which precedes its output layer; 0 without one."""
    rates = [layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)]
    return rates[-1] if rates else 0.0


def new_projection(model: PreTrainedModel, fresh: Sequence[str]) -> nn.Linear | None:
    """Return the square layer of a pooler or a head that the checkpoint lacks; None if there is none.

    Poolers (BERT) and heads (RoBERTa, BART) project the state of one token before their output layer.

    Args:
        model: A model with a classification head.
        fresh: Names of the parameters that the checkpoint lacks.
    """
    layers = [layer for name, layer in model.named_modules() if f"{name}.weight" in fresh]
    square = [one for one in layers if isinstance(one, nn.Linear) and one.in_features == one.out_features]
    return square[-1] if square else None


@torch.no_grad()
def set_identity(layer: nn.Linear, scale: float) -> None:
    """Let a square layer pass its input on, multiplied by a number."""
    layer.weight.copy_(scale * torch.eye(layer.in_features))
    if layer.bias is not None:
        layer.bias.zero_()


@torch.no_grad()
def _layer_of(model: Any, stored: Any, rows: Sequence[int | None], seed: int) -> nn.Linear:
    """Return a linear layer with rows of the stored one; rows without a source are newly initialized."""
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
