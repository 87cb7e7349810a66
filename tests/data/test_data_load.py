"""Every format gives the same rows; every bad row is reported with its location; nothing is guessed."""

from __future__ import annotations

import csv
import gzip
import io
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulltune.config import DataConfig
from fulltune.data.load import Column, Table, available_columns, load_table
from fulltune.data.values import clean_number, is_blank, with_line_feeds
from fulltune.errors import DataError, Problem

TEXT_LABEL = (Column("text", str), Column("label", str))
TEXT = (Column("text", str),)
ROWS = [
    {"text": "Once upon a time\nthere was a fox.", "label": "tale"},
    {"text": "Жил-был царь, «старый»", "label": "сказка"},
    {"text": ' quotes " and, commas; 𝄞 ', "label": "odd"},
]


def config(**changes: Any) -> DataConfig:
    return DataConfig(train="unused", **changes)


def load(path: Path | str, columns: tuple[Column, ...] = TEXT_LABEL, **options: Any) -> Table:
    named = {key: options.pop(key) for key in ("split",) if key in options}
    return load_table(str(path), columns, config(**options), **named)


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def json_lines(path: Path, rows: list[Any]) -> Path:
    return write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def fields(table: Table) -> list[dict[str, Any]]:
    return [dict(row.fields) for row in table]


# Formats


def as_jsonl(folder: Path) -> str:
    return str(json_lines(folder / "rows.jsonl", ROWS))


def as_json(folder: Path) -> str:
    return str(write(folder / "rows.json", json.dumps(ROWS, indent=1)))


def as_json_lines_in_json(folder: Path) -> str:
    return str(json_lines(folder / "rows.json", ROWS))


def as_gzip(folder: Path) -> str:
    path = folder / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(json_lines(folder / "plain", ROWS).read_bytes()))
    return str(path)


def delimited(folder: Path, name: str, separator: str) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, ["text", "label"], delimiter=separator)
    writer.writeheader()
    writer.writerows(ROWS)
    return str(write(folder / name, buffer.getvalue()))


def as_csv(folder: Path) -> str:
    return delimited(folder, "rows.csv", ",")


def as_semicolons(folder: Path) -> str:
    return delimited(folder, "rows.csv", ";")


def as_tsv(folder: Path) -> str:
    return delimited(folder, "rows.tsv", "\t")


def as_parquet(folder: Path) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(ROWS), folder / "rows.parquet")
    return str(folder / "rows.parquet")


def as_datasets_folder(folder: Path) -> str:
    from datasets import Dataset

    Dataset.from_list(ROWS).save_to_disk(str(folder / "saved"))
    return str(folder / "saved")


FORMATS: list[Callable[[Path], str]] = [
    *(as_jsonl, as_json, as_json_lines_in_json, as_gzip, as_csv, as_semicolons, as_tsv, as_parquet, as_datasets_folder)
]


@pytest.mark.parametrize("write_rows", FORMATS, ids=lambda function: function.__name__)
def test_every_format_gives_the_same_rows(write_rows: Callable[[Path], str], tmp_path: Path) -> None:
    assert len(FORMATS) >= 9
    source = write_rows(tmp_path)
    table = load(source)
    assert fields(table) == ROWS
    assert available_columns(source) == ("text", "label")
    assert table.problems == ()
    assert table.sha256 == load(json_lines(tmp_path / "same.jsonl", ROWS)).sha256
    assert len({row.id for row in table}) == len(ROWS)


