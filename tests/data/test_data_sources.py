"""Files as spreadsheets, pandas and the hub write them; several files; and files that are damaged or have no end."""

from __future__ import annotations

import gzip
import json
import os
import socket
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fulltune.config import DataConfig
from fulltune.data.load import Column, Table, load_table
from fulltune.errors import DataError

COLUMNS = (Column("text", str), Column("label", str))
ROWS = [{"text": f"row {number}, of five", "label": "yes" if number % 2 else "no"} for number in range(5)]


def load(source: Any, split: str = "train") -> Table:
    return load_table(str(source) if isinstance(source, Path) else source, COLUMNS, DataConfig(train="x"), split=split)


def fields(table: Table) -> list[dict[str, Any]]:
    return [dict(row.fields) for row in table]


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("wrapped.json", json.dumps({"version": "1.0", "data": ROWS})),
        ("wrapped.jsonl", json.dumps({"data": ROWS})),
        ("array.jsonl", json.dumps(ROWS, indent=1)),
        ("one_line.jsonl", json.dumps(ROWS)),
        ("pretty.jsonl", "\n".join(json.dumps(row, indent=2) for row in ROWS)),
        ("pretty.json", "\n\n".join(json.dumps(row, indent=2) for row in ROWS)),
        ("lines.json", "\n".join(map(json.dumps, ROWS))),
        ("tabs.csv", "text\tlabel\n" + "".join(f"{row['text']}\t{row['label']}\n" for row in ROWS)),
        ("pipes.csv", "text|label\n" + "".join(f"{row['text']}|{row['label']}\n" for row in ROWS)),
        ("semicolons.csv", "\ufefftext;label\n" + "".join(f"{row['text']};{row['label']}\n" for row in ROWS)),
        ("declared.csv", "sep=;\r\ntext;label\r\n" + "".join(f"{row['text']};{row['label']}\r\n" for row in ROWS)),
        ("declared2.csv", '"sep=|"\ntext|label\n' + "".join(f"{row['text']}|{row['label']}\n" for row in ROWS)),
        ("trailing.csv", "text,label,,\n" + "".join(f'"{row["text"]}",{row["label"]},,\n' for row in ROWS)),
        ("header_only.csv", "text,label,,\n" + "".join(f'"{row["text"]}",{row["label"]}\n' for row in ROWS)),
        ("index.csv", ",text,label\n" + "".join(f'{n},"{row["text"]}",{row["label"]}\n' for n, row in enumerate(ROWS))),
        ("commas.tsv", "text,label\n" + "".join(f'"{row["text"]}",{row["label"]}\n' for row in ROWS)),
        ("quoted.csv", '"text";"label"\n' + "".join(f'"{row["text"]}";"{row["label"]}"\n' for row in ROWS)),
    ],
)
def test_every_usual_shape_gives_the_same_rows(tmp_path: Path, name: str, text: str) -> None:
    assert fields(load(write(tmp_path / name, text))) == ROWS


def test_lines_are_counted_from_the_top_of_the_file(tmp_path: Path) -> None:
    declared = load(write(tmp_path / "a.csv", "sep=;\ntext;label\nx;y\n"))
    pretty = load(write(tmp_path / "b.jsonl", "\n".join(json.dumps(row, indent=2) for row in ROWS[:2])))
    assert [row.where for row in (*declared, *pretty)] == ["a.csv:3", "b.jsonl:1", "b.jsonl:5"]


@pytest.mark.parametrize(
    "frame",
    [
        {"columns": ["text", "label"], "data": [["a", "b"]]},
        {"text": {"0": "a", "1": "b"}, "label": {"0": "x", "1": "y"}},
    ],
)
def test_a_data_frame_by_columns_is_refused_with_the_call_that_writes_rows(tmp_path: Path, frame: Any) -> None:
    with pytest.raises(DataError, match=r'orient="records"'):
        load(write(tmp_path / "frame.json", json.dumps(frame)))


def test_a_row_with_a_list_of_objects_is_a_row(tmp_path: Path) -> None:
    row = {"text": "x", "label": "y", "entities": [{"start": 0}]}
    assert fields(load(write(tmp_path / "one.jsonl", json.dumps(row)))) == [{"text": "x", "label": "y"}]


def shards(folder: Path) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"train-0000{number}-of-00002.parquet" for number in range(2)]
    pq.write_table(pa.Table.from_pylist(ROWS[:3]), paths[0])
    pq.write_table(pa.Table.from_pylist(ROWS[3:]), paths[1])
    return paths


def test_shards_are_one_source_as_a_folder_a_pattern_and_a_list(tmp_path: Path) -> None:
    paths = shards(tmp_path / "data")
    pq.write_table(pa.Table.from_pylist(ROWS[:1]), tmp_path / "data" / "test-00000-of-00001.parquet")
    for source in (tmp_path / "data", str(tmp_path / "data" / "train*.parquet"), tuple(map(str, paths))):
        table = load(source)
        assert fields(table) == ROWS
        assert table[3].where == "train-00001-of-00002.parquet:1"
    assert fields(load(tmp_path / "data", split="test")) == ROWS[:1]


