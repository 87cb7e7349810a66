"""Collate rows to batches: columns as rows, padding by length, labels for plain text, row numbers.

Objects of the user are never modified.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from fulltune.models.token_ids import IGNORED
from fulltune.tasks.base import Features
from fulltune.training.batches import packing
from fulltune.training.objective import LabelKind
from fulltune.training.untouched import has_only_tokens

#: Key of the row numbers in a training batch; they are removed before the batch is computed.
ROW_NUMBERS = "fulltune_row_numbers"

#: Padding values by column; 0 for any other column.
_FILL = {"labels": IGNORED, "special_tokens_mask": 1}

#: Columns that have the width of ``input_ids`` and are cut together with it.
INPUT_COLUMNS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")

Item = Mapping[str, Any]
Batch = dict[str, Tensor]


class FeatureDataset(Dataset[dict[str, Any]]):
    """A dataset of encoded sequences; items have ``input_ids``, ``labels`` and ``row_id``."""

    def __init__(self, features: Sequence[Features]) -> None:
        self.features = features

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.features[index]
        return {"input_ids": item.input_ids, "labels": item.labels, "row_id": item.row_id}


class ColumnDataset(Dataset[dict[str, Any]]):
    """A dataset of the rows of a mapping of columns, such as a tokenizer returns."""

    def __init__(self, columns: Mapping[str, Sequence[Any]]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns["input_ids"])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: values[index] for name, values in self.columns.items()}


class Numbered(NamedTuple):
    """An item of a dataset, with its number."""

    number: int
    item: Any


class NumberedDataset(Dataset[Numbered]):
    """A map-style dataset whose items have their number, for :class:`RowCollator`."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Numbered:
        return Numbered(index, self.rows[index])

    def __getitems__(self, indices: list[int]) -> list[Numbered]:
        fetch = getattr(self.rows, "__getitems__", None)
        items = fetch(indices) if fetch else [self.rows[index] for index in indices]
        return [Numbered(*pair) for pair in zip(indices, items, strict=True)]

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the wrapped dataset, if it has one."""
        if hasattr(self.rows, "set_epoch"):
            self.rows.set_epoch(epoch)


def as_rows(dataset: Any) -> Any:
    """Return a dataset unchanged, or a mapping of columns with ``input_ids`` as rows."""
    is_columns = isinstance(dataset, Mapping) and "input_ids" in dataset
    return ColumnDataset(dataset) if is_columns else dataset


def columns_of(row: Any) -> Item:
    """Return the columns of a row: a mapping, or an object with attributes."""
    return row if isinstance(row, Mapping) else vars(row)


@dataclass(frozen=True)
class Collator:
    """Collate rows of token lists to tensors, padded to the longest row of the batch.

    Any family and head is supported: lists become ``(B, longest)``, numbers become ``(B,)``. A missing
    ``attention_mask`` is computed from the lengths, not from the padding id, which may be an ordinary token. ``label``
    and ``label_ids`` are renamed to ``labels``; strings and missing values are dropped. A row may be an object with
    attributes, such as a dataclass. Boolean labels become class numbers, or numbers per label if a row has several.

    Attributes:
        pad_token_id: Padding value of ``input_ids``.
        packed: Pack several rows into one if that saves padding (:mod:`fulltune.training.batches.packing`). The model
            must be a decoder that keeps packed documents apart, and rows must have ``input_ids`` and ``labels`` only,
            of the same length.
        side: Side of the padding, ``right`` or ``left``.
    """

    pad_token_id: int
    packed: bool = False
    side: str = "right"

    def __call__(self, rows: Sequence[Any]) -> Batch:
        rows = [columns_of(row) for row in rows]
        if self.packed and (batch := packing.pack(rows)) is not None:
            return batch
        names = [name for name, value in rows[0].items() if value is not None and not isinstance(value, str)]
        batch = {_renamed(name): self._column(_renamed(name), [row[name] for row in rows]) for name in names}
        if "input_ids" in batch and "attention_mask" not in batch:
            batch["attention_mask"] = _pad(
                [torch.ones(len(row["input_ids"]), dtype=torch.long) for row in rows], 0, self.side
            )
        return batch

    def _column(self, name: str, values: Sequence[Any]) -> Tensor:
        tensors = [torch.as_tensor(value) for value in values]
        if tensors[0].dtype == torch.float64:
            tensors = [tensor.float() for tensor in tensors]
        if name == "labels" and tensors[0].dtype == torch.bool:  # no loss takes booleans
            tensors = [tensor.float() if tensor.dim() else tensor.long() for tensor in tensors]
        if tensors[0].dim() == 0:
            return torch.stack(tensors)
        fill = self.pad_token_id if name in ("input_ids", "decoder_input_ids") else _FILL.get(name, 0)
        return _pad(tensors, fill, self.side)


def default_collator(processor: Any, model: Any) -> Collator:
    """Return the collator for a tokenizer, which may be None, and an unwrapped model."""
    known = [getattr(one, "pad_token_id", None) for one in (processor, model.config)]
    # Without a padding id any one can be used, because the attention mask hides it.
    pad = next((int(value) for value in known if value is not None), 0)
    return Collator(pad, side=getattr(processor, "padding_side", "right"))


@dataclass(frozen=True)
class RowCollator:
    """Wrap a collator: unwrap numbered rows, add missing labels, remove padding columns.

    Attributes:
        collate: The wrapped collator.
        kind: Kind of the labels; a ``causal`` batch without labels gets its text as labels.
        trim: Remove the columns on the right that are padding in every row.
        relabel: Replace the labels of ``collate`` if rows have a mask: it detects padding by its id only.
        numbered: Add the row numbers to the batch as :data:`ROW_NUMBERS`.
    """

    collate: Callable[[list[Any]], Any]
    kind: LabelKind | None
    trim: bool
    relabel: bool = False
    numbered: bool = False

    def __call__(self, rows: list[Any]) -> Any:
        numbers = [row.number for row in rows if isinstance(row, Numbered)]
        items = [row.item if isinstance(row, Numbered) else row for row in rows]
        batch = self.collate(items)
        if not isinstance(batch, MutableMapping):
            return batch
        if self.kind == "causal":
            self._add_labels(batch, items)
        if self.trim and self.kind is not None:
            trim(batch, self.kind)
        if self.numbered and numbers:
            batch[ROW_NUMBERS] = torch.tensor(numbers)
        return batch

    def _add_labels(self, batch: MutableMapping[str, Any], items: Sequence[Any]) -> None:
        wanted = "labels" not in batch or (self.relabel and "attention_mask" in items[0])
        if wanted and "input_ids" in batch and "shift_labels" not in batch:
            batch["labels"] = text_labels(batch["input_ids"], batch.get("attention_mask"))


def text_labels(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Return the text as labels ``(B, T)``, with its end-of-text token; masked positions are ignored."""
    return input_ids.clone() if attention_mask is None else input_ids.masked_fill(attention_mask == 0, IGNORED)