def test_line_ends_of_texts_are_line_feeds_in_every_format(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.txt").write_bytes(b"one\r\ntwo\rthree\n")
    (tmp_path / "cells.csv").write_bytes(b'text\r\n"one\r\ntwo"\r\nplain\r\n')
    (tmp_path / "lines.jsonl").write_text('{"text": "one\\r\\ntwo"}\r\n{"text": "plain"}\r\n', newline="")
    for source, texts, changed in (
        ("texts", ["one\ntwo\nthree\n"] * 2, 2),
        ("cells.csv", ["one\ntwo", "plain"], 1),
        ("lines.jsonl", ["one\ntwo", "plain"], 1),
    ):
        table = load(tmp_path / source, TEXT)
        assert [row.fields["text"] for row in table] == texts
        assert table.line_ends == changed


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_byte_order_marks_and_line_ends(encoding: str, line_end: str, tmp_path: Path) -> None:
    text = line_end.join(json.dumps(row, ensure_ascii=False) for row in ROWS)
    table = load(write(tmp_path / "rows.jsonl", text, encoding))
    assert fields(table) == ROWS
    assert [row.id for row in table] == ["rows.jsonl:1", "rows.jsonl:2", "rows.jsonl:3"]


def test_line_separators_inside_a_string_do_not_end_the_row(tmp_path: Path) -> None:
    text = "a\u2028b\u2029c\x85d"
    table = load(json_lines(tmp_path / "rows.jsonl", [{"text": text}]), TEXT)
    assert fields(table) == [{"text": text}]


def test_blank_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", '\n{"text": "one"}\n   \n\n{"text": "two"}\n\n')
    assert [row.where for row in load(path, TEXT)] == ["rows.jsonl:2", "rows.jsonl:5"]


def test_csv_rows_have_the_numbers_of_a_spreadsheet_and_their_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", 'text,label\n"two\nlines",a\n\nplain,b\n')
    assert [(row.where, row.fields["text"]) for row in load(path)] == [
        ("rows.csv:2", "two\nlines"),
        ("rows.csv row 4 (line 5)", "plain"),
    ]


def test_bad_rows_of_csv_are_named_as_the_others(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", 'text,label\n"two\nlines",a\n,b\nthree,cells,c\n"open"quote,a\nplain,b\n')
    table = load(path)
    assert [problem.where for problem in table.problems] == [f"rows.csv row {n} (line {n + 1})" for n in (3, 4, 5)]
    assert [row.id for row in table] == ["rows.csv:2", "rows.csv row 6 (line 7)"]


def test_csv_cells_longer_than_the_limit_of_the_csv_module(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    long = "word " * 50_000
    assert load(write(tmp_path / "rows.csv", f"text\n{long}\n"), TEXT)[0].fields["text"] == long
    assert csv.field_size_limit() == limit


def test_a_folder_of_texts_is_one_document_per_file_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "notes.md"):
        write(tmp_path / name, f"text of {name}")
    table = load(tmp_path, TEXT)
    assert [(row.id, row.fields["text"]) for row in table] == [
        ("a.txt", "text of a.txt"),
        ("b.txt", "text of b.txt"),
    ]
    assert available_columns(str(tmp_path)) == ("text", "folder", "file")


def test_one_text_file_is_one_document(tmp_path: Path) -> None:
    assert fields(load(write(tmp_path / "book.txt", "a\nb"), TEXT)) == [{"text": "a\nb"}]


def test_splits_of_a_datasets_folder(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    splits = {name: Dataset.from_list([{"text": f"a {name} row"}]) for name in ("train", "test")}
    DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    source = str(tmp_path / "saved")
    assert fields(load(source, TEXT)) == [{"text": "a train row"}]
    assert fields(load(source, TEXT, split="test")) == [{"text": "a test row"}]
    assert load(f"{source}#test", TEXT)[0].id == "saved#test:1"
    with pytest.raises(DataError, match=r"no split 'tset'.*Did you mean 'test'"):
        load(f"{source}#tset", TEXT, split="train")
    with pytest.raises(DataError, match=r"no split 'validation'; expected one of train, test"):
        load(source, TEXT, split="validation")


def test_a_hub_id_goes_through_datasets_and_gives_label_names(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    features = datasets.Features(
        text=datasets.Value("string"),
        label=datasets.ClassLabel(names=["bad", "good"]),
        labels=datasets.Sequence(datasets.ClassLabel(names=["x", "y"])),
    )
    rows = {"text": ["one", "two", "three"], "label": [1, 0, -1], "labels": [[0, 1], [], [1]]}
    data = datasets.Dataset.from_dict(rows, features=features)
    asked = []

    def load_dataset(name: str, split: str) -> datasets.Dataset:
        asked.append((name, split))
        return data

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name: ["train", "test"])
    table = load("owner/reviews", split="test")
    assert fields(table) == [{"text": "one", "label": "good"}, {"text": "two", "label": "bad"}]
    assert [problem.where for problem in table.problems] == ["owner/reviews#test:3"]
    assert "class number -1, which stands for no label" in table.problems[0].found
    several = load("owner/reviews#train", (Column("text", str), Column("labels", list, may_be_empty=True)))
    assert [row.fields["labels"] for row in several] == [["x", "y"], [], ["y"]]
    assert asked == [("owner/reviews", "test"), ("owner/reviews", "train")]
    with pytest.raises(DataError, match="no split 'valid'"):
        load("owner/reviews#valid")


@pytest.mark.parametrize("error", [ConnectionError("down"), ValueError("odd"), RuntimeError("scripts")])
def test_a_hub_that_fails_is_one_clear_error(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> list[str]:
        raise error

    monkeypatch.setattr("datasets.get_dataset_split_names", fail)
    with pytest.raises(DataError, match=r"owner/reviews: the data set cannot be loaded from the hub"):
        load("owner/reviews")


def test_nothing_but_a_hub_id_opens_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for write_rows in FORMATS:
        assert len(load(write_rows(tmp_path))) == len(ROWS)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    for source in ("reviews", "here/reviews", "owner/reviews.jsonl", "./owner/reviews", "a/b/c", str(tmp_path / "no")):
        with pytest.raises(DataError, match="no such file or folder"):
            load(source)


# Sources that do not exist


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tale.jsonl", r"no such file or folder.*Did you mean '.*tales\.jsonl'"),
        ("tales.jsonl#train", "a file has no splits"),
        ("tales.xls", r"unknown kind \(\.xls\); expected \.jsonl.*Save the sheet as \.xlsx"),
        ("tales.xlsx", r"the file is empty \(0 bytes\)"),
        ("empty.jsonl", "no rows; expected at least one"),
        ("empty.csv", "no rows"),
        ("empty.json", "no rows"),
        ("folder", r"no files of one format.*Name the files: inner\.csv, other\.jsonl"),
        ("texts#train", "the folder has no splits"),
        ("broken.json", "not valid JSON.*expected an array"),
        ("broken.jsonl.gz", "gzip file is damaged: it has no gzip header"),
        ("broken.parquet", "not a readable Parquet file"),
        ("twice.csv", "two columns are called 'text'"),
        ("datasets", "the `datasets` folder cannot be read"),
    ],
)
def test_sources_that_cannot_be_read(source: str, message: str, tmp_path: Path) -> None:
    json_lines(tmp_path / "tales.jsonl", ROWS)
    for name in ("tales.xls", "tales.xlsx", "empty.jsonl", "empty.csv", "empty.json"):
        write(tmp_path / name, "")
    for name in ("folder", "texts", "datasets"):
        (tmp_path / name).mkdir()
    write(tmp_path / "folder" / "inner.csv", "text\nx\n")
    write(tmp_path / "folder" / "other.jsonl", '{"text": "x"}\n')
    write(tmp_path / "texts" / "one.txt", "x")
    write(tmp_path / "datasets" / "state.json", "{}")
    write(tmp_path / "broken.json", '[{"text": "x"},')
    write(tmp_path / "broken.jsonl.gz", "no gzip")
    write(tmp_path / "broken.parquet", "no parquet")
    write(tmp_path / "twice.csv", "text,text\na,b\n")
    with pytest.raises(DataError, match=message):
        load(tmp_path / source)


def test_all_missing_columns_are_reported_with_the_key_to_set(tmp_path: Path) -> None:
    path = json_lines(tmp_path / "rows.jsonl", [{"body": "x", "lable": "a"}] * 3)
    with pytest.raises(DataError) as caught:
        load(path, id="key")
    assert [problem.field for problem in caught.value.problems] == ["data.text", "data.label", "data.id"]
    assert "no column 'text'; expected one of body, lable" in str(caught.value)
    assert "`data.label: lable`" in str(caught.value)
    assert fields(load(path, text="body", label="lable"))[0] == {"text": "x", "label": "a"}


# Files that are not UTF-8; tests of the inferred encodings are in test_encoding.py


def test_a_broken_byte_in_a_utf8_file_is_a_bad_row_and_not_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"text": "Жили-были старик"}\n{"text": "x'.encode() + b'\xff"}\n')
    table = load(path, TEXT)
    assert fields(table) == [{"text": "Жили-были старик"}]
    assert [problem.where for problem in table.problems] == ["rows.jsonl:2"]
    assert "the byte 0xFF, which is not UTF-8" in table.problems[0].found


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark_is_read_and_noted(encoding: str, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", '{"text": "hello there"}\n', encoding)
    table = load(path, TEXT)
    assert fields(table) == [{"text": "hello there"}]
    assert table.files[0].encoding == encoding
    assert "no byte-order mark: read as UTF-16" in table.files[0].assumed[0]


def test_a_cut_utf16_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"text": "x"}\n'.encode("utf-16") + b"x")
    with pytest.raises(DataError, match="is not UTF-16"):
        load(path, TEXT)


# Bad rows

GOOD = {"text": "fine", "label": "a"}
BAD_ROWS: list[tuple[str, str]] = [
    ('{"text": "x", "label": "a"', "not valid JSON"),
    ("[1, 2]", "a JSON list; expected a JSON object"),
    ('"word"', "a JSON string"),
    ("null", "a JSON null"),
    ('{"label": "a"}', "nothing (the column is missing or null)"),
    ('{"text": null, "label": "a"}', "nothing (the column is missing or null)"),
    ('{"text": "", "label": "a"}', "empty text"),
    ('{"text": " \\n ", "label": "a"}', "text of whitespace only"),
    (
        '{"text": "\\u200b\\u2060 \\ufeff", "label": "a"}',
        "text of invisible characters only (U+200B, U+2060, U+0020, U+FEFF)",
    ),
    ('{"text": "x", "label": "\\u3164"}', "text of invisible characters only (U+3164)"),
    ('{"text": "x", "label": "a", "label": "b"}', "the key 'label' 2 times; expected each key once"),
    ('{"text": "x", "label": ["a", "b"]}', 'a list of 2 (["a", "b"]); expected one label. Set `data.labels: label`'),
    ('{"text": "x", "label": "[\'a\']"}', 'a list of 1 (["a"]); expected one label'),
    ('{"text": 3, "label": "a"}', "a number (3); expected text"),
    ('{"text": ["x"], "label": "a"}', "a list of 1; expected text"),
    ('{"text": {}, "label": "a"}', "an object; expected text"),
    ('{"text": "x", "label": true}', "a boolean (true); expected text or a whole number"),
    ('{"text": "x", "label": NaN}', "a number (nan)"),
    ('{"text": "x", "label": " "}', "text of whitespace only"),
    ('{"text": "a\\u0000b", "label": "a"}', "a NUL character at position 1"),
    ('{"text": "a\0b", "label": "a"}', "a NUL byte"),
    ('{"text": "a\\ud83d", "label": "a"}', "half of a surrogate pair"),
    ('{"text": ' + "[" * 100_000 + ', "label": "a"}', "JSON that cannot be read"),
    ('{"text": ' + "9" * 5000 + ', "label": "a"}', "JSON that cannot be read"),
]


def test_every_bad_row_is_reported_with_its_location_and_none_stops_the_others(tmp_path: Path) -> None:
    assert len(BAD_ROWS) >= 20
    lines = [json.dumps(GOOD), *(line for line, _ in BAD_ROWS), json.dumps(GOOD)]
    table = load(write(tmp_path / "rows.jsonl", "\n".join(lines)))
    assert [row.where for row in table] == ["rows.jsonl:1", f"rows.jsonl:{len(lines)}"]
    assert len(table.problems) == len(BAD_ROWS)
    for number, (problem, (_, found)) in enumerate(zip(table.problems, BAD_ROWS, strict=True), start=2):
        assert problem.where == f"rows.jsonl:{number}"
        assert found in str(problem)
        assert problem.expected
        assert problem.fix


def test_both_bad_fields_of_a_row_are_reported(tmp_path: Path) -> None:
    table = load(json_lines(tmp_path / "rows.jsonl", [GOOD, {"text": 1, "label": True}]))
    assert [(problem.where, problem.field) for problem in table.problems] == [
        ("rows.jsonl:2", "text"),
        ("rows.jsonl:2", "label"),
    ]


def test_without_a_good_row_all_problems_are_raised(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="and 22 more") as caught:
        load(json_lines(tmp_path / "rows.jsonl", [{"text": n, "label": "a"} for n in range(25)]))
    where = "rows.jsonl:1, rows.jsonl:2, rows.jsonl:3 and 22 more"
    assert f"{where}, field 'text': a number (0)" in str(caught.value)
    assert len(caught.value.problems) == 25


def test_bad_csv_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", 'text,label\nx,a\nx,a,b\nx\n"x"y,a\nz,b\n"never closed,a\n')
    table = load(path)
    assert [row.fields["text"] for row in table] == ["x", "z"]
    assert [problem.where for problem in table.problems] == ["rows.csv:3", "rows.csv:4", "rows.csv:5", "rows.csv:7"]
    assert table.problems[0].found == "3 cells"
    assert "not valid CSV" in table.problems[2].found


def test_labels_written_as_numbers_become_text_but_not_alongside_text(tmp_path: Path) -> None:
    numbers = load(json_lines(tmp_path / "numbers.jsonl", [{"text": "x", "label": n} for n in (0, 1, 1)]))
    assert [row.fields["label"] for row in numbers] == ["0", "1", "1"]
    mixed = load(json_lines(tmp_path / "mixed.jsonl", [{"text": "x", "label": n} for n in (0, 1, "1")]))
    assert len(mixed) == 2
    assert str(mixed.problems[0]).startswith("mixed.jsonl:3, field 'label': a label written as text; expected a number")


def test_labels_and_texts_stay_as_they_are_written(tmp_path: Path) -> None:
    rows = [{"text": " x\n", "label": " a\u200b "}]
    assert fields(load(json_lines(tmp_path / "r.jsonl", rows))) == rows


@pytest.mark.parametrize(
    ("value", "expected"),
    [(["b", "a", "b"], ["b", "a"]), ([], []), ([3], ["3"]), ('["x", "y"]', ["x", "y"])],
)
def test_lists_of_labels(value: Any, expected: list[str], tmp_path: Path) -> None:
    columns = (Column("text", str), Column("labels", list, may_be_empty=True))
    path = json_lines(tmp_path / "rows.jsonl", [{"text": "x", "labels": value}])
    assert load(path, columns)[0].fields["labels"] == expected


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("a;b", "text ('a;b')"),
        ("[a", "text ('[a')"),
        ([1.5], "a number (1.5) in the list"),
        ([], "an empty list"),
        (None, "nothing"),
        ({"a": 1}, "an object"),
        (["a", ""], "empty text in the list"),
    ],
)
def test_invalid_lists_of_labels(value: Any, found: str, tmp_path: Path) -> None:
    path = json_lines(tmp_path / "rows.jsonl", [{"text": "x", "labels": value}])
    with pytest.raises(DataError) as caught:
        load(path, (Column("text", str), Column("labels", list)))
    assert found in str(caught.value)


