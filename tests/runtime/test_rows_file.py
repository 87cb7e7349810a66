"""Rows in memory as data: they become a file named by its content; anything else is refused with a message."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
import logging
import sqlite3
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pydantic
import pytest
import torch
from torch import nn

from fulltune.config import Config, load_config
from fulltune.data.load import Column, load_table
from fulltune.errors import ConfigError

ROWS = [{"text": f"row {number}", "label": "yes" if number % 2 else "no"} for number in range(6)]
COLUMNS = (Column("text", str), Column("label", str))


def config(train: Any, **data: Any) -> Config:
    return load_config({"model": "m", "task": "classification", "data": {"train": train, **data}})


def rows_of(config: Config) -> list[dict[str, Any]]:
    return [dict(row.fields) for row in load_table(config.data.train, COLUMNS, config.data)]


@pytest.mark.parametrize(
    "rows",
    [
        ROWS,
        tuple(ROWS),
        pd.DataFrame(ROWS),
        pa.Table.from_pylist(ROWS),
        datasets.Dataset.from_list(ROWS),
        datasets.Dataset.from_list(ROWS).class_encode_column("label"),
        datasets.Dataset.from_list(ROWS).with_format("numpy"),
        [{name: np.str_(value) for name, value in row.items()} for row in ROWS],
    ],
    ids=["list", "tuple", "pandas", "arrow", "dataset", "classes", "formatted", "numpy"],
)
def test_rows_in_memory_are_a_file_named_by_its_content(rows: Any) -> None:
    first, again = config(rows, valid=rows), config(rows)
    assert rows_of(first) == ROWS
    assert isinstance(first.data.train, str)
    assert first.data.train == first.data.valid == again.data.train
    assert load_config(first.model_dump()).data.train == first.data.train


def test_other_rows_are_another_file() -> None:
    assert config(ROWS).data.train != config(ROWS[1:]).data.train


def test_holes_in_a_data_frame_are_missing_values_and_other_objects_are_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    frame = pd.DataFrame(
        {
            "text": ["a", None],
            "label": [1.0, float("nan")],
            "when": [datetime.date(2024, 1, 1)] * 2,
            "raw": [b"x", b"y"],
        }
    )
    with caplog.at_level(logging.WARNING):
        path = config(frame).data.train
    lines = Path(str(path)).read_text(encoding="utf-8").splitlines()
    assert lines == [
        '{"text": "a", "label": 1.0, "when": "2024-01-01"}',
        '{"text": null, "label": null, "when": "2024-01-01"}',
    ]
    assert "columns omitted" in caplog.text
    assert "raw" in caplog.text


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (datasets.DatasetDict({"fit": datasets.Dataset.from_list(ROWS)}), "without a split named train"),
        (datasets.Dataset.from_list(ROWS).to_iterable_dataset(), "object of class IterableDataset"),
        ((row for row in ROWS), "object of class generator"),
        (pd.Series(["a"]), "object of class Series"),
        ({"text": ["a"]}, "object of class dict"),
        ([1, 2], "object of class list"),
        (pd.DataFrame({"text": []}), "no rows"),
        ([], "empty"),
    ],
)
def test_anything_but_a_path_or_rows_is_refused(rows: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        config(rows)
    assert caught.value.problems[0].field == "data.train"


def test_paths_and_lists_of_paths_stay_what_they_are() -> None:
    assert config(Path("a.jsonl")).data.train == "a.jsonl"
    assert config([Path("a.jsonl"), "b.jsonl"]).data.train == ("a.jsonl", "b.jsonl")


class Tone(enum.Enum):
    GOOD = "good"
    BAD = 2


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (Tone.GOOD, "good"),
        (Tone.BAD, "BAD"),
        (pd.Interval(0, 1), "(0, 1]"),
        (pd.Period("2024-01"), "2024-01"),
        (pd.Timedelta(days=1), "1 days 00:00:00"),
        (np.datetime64("2024-01-02", "ns"), "2024-01-02T00:00:00.000000000"),
        (Path("a/b"), "a/b"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ({"b", "a"}, ["a", "b"]),
        (frozenset([Tone.GOOD]), ["good"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_with_one_obvious_text_form_are_written_in_it(value: Any, written: Any) -> None:
    path = config([{"text": "x", "label": value}]).data.train
    assert json.loads(Path(str(path)).read_text(encoding="utf-8"))["label"] == written


def test_all_needed_columns_that_cannot_be_written_are_named() -> None:
    frame = pd.DataFrame({"body": [b"x", b"y"], "label": ["a", object()], "other": [object()] * 2})
    with pytest.raises(ConfigError) as caught:
        config(frame, valid=frame, text="body")
    assert [problem.where for problem in caught.value.problems] == [
        "data.train, column 'body'",
        "data.train, column 'label'",
        "data.valid, column 'body'",
        "data.valid, column 'label'",
    ]
    assert "type bytes in row 1" in caught.value.problems[0].found
    assert "decode" in caught.value.problems[0].fix
    assert "type object in row 2" in caught.value.problems[1].found


def nested() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "kind"),
    [(nested(), "list, nested too deeply"), (10**5000, "int with too many digits"), (1j, "complex")],
    ids=["nested", "long", "complex"],
)
def test_values_that_json_cannot_hold_are_named(value: Any, kind: str) -> None:
    with pytest.raises(ConfigError, match=f"a value of type {kind} in row 1"):
        config([{"text": "x", "label": value}])


def test_tensors_are_numbers_and_a_named_index_is_a_column() -> None:
    path = config([{"text": "x", "label": torch.tensor(1), "more": torch.ones(2, requires_grad=True)}]).data.train
    assert json.loads(Path(str(path)).read_text(encoding="utf-8")) == {"text": "x", "label": 1, "more": [1.0, 1.0]}
    frame = pd.DataFrame({"label": ["a"]}, index=pd.Index(["x"], name="text"))
    assert rows_of(config(frame)) == [{"text": "x", "label": "a"}]


@pytest.mark.parametrize(
    "rows",
    [
        pd.DataFrame([["x", "y", "z"]], columns=["text", "text", "label"]),
        pa.Table.from_arrays([pa.array(["x"])] * 2, ["text", "text"]),
        [{"text": "x", 1: "y", "1": "z"}],
    ],
    ids=["pandas", "arrow", "list"],
)
def test_duplicate_columns_are_refused(rows: Any) -> None:
    with pytest.raises(ConfigError, match="two columns are named"):
        config(rows)


def test_a_model_object_is_refused_with_a_hint_to_its_name() -> None:
    with pytest.raises(ConfigError, match=r"object of class Linear.*save_pretrained\(folder\)"):
        load_config({"model": nn.Linear(1, 1), "task": "classification", "data": {"train": ROWS}})


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("FULLTUNE_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="FULLTUNE_CACHE"):
        config(ROWS)


class Named(NamedTuple):
    text: str
    label: str


@dataclasses.dataclass
class Clause:
    text: str
    label: str


class Validated(pydantic.BaseModel):
    text: str
    label: str


def test_rows_with_named_values_are_those_of_dicts() -> None:
    database = sqlite3.connect(":memory:")
    database.row_factory = sqlite3.Row
    expected = config([{"text": "a", "label": "b"}]).data.train
    for row in (Named("a", "b"), Clause("a", "b"), Validated(text="a", label="b")):
        assert config([row]).data.train == expected
    assert config(database.execute("SELECT 'a' AS text, 'b' AS label").fetchall()).data.train == expected
    database.close()


def test_rows_without_names_are_refused_with_a_way_to_name_them() -> None:
    with pytest.raises(ConfigError, match=r"rows without names of columns.*dict\(zip\("):
        config([("a", "b"), ("c", "d")])