def with_row_numbers(loader: Any) -> Any:
    """Return a copy of a loader whose batches have their row numbers as :data:`ROW_NUMBERS`.

    A loader whose rows have no numbers, or whose collator is not a :class:`RowCollator`, is returned unchanged.

    Args:
        loader: A loader of Accelerate or torch; it is not modified.
    """
    inner = vars(loader).get("base_dataloader", loader)
    is_known = type(inner) is DataLoader and isinstance(inner.collate_fn, RowCollator)
    if not is_known or isinstance(inner.dataset, IterableDataset):
        return loader
    changed = {
        "dataset": NumberedDataset(inner.dataset),
        "collate_fn": replace(inner.collate_fn, numbered=True),
        "_iterator": None,  # persistent workers would have the rows without numbers
    }
    twin = _copied(inner, changed)
    return twin if inner is loader else _copied(loader, {"base_dataloader": twin})


def _copied(one: Any, changed: Mapping[str, Any]) -> Any:
    """Return a shallow copy with changed attributes, which loaders do not allow to be set."""
    twin = object.__new__(type(one))
    vars(twin).update(vars(one) | changed)
    return twin


def take_row_numbers(batch: Any) -> list[int]:
    """Remove the row numbers from a batch and return them; an empty list if it has none."""
    numbers = batch.pop(ROW_NUMBERS, None) if isinstance(batch, MutableMapping) else None
    return [] if numbers is None else numbers.tolist()


def trim(batch: MutableMapping[str, Any], kind: LabelKind) -> None:
    """Remove the columns on the right that are padding in every row, in place, if all inputs per token are known."""
    if not has_only_tokens(batch):
        return
    mask = batch["attention_mask"]
    names = list(INPUT_COLUMNS)
    used = mask != 0
    if kind in ("causal", "token") and "labels" in batch:
        names.append("labels")
        used = used | (batch["labels"] != IGNORED)
    _cut(batch, names, used)
    if kind == "seq2seq" and _has_only_labels_per_target_token(batch):
        _cut(batch, ["labels"], batch["labels"] != IGNORED)


def _has_only_labels_per_target_token(batch: Mapping[str, Any]) -> bool:
    """Return True if no other column of the decoder, such as its attention mask, has the width of the labels."""
    labels = batch.get("labels")
    if not isinstance(labels, Tensor) or labels.dim() != 2:
        return False
    others = (value for name, value in batch.items() if name != "labels" and name not in INPUT_COLUMNS)
    wide = (value for value in others if isinstance(value, Tensor) and value.dim() >= 2)
    return all(value.shape[1] != labels.shape[1] for value in wide)


def _cut(batch: MutableMapping[str, Any], names: Sequence[str], used: Tensor) -> None:
    width = used.shape[1]
    columns = used.any(dim=0).nonzero()
    last = int(columns[-1]) + 1 if columns.numel() else 1
    for name in names:
        value = batch.get(name)
        if isinstance(value, Tensor) and value.dim() == 2 and value.shape[1] == width:
            batch[name] = value[:, :last].contiguous()  # models call view() on their labels


def _pad(tensors: Sequence[Tensor], fill: int, side: str) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(tensors), batch_first=True, padding_value=fill, padding_side=side)


def _renamed(name: str) -> str:
    return "labels" if name in ("label", "label_ids") else name