def test_columns_that_may_be_empty_or_absent(tmp_path: Path) -> None:
    columns = (
        Column("prompt", str, may_be_empty=True),
        Column("completion", str),
        Column("source", str, required=False),
    )
    rows = [{"prompt": None, "completion": "x"}, {"prompt": "", "completion": "y", "source": "z"}]
    assert fields(load(json_lines(tmp_path / "rows.jsonl", rows), columns)) == [
        {"prompt": "", "completion": "x"},
        {"prompt": "", "completion": "y", "source": "z"},
    ]


# Ids, groups


def test_ids_come_from_the_column_and_must_differ(tmp_path: Path) -> None:
    rows = [{"text": f"t{n}", "key": key} for n, key in enumerate(["a", 7, "a", None])]
    table = load(json_lines(tmp_path / "rows.jsonl", rows), TEXT, id="key")
    assert [row.id for row in table] == ["a", "7"]
    assert "id" not in table[0].fields
    assert [str(problem).split(";")[0] for problem in table.problems] == [
        "rows.jsonl:3, field 'id': id 'a' again (first at rows.jsonl:1)",
        "rows.jsonl:4, field 'key': nothing (the column is missing or null)",
    ]


def test_the_group_column_is_read_when_it_is_named(tmp_path: Path) -> None:
    path = json_lines(tmp_path / "rows.jsonl", [{"text": "x", "company": 4}])
    assert fields(load(path, TEXT, group="company")) == [{"text": "x", "group": "4"}]


