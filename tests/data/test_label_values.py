"""Labels mean what the user wrote: lists in every notation, 0/1 vectors, class names, or an error with advice."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fulltune.config import Config, DataConfig, load_config
from fulltune.data.label_values import parse_list
from fulltune.data.load import Column, Table, load_table
from fulltune.errors import ConfigError, DataError
from fulltune.tasks.classification import Classification

LABEL = (Column("text", str), Column("label", str))
LABELS = (Column("text", str), Column("labels", list, may_be_empty=True))


def load(path: Path, columns: tuple[Column, ...] = LABELS, **options: Any) -> Table:
    return load_table(str(path), columns, DataConfig(train="unused", **options))


def json_rows(folder: Path, values: list[Any], role: str = "labels") -> Path:
    path = folder / "rows.jsonl"
    rows = [json.dumps({"text": f"text {number}", role: value}) for number, value in enumerate(values)]
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def csv_rows(folder: Path, cells: list[str], role: str = "labels") -> Path:
    path = folder / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text", role], *([f"text {n}", cell] for n, cell in enumerate(cells))])
    return path


def labels(table: Table, role: str = "labels") -> list[Any]:
    return [row.fields[role] for row in table]


# Lists in one cell


@pytest.mark.parametrize(
    "value",
    [
        *(["a", "b"], ("a", "b"), [], [1, 2], ["it's", 'say "x"', "back\\slash"], [True, False], [0.5, None]),
        *(["a, b", "c"], ["[x]"], [np.int64(3), np.int64(4)], [np.str_("a")], [np.float64(0.5)]),
        *(np.array([0, 1, 0]), np.array([0.0, 1.0]), np.array(["a", "b c"]), np.array([True, False])),
    ],
    ids=repr,
)
def test_a_list_as_python_and_numpy_print_it(value: Any) -> None:
    expected = [item.item() if isinstance(item, np.generic) else item for item in value]
    assert parse_list(repr(value)) == expected
    assert parse_list(str(value)) == expected


def test_other_notations_of_a_list() -> None:
    assert parse_list("tensor([0., 1.])") == [0.0, 1.0]
    assert parse_list("array([0, 1], dtype=int8)") == [0, 1]
    assert parse_list(' ["a", null] ') == ["a", None]
    assert sorted(parse_list("{'a', 'b'}") or []) == ["a", "b"]
    assert parse_list("[0 1\n 0]") == [0, 1, 0]


@pytest.mark.parametrize(
    "text", ["[a, b]", "a, b", "[", "", "['a' 'b', 'c']", "['a', 'b'", "[0 1 ... 0]", '{"a": 1}', r"['\x41']", "(a)"]
)
def test_ambiguous_text_is_not_a_list(text: str) -> None:
    assert parse_list(text) is None


def test_lists_in_csv_cells(tmp_path: Path) -> None:
    cells = ["['a', 'b']", '["b"]', "['a' 'c']", "('c',)", "[]"]
    assert labels(load(csv_rows(tmp_path, cells))) == [["a", "b"], ["b"], ["a", "c"], ["c"], []]


@pytest.mark.parametrize("separator", ["|", ";", ",", " / "])
def test_a_separator_splits_the_cells_of_a_column(separator: str, tmp_path: Path) -> None:
    path = csv_rows(tmp_path, [f"a{separator}b c", "b c", "", f"{separator}a{separator}"])
    assert labels(load(path, label_separator=separator)) == [["a", "b c"], ["b c"], [], ["a"]]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("a|b", "set `data.label_separator: '|'` if that separates labels"),
        ("a;b", "set `data.label_separator: ';'`"),
        ("a, b", "set `data.label_separator: ','`"),
        ("yes", "or set `data.label: labels` if each row has one label"),
    ],
)
def test_joined_labels_are_refused_with_the_key_to_set(cell: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(csv_rows(tmp_path, [cell] * 3))
    assert message.casefold() in str(caught.value).casefold()
    assert "rows.csv:2, rows.csv:3, rows.csv:4, field 'labels'" in str(caught.value)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (["a", 1], 'numbers and text in one list (["a", 1])'),
        ([["a"], ["b"]], 'a list of 1 in the list; expected a list of labels. Write one flat list: ["a", "b"]'),
        (["a", None], "nothing in the list"),
        (["a", ""], "empty text in the list"),
        (["a", "\u200b"], "text of invisible characters only (U+200B) in the list"),
        ([float("nan")], "a number (nan) in the list"),
        ([1.5, 2], "a number (1.5) in the list"),
        ({"a": 1}, "an object"),
        ([{"name": "a"}], 'an object in the list; expected a list of labels. Write one flat list: ["a", "b"]'),
        (None, "nothing; expected a list of labels. Write [] if the row has no label"),
    ],
)
def test_lists_that_cannot_be_labels_are_problems_of_the_row(value: Any, found: str, tmp_path: Path) -> None:
    table = load(json_rows(tmp_path, [["a", "b"], value, ["c"]]))
    assert labels(table) == [["a", "b"], ["c"]]
    assert [problem.where for problem in table.problems] == ["rows.jsonl:2"]
    assert found in str(table.problems[0])


def test_rows_of_numbers_among_rows_of_text_are_problems(tmp_path: Path) -> None:
    table = load(json_rows(tmp_path, [["a", "b"], [1, 2], ["c"], []]))
    assert labels(table) == [["a", "b"], ["c"], []]
    assert "rows.jsonl:2, field 'labels': a label written as a number; expected text" in str(table.problems[0])


# 0/1 vectors

ROWS = [[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 0, 1]]
NAMED = [["x"], ["y", "z"], [], ["x", "z"]]
NAMES = ["x", "y", "z"]


def spelled(kind: str) -> list[Any]:
    convert: dict[str, Any] = {
        "ints": int,
        "floats": float,
        "bools": bool,
        "texts": str,
        "float texts": lambda v: f"{v}.0",
    }
    return [[convert[kind](value) for value in row] for row in ROWS]


@pytest.mark.parametrize("kind", ["ints", "floats", "bools", "texts", "float texts"])
def test_vectors_are_refused_and_read_with_names(kind: str, tmp_path: Path) -> None:
    path = json_rows(tmp_path, spelled(kind))
    with pytest.raises(DataError) as caught:
        load(path)
    message = str(caught.value)
    assert f"0/1 vectors of 3 values in 4 of 4 rows (rows.jsonl:1: {json.dumps(spelled(kind)[0])})" in message
    assert "`data.label_names: [first, second, …]`" in message
    assert labels(load(path, label_names=NAMES)) == NAMED


@pytest.mark.parametrize(
    "write", [str, repr, lambda row: str(np.array(row)), lambda row: repr(np.array(row, dtype=float)), json.dumps]
)
def test_vectors_in_csv_cells(write: Any, tmp_path: Path) -> None:
    path = csv_rows(tmp_path, [write(row) for row in ROWS])
    with pytest.raises(DataError, match="0/1 vectors of 3 values in 4 of 4 rows"):
        load(path)
    assert labels(load(path, label_names=NAMES)) == NAMED


@pytest.mark.parametrize("between", [" ", ",", ", ", ";", "|"])
def test_vectors_without_brackets_need_names(between: str, tmp_path: Path) -> None:
    path = csv_rows(tmp_path, [between.join(map(str, row)) for row in ROWS])
    with pytest.raises(DataError, match="a list of labels"):
        load(path)
    assert labels(load(path, label_names=NAMES)) == NAMED


def test_vectors_of_a_parquet_file(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"text": [f"text {n}" for n in range(4)], "labels": pa.array(ROWS, pa.list_(pa.float32(), 3))}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="0/1 vectors of 3 values"):
        load(tmp_path / "rows.parquet")
    assert labels(load(tmp_path / "rows.parquet", label_names=NAMES)) == NAMED


def test_vectors_of_several_lengths(tmp_path: Path) -> None:
    path = json_rows(tmp_path, [*ROWS, [1, 0]])
    with pytest.raises(DataError, match=r"0/1 vectors of 2 to 3 values.*all vectors must have the same length"):
        load(path)
    table = load(path, label_names=NAMES)
    assert labels(table) == NAMED
    expected = "a list of 2 ([1, 0]); expected 3 values of 0 or 1, or names of data.label_names (x, y, z)"
    assert expected in str(table.problems[0])


def test_vectors_of_counts_are_refused_without_the_advice_for_indicators(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"vectors of numbers of 4 values") as caught:
        load(json_rows(tmp_path, [[0, 2, 1, 0], [3, 0, 0, 1], [1, 1, 0, 0]]))
    assert "label_names" not in str(caught.value)


@pytest.mark.parametrize(
    "rows", [[[0], [1], [0, 1]], [[3, 7], [7], [1, 3]], [["2020", "2021"], ["2020"]], [[0], [1]], [["a", "a"], ["b"]]]
)
def test_lists_of_ids_are_not_vectors(rows: list[Any], tmp_path: Path) -> None:
    expected = [list(dict.fromkeys(map(str, row))) for row in rows]
    assert labels(load(json_rows(tmp_path, rows))) == expected


def test_names_may_be_given_in_another_column(tmp_path: Path) -> None:
    table = load(json_rows(tmp_path, [[1, 0, 0], ["y", "z"], ["w"]]), label_names=NAMES)
    assert labels(table) == [["x"], ["y", "z"]]
    assert "expected 3 values of 0 or 1, or names of data.label_names" in str(table.problems[0])


# Names of classes


@pytest.mark.parametrize("value", [1, 1.0, "1", "1.0", True, "yes", " yes "])
def test_numbers_of_classes_become_their_names(value: Any, tmp_path: Path) -> None:
    table = load(json_rows(tmp_path, [value], "label"), LABEL, label_names=["no", "yes"])
    assert labels(table, "label") == ["yes"]


@pytest.mark.parametrize("value", [2, -1, 0.5, "maybe", "Yes"])
def test_an_unknown_class_is_refused(value: Any, tmp_path: Path) -> None:
    table = load(json_rows(tmp_path, [value, 0], "label"), LABEL, label_names=["no", "yes"])
    assert "expected one of data.label_names (no, yes), or its number (0 to 1)" in str(table.problems[0])


@pytest.mark.parametrize("kind", ["number", "real number", "text"])
@pytest.mark.parametrize("names", [["1", "2", "3"], ["1", "0"], ["-1", "0", "1"], ["3", "2", "1", "none"]])
def test_numbers_that_are_names_of_classes_are_not_their_positions(names: list[str], kind: str, tmp_path: Path) -> None:
    written = [name for name in names if name != "none"]
    convert: Any = {"number": int, "real number": float, "text": str}[kind]
    table = load(json_rows(tmp_path, [*map(convert, written), 7], "label"), LABEL, label_names=names)
    assert labels(table, "label") == written
    assert f"expected one of data.label_names ({', '.join(names)}). " in str(table.problems[0])


@pytest.mark.parametrize("names", [["a", "a"], [], ["a", " "]])
def test_names_of_classes_are_checked(names: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"data\.label_names"):
        load_config({"model": "m", "task": "classification", "data": {"train": "t", "label_names": names}})


def parquet_with_classes(folder: Path, **columns: Any) -> Path:
    import datasets

    data = datasets.Dataset.from_dict({"text": ["one", "two", "three"], **{k: v for k, (v, _) in columns.items()}})
    for name, (_, feature) in columns.items():
        data = data.cast_column(name, feature)
    data.to_parquet(folder / "rows.parquet")
    data.save_to_disk(str(folder / "saved"))
    return folder


@pytest.mark.parametrize("source", ["rows.parquet", "saved"])
def test_class_names_of_datasets(source: str, tmp_path: Path) -> None:
    import datasets

    one, many = datasets.ClassLabel(names=["ham", "spam"]), datasets.ClassLabel(names=["x", "y"])
    several = datasets.Sequence(many)
    parquet_with_classes(tmp_path, label=([1, 0, 1], one), labels=([[0, 1], [], [1]], several))
    assert labels(load(tmp_path / source, LABEL), "label") == ["spam", "ham", "spam"]
    assert labels(load(tmp_path / source)) == [["x", "y"], [], ["y"]]


@pytest.mark.parametrize("kind", ["Dataset", "Table"])
def test_class_names_of_rows_in_memory(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    from fulltune.runtime.rows_file import as_source

    monkeypatch.setenv("FULLTUNE_CACHE", str(tmp_path))
    features = datasets.Features(
        text=datasets.Value("string"),
        label=datasets.ClassLabel(names=["ham", "spam"]),
        labels=datasets.Sequence(datasets.ClassLabel(names=["x", "y"])),
    )
    rows = {"text": ["one", "two"], "label": [1, 0], "labels": [[0, 1], [1]]}
    data = datasets.Dataset.from_dict(rows, features=features)
    source = Path(as_source(data if kind == "Dataset" else data.data.table, "data.train"))
    assert labels(load(source, LABEL), "label") == ["spam", "ham"]
    assert labels(load(source)) == [["x", "y"], ["y"]]


def test_a_missing_column_does_not_suggest_a_column_that_is_already_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"text": f"x{i}", "toxic": i % 2, "threat": int(i < 3)} for i in range(6)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        load(path, LABEL)
    assert "e.g. `data.label: toxic` (category, 2 distinct in 6 rows, such as '0')" in str(caught.value)
    assert "; one 0/1 column per label must become a column `labels`" in str(caught.value)
    path.write_text('{"text": "x"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"no column 'label'; expected one of text\. Add the column"):
        load(path, LABEL)


def test_a_class_number_without_a_name_or_with_none_is_a_problem(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = {"label": {"names": ["ham", "spam"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"text": ["one", "two", "three", "four"], "label": [0, 2, -1, None]})
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "rows.parquet")
    loaded = load(tmp_path / "rows.parquet", LABEL)
    assert labels(loaded, "label") == ["ham"]
    assert [str(problem).split(".")[1] for problem in loaded.problems]
    assert "class number 2; expected a number from 0 to 1: the column has 2 class names" in str(loaded.problems[0])
    assert [problem.where for problem in loaded.problems] == [f"rows.parquet:{number}" for number in (2, 3, 4)]


@pytest.mark.parametrize("metadata", ["{", "[]", '{"info": {"features": {"label": {"_type": "Nope"}}}}'])
def test_damaged_metadata_is_logged_and_the_file_read_without_it(
    metadata: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"text": ["one"], "label": [1]}).replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, tmp_path / "rows.parquet")
    with caplog.at_level(logging.WARNING, "fulltune"):
        assert labels(load(tmp_path / "rows.parquet", LABEL), "label") == ["1"]
    assert "rows.parquet: the `datasets` metadata cannot be read" in caplog.text


# The column that is read, and the order of the classes


def task(**data: Any) -> Classification:
    return Classification(Config(model="m", task="classification", data={"train": "t", **data}))


@pytest.mark.parametrize(
    ("data", "available", "role"),
    [
        ({}, ["text", "label"], "label"),
        ({}, ["text", "labels"], "labels"),
        ({}, ["text", "label", "labels"], "label"),
        ({"labels": "label"}, ["text", "label"], "labels"),
        ({"label": "labels"}, ["text", "labels"], "label"),
        ({"labels": "tags"}, ["text", "label", "tags"], "labels"),
        ({"labels": "tags"}, ["text", "label"], "label"),
    ],
)
def test_the_column_that_is_read(data: dict[str, str], available: list[str], role: str) -> None:
    assert task(**data).columns(available)[1].role == role


def test_the_choice_between_two_columns_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fulltune"):
        task().columns(["text", "label", "labels"])
    assert "the columns 'label' and 'labels': 'label' is read" in caplog.text


def test_a_separator_needs_a_column_of_lists() -> None:
    with pytest.raises(DataError, match=r"label_separator is set, but.*Set `data\.labels: label` to split its cells"):
        task(label_separator="|").columns(["text", "label"])
    assert task(label_separator="|", labels="label").columns(["text", "label"])[1].role == "labels"


def fitted(labels: list[str], **data: Any) -> tuple[str, ...]:
    from fulltune.tasks.base import Example

    one = task(**data)
    one = one.fit([Example(str(n), "x", label) for n, label in enumerate(labels)], [])
    return one.labels


def test_the_order_of_the_classes() -> None:
    assert fitted(["10", "2", "0", "-1"]) == ("-1", "0", "2", "10")
    assert fitted(["10", "2", "b"]) == ("10", "2", "b")
    assert fitted(["ham"], label_names=["spam", "ham", "junk"]) == ("spam", "ham", "junk")