def test_files_of_one_name_in_several_folders_have_rows_of_their_own(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "rows.jsonl", json.dumps(ROWS[0]) + "\n")
    assert [row.where for row in load(str(tmp_path / "*" / "rows.jsonl"))] == [
        f"{tmp_path}/a/rows.jsonl:1",
        f"{tmp_path}/b/rows.jsonl:1",
    ]


def test_all_missing_files_of_a_list_are_named_and_an_empty_pattern_too(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load((str(tmp_path / "x.jsonl"), str(tmp_path / "y.jsonl")))
    assert len(caught.value.problems) == 2
    with pytest.raises(DataError, match="no file matches"):
        load(str(tmp_path / "*.jsonl"))
    with pytest.raises(DataError, match="empty list"):
        load(())


def test_what_has_no_end_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    (tmp_path / "null.parquet").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.csv"))
    kinds = {"pipe.jsonl": "a named pipe", "zero.jsonl": "a device", "null.parquet": "a device", "s.csv": "a socket"}
    for name, words in kinds.items():
        with pytest.raises(DataError, match=words):
            load(tmp_path / name)


def test_more_text_than_memory_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fulltune.machine.memory_bytes", lambda: 4000)
    path = write(tmp_path / "long.jsonl", json.dumps({"text": "x" * 2000, "label": "y"}))
    with pytest.raises(DataError, match="a quarter of this machine's memory"):
        load(path)


@pytest.mark.parametrize("source", ["", " ", ("",)])
def test_an_empty_path_is_not_the_working_directory(source: Any) -> None:
    with pytest.raises(DataError, match="an empty path"):
        load(source)


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").symlink_to(tmp_path / "x.jsonl")
    with pytest.raises(DataError, match="a link to what is not there"):
        load(tmp_path / "x.jsonl")


def test_a_file_that_unpacks_to_a_multiple_of_its_size_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fulltune.data.read._SMALL", 1 << 16)
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress(b" " * (1 << 22)))
    with pytest.raises(DataError, match="unpacks to more than 100 times its size"):
        load(tmp_path / "bomb.jsonl.gz")


def test_a_file_of_nul_bytes_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b"\0" * 1000)
    with pytest.raises(DataError, match="nothing but NUL bytes"):
        load(tmp_path / "x.jsonl")


@pytest.mark.parametrize("name", ["x" * 300 + ".jsonl", "x/" * 3000 + "y.jsonl", "a\0b.jsonl", "~nobody0/x.jsonl"])
def test_a_name_that_no_file_can_have_is_not_there(name: str) -> None:
    with pytest.raises(DataError, match="no such file") as caught:
        load(name)
    assert len(str(caught.value)) < 800


def test_damaged_pages_of_a_parquet_file_are_an_error_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    rows = [{"text": f"some text {number} " * 20, "label": str(number)} for number in range(3000)]
    pq.write_table(pa.Table.from_pylist(rows), path, compression="snappy", use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[2000:6000] = b"\xff" * 4000
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"the file is damaged") as caught:
        load(path)
    assert "train.parquet" in str(caught.value)


def test_text_that_is_not_utf8_in_a_parquet_file_is_named_by_row_and_column(tmp_path: Path) -> None:
    values = pa.array([b"good", b"b\xffd", b"good", b"\xfe"], pa.binary()).cast(pa.binary())
    text = pa.Array.from_buffers(pa.string(), 4, values.buffers())
    pq.write_table(pa.table({"text": text, "label": ["a", "b", "c", "d"]}), tmp_path / "train.parquet")
    with pytest.raises(DataError) as caught:
        load(tmp_path / "train.parquet")
    assert [(problem.where, problem.field) for problem in caught.value.problems] == [
        ("train.parquet:2", "text"),
        ("train.parquet:4", "text"),
    ]


@pytest.mark.parametrize(
    ("text", "encoding", "named"),
    [
        ("Мама мыла раму, папа читал газету", "cp1251", "WINDOWS-1251"),
        ("Мама мыла раму, папа читал газету", "cp866", "CP866"),
        ("Η γρήγορη αλεπού πηδά πάνω από τον σκύλο", "cp1253", "WINDOWS-1253"),
        ("これは日本語の文章です。今日はいい天気ですね", "shift_jis", "SHIFT_JIS"),
        ("今天天气很好，我们去公园玩吧", "gb18030", "GB18030"),
        ("Le garçon a mangé une pâtisserie près du café", "cp1252", "WINDOWS-1252"),
    ],
)
def test_the_proposed_conversion_gives_the_text_also_among_much_ascii(
    tmp_path: Path, text: str, encoding: str, named: str
) -> None:
    row = {"id": 1, "source": "https://example.com/a/long/address/in/ascii", "label": "positive", "text": text}
    path = write(tmp_path / "rows.jsonl", json.dumps(row, ensure_ascii=False) + "\n", encoding)
    with pytest.raises(DataError, match=f"iconv -f {named} ") as caught:
        load(path)
    assert path.read_bytes().decode(named) == json.dumps(row, ensure_ascii=False) + "\n"
    assert "would read" in str(caught.value)