def test_the_hash_is_of_the_content_alone(tmp_path: Path) -> None:
    rows = [{"text": "x", "label": "a", "more": 1}, {"text": "y", "label": "b"}]
    one = load(json_lines(tmp_path / "one.jsonl", rows))
    other = load(
        json_lines(tmp_path / "two.jsonl", [{"l": row["label"], "t": row["text"]} for row in rows]), text="t", label="l"
    )
    assert one.sha256 == other.sha256 != load(json_lines(tmp_path / "three.jsonl", rows[:1])).sha256
    assert (one.info.rows, one.info.sha256, one.info.source) == (2, one.sha256, str(tmp_path / "one.jsonl"))


def test_a_table_is_a_sequence(tmp_path: Path) -> None:
    table = load(json_lines(tmp_path / "rows.jsonl", ROWS))
    assert table[-1] == list(table)[2]
    assert table[:2] == table.rows[:2]
    assert table[1] in table


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), min_size=1))
def test_what_is_written_comes_back(texts: list[str]) -> None:
    import tempfile

    kept = [text for text in texts if not is_blank(text)]
    if not kept:
        return
    with tempfile.TemporaryDirectory() as folder:
        json_path = json_lines(Path(folder) / "rows.jsonl", [{"text": text} for text in kept])
        buffer = io.StringIO()
        csv.writer(buffer, quoting=csv.QUOTE_ALL).writerows([["text"], *([text] for text in kept)])
        csv_path = write(Path(folder) / "rows.csv", buffer.getvalue())
        for path in (json_path, csv_path):
            table = load(path, TEXT)
            assert [row.fields["text"] for row in table] == [with_line_feeds(text) for text in kept]
            assert table.problems == ()


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [(float, "3.5", 3.5), (float, 2, 2.0), (int, "7", 7), (int, 7.0, 7)],
    ids=str,
)
def test_columns_of_plug_ins_hold_numbers(kind: type, value: Any, expected: Any) -> None:
    read = clean_number(value, kind)
    assert (read, type(read)) == (expected, kind)


@pytest.mark.parametrize("value", [None, "", "x", True, "nan", "inf", [1], 2.5, 10**400], ids=str)
def test_what_is_no_whole_number_is_a_problem(value: Any) -> None:
    assert isinstance(clean_number(value, int), Problem)


def test_control_characters_in_names_are_escaped_in_messages(tmp_path: Path) -> None:
    file = tmp_path / "a\x1b[31m\nb.jsonl"
    file.write_text('{"my\\ntext": "x", "la\\tbel\\u001b[31m": "y"}\n')
    with pytest.raises(DataError) as caught:
        load_table(str(file), [Column("text", str)], DataConfig(train=str(file)))
    message = str(caught.value)
    assert message.isprintable()
    assert r"a\x1b[31m\nb.jsonl" in message
    assert r"one of my\ntext, la\tbel\x1b[31m" in message


def test_names_with_line_breaks_are_read(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text('"my\ntext","la\tbel"\na b,c\nd e,f\n')
    table = load_table(str(file), [Column("text", str)], DataConfig(train=str(file), text="my\ntext"))
    assert [row.fields["text"] for row in table] == ["a b", "d e"]
