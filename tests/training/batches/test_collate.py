from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from fulltune.tasks.base import Features
from fulltune.training.batches.collate import (
    ROW_NUMBERS,
    Collator,
    FeatureDataset,
    Numbered,
    NumberedDataset,
    RowCollator,
    as_rows,
    take_row_numbers,
    text_labels,
)


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6))
def test_padding_is_determined_by_length_and_never_by_id(lengths: list[int]) -> None:
    rows = [{"input_ids": [7] * length, "labels": [7] * length} for length in lengths]
    batch = Collator(pad_token_id=7)(rows)
    assert batch["input_ids"].shape == (len(lengths), max(lengths))
    assert (batch["input_ids"] == 7).all()
    assert batch["attention_mask"].sum(dim=1).tolist() == lengths
    assert (batch["labels"] != -100).sum(dim=1).tolist() == lengths


def test_features_of_every_kind_become_tensors() -> None:
    kinds: list[tuple[Any, torch.dtype, tuple[int, ...]]] = [
        ([5, 6], torch.int64, (2, 2)),
        (1, torch.int64, (2,)),
        ([1.0, 0.0, 1.0], torch.float32, (2, 3)),
        (True, torch.int64, (2,)),
        ([True, False], torch.float32, (2, 2)),
    ]
    for labels, dtype, shape in kinds:
        data = FeatureDataset([Features([1, 2], labels, "a"), Features([3, 4, 5], labels, "b")])
        batch = Collator(0)([data[0], data[1]])
        assert (batch["labels"].dtype, tuple(batch["labels"].shape)) == (dtype, shape)
        assert "row_id" not in batch


def test_label_names_of_the_library_are_known() -> None:
    for name in ("label", "label_ids", "labels"):
        assert Collator(0)([{"input_ids": [1], name: 3}])["labels"].tolist() == [3]


def test_rows_may_be_objects_with_attributes() -> None:
    @dataclass
    class Row:
        input_ids: list[int]
        attention_mask: list[int]
        label: int
        token_type_ids: list[int] | None = None

    batch = Collator(0)([Row([1, 2], [1, 1], 1), Row([3], [1], 0)])
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[1, 2], [3, 0]],
        "attention_mask": [[1, 1], [1, 0]],
        "labels": [1, 0],
    }


def test_given_masks_are_kept() -> None:
    batch = Collator(0)(
        [{"input_ids": [1, 2, 3], "attention_mask": [1, 1, 0]}, {"input_ids": [1], "attention_mask": [1]}]
    )
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 0, 0]]


def test_columns_are_seen_as_rows_and_other_data_is_left_alone() -> None:
    rows = as_rows({"input_ids": [[1], [2, 3]], "labels": [0, 1]})
    assert len(rows) == 2
    assert rows[1] == {"input_ids": [2, 3], "labels": 1}
    untouched = [{"input_ids": [1]}]
    assert as_rows(untouched) is untouched


def test_row_numbers_are_carried_and_removed() -> None:
    data = NumberedDataset([{"input_ids": [1]}, {"input_ids": [2]}])
    assert data.__getitems__([1, 0]) == [Numbered(1, {"input_ids": [2]}), Numbered(0, {"input_ids": [1]})]
    collate = RowCollator(Collator(0), kind="causal", trim=True, numbered=True)
    batch = collate([data[1], data[0]])
    assert batch["input_ids"].tolist() == [[2], [1]]
    assert take_row_numbers(batch) == [1, 0]
    assert ROW_NUMBERS not in batch
    assert take_row_numbers(batch) == []


def _trimmed(kind: Any, row: dict[str, Any]) -> dict[str, Any]:
    return RowCollator(Collator(0), kind=kind, trim=True)([row])  # type: ignore[no-any-return]


def test_columns_of_padding_are_trimmed_with_their_labels() -> None:
    row = {"input_ids": [1, 2, 0, 0], "attention_mask": [1, 1, 0, 0], "labels": [1, 2, -100, -100]}
    assert _trimmed("causal", row)["labels"].tolist() == [[1, 2]]
    assert _trimmed("seq2seq", row | {"labels": [9, -100]})["labels"].tolist() == [[9]]


def test_columns_with_a_label_are_never_trimmed() -> None:
    row = {"input_ids": [1, 2, 0], "attention_mask": [1, 1, 0], "labels": [1, 2, 0]}
    assert _trimmed("causal", row)["labels"].tolist() == [[1, 2, 0]]


def test_a_class_vector_as_wide_as_the_text_is_not_trimmed() -> None:
    row = {"input_ids": [1, 2, 0], "attention_mask": [1, 1, 0], "labels": [1.0, 0.0, 0.0]}
    batch = _trimmed("multi-label", row)
    assert batch["input_ids"].shape == (1, 2)
    assert batch["labels"].shape == (1, 3)


def test_labels_of_text_follow_the_mask() -> None:
    ids = torch.tensor([[5, 0, 0]])
    assert text_labels(ids, torch.tensor([[1, 1, 0]])).tolist() == [[5, 0, -100]]
    assert text_labels(ids, None).tolist() == [[5, 0, 0]]
