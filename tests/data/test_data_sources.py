"""Files as spreadsheets, pandas and the hub write them; several files; damaged files and endless streams."""

from __future__ import annotations

import errno
import gzip
import json
import os
import pickle
import socket
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fulltune.config import DataConfig
from fulltune.data.load import Column, Table, load_table
from fulltune.data.locate import locate
from fulltune.errors import DataError
from fulltune.runtime.rows_file import as_source

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
        ("padded.csv", " text , label\n" + "".join(f'"{row["text"]}", {row["label"]} \n' for row in ROWS)),
        ("spaced.csv", '"text", "label"\n' + "".join(f'"{row["text"]}", "{row["label"]}"\n' for row in ROWS)),
        ("marks.jsonl", "\ufeff\ufeff" + "\n\ufeff".join(map(json.dumps, ROWS))),
        ("marks.csv", "\ufeff\ufefftext,label\n" + "".join(f'\ufeff"{row["text"]}",{row["label"]}\n' for row in ROWS)),
        ("table.csv", "| text | label |\n|---|:--|\n" + "".join(f"| {r['text']} | {r['label']} |\n" for r in ROWS)),
        ("splits.json", json.dumps({"train": ROWS, "test": ROWS[:1]})),
        ("nested.json", json.dumps({"Train": {"data": ROWS}, "validation": {"data": ROWS[:1]}})),
        ("columns.json", json.dumps({key: [row[key] for row in ROWS] for key in ROWS[0]})),
        ("only.json", json.dumps({"sentences": ROWS})),
        ("quoted.csv", '"text";"label"\n' + "".join(f'"{row["text"]}";"{row["label"]}"\n' for row in ROWS)),
    ],
)
def test_every_usual_shape_gives_the_same_rows(tmp_path: Path, name: str, text: str) -> None:
    assert fields(load(write(tmp_path / name, text))) == ROWS


def test_lines_are_counted_from_the_top_of_the_file(tmp_path: Path) -> None:
    declared = load(write(tmp_path / "a.csv", "sep=;\ntext;label\nx;y\n"))
    pretty = load(write(tmp_path / "b.jsonl", "\n".join(json.dumps(row, indent=2) for row in ROWS[:2])))
    assert [row.where for row in (*declared, *pretty)] == ["a.csv row 2 (line 3)", "b.jsonl:1", "b.jsonl:5"]


@pytest.mark.parametrize("orient", ["split", "columns", "index", "records", "table"])
def test_a_data_frame_that_pandas_wrote_is_read_by_rows(tmp_path: Path, orient: Any) -> None:
    path = tmp_path / "frame.json"
    pd.DataFrame(ROWS).to_json(path, orient=orient)
    assert fields(load(path)) == ROWS


def test_a_file_of_splits_gives_each_by_name_and_by_place(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.json", json.dumps({"train": ROWS, "dev": ROWS[:2], "test": ROWS[:1]}))
    assert len(load(path, "validation")) == 2
    assert len(load(path, "test")) == 1
    assert load(f"{path}#dev")[1].where == "rows.json.dev[1]"
    with pytest.raises(DataError, match="no split 'other'; expected one of train, dev, test"):
        load(f"{path}#other")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.json", '{"data": []}', "no rows"),
        ("b.json", "[]", "no rows"),
        ("c.json", '{"text": ["a"], "label": []}', "columns of different lengths: text 1, label 0"),
        ("e.json", '[\n {"text": "x"},\n]', r"e\.json:2: not valid JSON \(a comma after the last element"),
        ("f.json", '[\n // rows\n {"text": "x"}]', r"f\.json:2: not valid JSON \(a comment"),
        ("g.json", '{"data": [\n {"text": \'x\'}]}', r"g\.json:2: not valid JSON \(the quote '"),
        ("h.json", '{\n "data": [{"text": True}]}', r"h\.json:2: .*the word True without quotes.*Write true"),
        ("i.json", '[{"text": "x"}', r"unexpected end of the text.*its end is missing"),
        ("j.json", '[{"text": "x\ny"}]', r"line break or control character inside a string"),
        ("k.jsonl", '{"text": "a\\d", "label": "b"}', r"an invalid escape sequence"),
        ("l.jsonl", '{"text": "a", "label": "b",}', r"a comma after the last element"),
        ("m.csv", "good film,pos\nbad film,neg\nnice,pos\n", r"m\.csv:1: the first line is a row.*text,label"),
        ("n.csv", "pos,pos\nx,pos\n", "the first line is a row"),
        ("o.csv", 'text,label\n"a \\"b\\" c",x\n"a,b",x,y\n', r"o\.csv:2: .*quotes are escaped as .*escapechar"),
        ("p.csv", 'text,label\n"a"b,x\n"c","d",e\n', "text or a space after a closing quote"),
        ("q.csv", 'text,label\n"a","b",c\n"ab,x\n', "a quote that is never closed"),
        ("r.txt", "a document", "plain text: each file is one document.*no column `label`"),
        ("s.jsonl", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("t.parquet", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("u.csv", "\n<!DOCTYPE html><html></html>", "a web page"),
        ("v.csv", "PK\x03\x04xl/workbook", "a zip archive"),
        ("w.jsonl", "PAR1\x15\x04", r"not a readable Parquet file \(its end is missing"),
        ("aa.csv", "text,label\ntext,label\n", "the header is repeated"),
        ("ab.jsonl", '{"text": "x", "label": "a"}, {"text": "y", "label": "b"}', "a comma after the value"),
        ("ac.jsonl", '{"text": "x", "label": "a"}{"text": "y", "label": "b"}', "a second value"),
        ("ad.jsonl", json.dumps(json.dumps(ROWS[0])), "a JSON object that is written as a string"),
        ("ae.parquet", "", "the file is empty"),
        ("af.csv", "'text',Label\nx,y\n", r"""data\.text: "'text'"`.*data\.label: Label`"""),
        (
            "ag.jsonl",
            '{"data": {"text": "x"}, "label": "y"}',
            "Add the column: no other one holds texts; data holds objects",
        ),
        ("ai.csv", "My data,v2\ntext,label\nx,y\n", r"at ai\.csv:2, so .*Remove the lines before"),
        ("aj.csv", "text*label\nx*y\n", "the first line is a single cell.*data.delimiter"),
        ("ak.parquet", "junk junk", "it has no Parquet header"),
        ("al.parquet", "PAR1 junk junk junk", "its end is missing"),
        ("am.parquet", "PARE\x15\x04", "this is an encrypted Parquet file"),
        ("an.jsonl", "PARE\x15\x04", "this is an encrypted Parquet file"),
        (
            "ah.jsonl",
            '{"messages": [{"role": "user", "content": "x"}]}\n' * 2,
            "messages holds chats, which",
        ),
        ("x.xls", "PK", r"Save the sheet as \.xlsx or as CSV"),
        ("x.xlsx", "PK", r"not a readable Excel file \(it has no Excel header"),
        ("y.jsonl.zip", "PK", "Unpack it"),
    ],
)
def test_files_of_another_kind_are_named_by_their_kind(tmp_path: Path, name: str, text: str, words: str) -> None:
    with pytest.raises(DataError, match=f"(?s){words}"):
        load(write(tmp_path / name, text))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("https://example.com/a.jsonl", "a URL: download the file"),
        ("file:///a.jsonl", "without file://"),
        ("$HOME/a.jsonl", "environment variables"),
        ("data\train.jsonl", "a backslash in double quotes starts an escape sequence".capitalize()),
        ("20%", "a number without quotes"),
        ("0.2", "a number without quotes"),
        ("data\\a.jsonl", "Did you mean 'data/a.jsonl'"),
    ],
)
def test_a_path_that_is_invalid_here_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "a.jsonl", "")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=words):
        load(name)


def test_columns_of_prompts_are_suggested_where_a_single_text_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", json.dumps({"instruction": "x", "output": "y"}) + "\n")
    with pytest.raises(DataError, match=r"set data\.prompt and data\.completion"):
        load_table(str(path), COLUMNS[:1], DataConfig(train="x"))


def test_a_label_in_the_column_of_the_text_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", json.dumps(ROWS[0]) + "\n")
    with pytest.raises(DataError, match="text and label are one column, 'text'"):
        load_table(str(path), COLUMNS, DataConfig(train="x", label="text"))


def test_doubly_compressed_files_and_archives_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(gzip.compress(b"{}")))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b"a.jsonl".ljust(257, b"\0") + b"ustar"))
    for name, words in {"a.jsonl.gz": "packed with gzip", "b.jsonl.gz": "a tar archive"}.items():
        with pytest.raises(DataError, match=words):
            load(tmp_path / name)


def test_a_later_file_without_a_header_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "text,label\nx,y\n")
    write(tmp_path / "b.csv", "some words,y\nother words,y\n")
    with pytest.raises(DataError, match=r"b\.csv:1: the first line is a row"):
        load((str(tmp_path / "a.csv"), str(tmp_path / "b.csv")))


def test_a_folder_of_folders_names_those_in_it(tmp_path: Path) -> None:
    (tmp_path / "d" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match=r"d/train: no .txt files"):
        load(tmp_path / "d")


def test_a_damaged_description_of_a_datasets_folder_is_named(tmp_path: Path) -> None:
    write(tmp_path / "dataset_dict.json", "{}")
    with pytest.raises(DataError, match="its description is damaged"):
        load(tmp_path)


def test_duplicate_columns_of_a_parquet_file_are_refused_where_they_are_read(tmp_path: Path) -> None:
    columns = [pa.array(["x"]), pa.array(["y"]), pa.array(["z"]), pa.array(["z"])]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_arrays(columns, ["text", "label", "more", "more"]), path)
    assert fields(load(path)) == [{"text": "x", "label": "y"}]
    pq.write_table(pa.Table.from_arrays(columns[:3], ["text", "label", "label"]), path)
    with pytest.raises(DataError, match="two columns are called 'label'"):
        load(path)


def test_a_gzip_file_is_read_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode()))
    assert fields(load(tmp_path / "rows.jsonl")) == ROWS


def test_a_header_of_numbers_or_a_value_like_a_name_is_still_a_header(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label,2024\nx,label,1\n")
    assert fields(load(path)) == [{"text": "x", "label": "label"}]


def test_spaces_around_cells_stay_where_the_header_has_none(tmp_path: Path) -> None:
    assert fields(load(write(tmp_path / "a.csv", "text,label\n x , y\n"))) == [{"text": " x ", "label": " y"}]


def test_a_file_that_is_named_twice_is_read_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(2):
        write(tmp_path / f"train-{number}.jsonl", json.dumps(ROWS[number]) + "\n")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "train-1.jsonl")
    names = ("train-*.jsonl", "train-0*", "link.jsonl", "train-1.jsonl")
    for _ in range(2):  # a command may look for its files more than once
        assert fields(load(tuple(str(tmp_path / name) for name in names))) == ROWS[:2]
    assert caplog.text.count("is read once") == 3
    assert caplog.text.count("is named twice") == 2


def test_a_row_with_a_list_of_objects_is_a_row(tmp_path: Path) -> None:
    row = {"text": "x", "label": "y", "entities": [{"start": 0}]}
    assert fields(load(write(tmp_path / "one.jsonl", json.dumps(row)))) == [{"text": "x", "label": "y"}]


def shards(folder: Path) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"train-0000{number}-of-00002.parquet" for number in range(2)]
    pq.write_table(pa.Table.from_pylist(ROWS[:3]), paths[0])
    pq.write_table(pa.Table.from_pylist(ROWS[3:]), paths[1])
    return paths


def test_shards_are_one_source_given_as_a_folder_a_pattern_or_a_list(tmp_path: Path) -> None:
    paths = shards(tmp_path / "data")
    pq.write_table(pa.Table.from_pylist(ROWS[:1]), tmp_path / "data" / "test-00000-of-00001.parquet")
    for source in (tmp_path / "data", str(tmp_path / "data" / "train*.parquet"), tuple(map(str, paths))):
        table = load(source)
        assert fields(table) == ROWS
        assert table[3].where == "train-00001-of-00002.parquet:1"
    assert fields(load(tmp_path / "data", split="test")) == ROWS[:1]


def test_files_of_one_name_in_several_folders_have_separate_rows(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "rows.jsonl", json.dumps(ROWS[0]) + "\n")
    assert [row.where for row in load(str(tmp_path / "*" / "rows.jsonl"))] == [
        f"{tmp_path}/a/rows.jsonl:1",
        f"{tmp_path}/b/rows.jsonl:1",
    ]


def test_all_missing_files_of_a_list_and_an_empty_pattern_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load((str(tmp_path / "x.jsonl"), str(tmp_path / "y.jsonl")))
    assert len(caught.value.problems) == 2
    with pytest.raises(DataError, match="no file matches"):
        load(str(tmp_path / "*.jsonl"))
    with pytest.raises(DataError, match="empty list"):
        load(())


def test_endless_streams_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    (tmp_path / "null.parquet").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.csv"))
    kinds = {
        "pipe.jsonl": "a named pipe",
        "zero.jsonl": "a device file",
        "null.parquet": "a device file",
        "s.csv": "a socket",
    }
    for name, words in kinds.items():
        with pytest.raises(DataError, match=words):
            load(tmp_path / name)


def test_more_text_than_memory_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fulltune.runtime.machine.memory_bytes", lambda: 4000)
    path = write(tmp_path / "long.jsonl", json.dumps({"text": "x" * 2000, "label": "y"}))
    with pytest.raises(DataError, match="a quarter of this machine's memory"):
        load(path)


@pytest.mark.parametrize("source", ["", " ", ("",)])
def test_an_empty_path_is_not_the_working_directory(source: Any) -> None:
    with pytest.raises(DataError, match="an empty path"):
        load(source)


def test_a_broken_link_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").symlink_to(tmp_path / "x.jsonl")
    with pytest.raises(DataError, match="a broken link"):
        load(tmp_path / "x.jsonl")


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fulltune.data.file_text._SMALL", 1 << 16)
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress(b" " * (1 << 22)))
    with pytest.raises(DataError, match="unpacks to more than 100 times its size"):
        load(tmp_path / "bomb.jsonl.gz")


def test_a_file_of_nul_bytes_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b"\0" * 1000)
    with pytest.raises(DataError, match="only NUL bytes"):
        load(tmp_path / "x.jsonl")


@pytest.mark.parametrize("name", ["x" * 300 + ".jsonl", "x/" * 3000 + "y.jsonl", "a\0b.jsonl", "~nobody0/x.jsonl"])
def test_an_impossible_file_name_does_not_exist(name: str) -> None:
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


# ---- What the message of a refused file says ----


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('{"data": %s, "data": %s}', "data"),
        ('{"train": %s, "train": %s}', "train"),
        ('{"train": {"rows": %s, "rows": %s}}', "rows"),
        ('{"data": %s, "version": 1, "version": 2, "rest": %s}', "version"),
    ],
    ids=["wrapper", "split", "wrapper of a split", "other"],
)
def test_a_repeated_key_around_rows_is_named(text: str, key: str, tmp_path: Path) -> None:
    rows = json.dumps(ROWS)
    with pytest.raises(DataError, match=f"the key '{key}' 2 times; expected each key once"):
        load(write(tmp_path / "rows.json", text % (rows, rows)))


@pytest.mark.parametrize("name", ["rows.pkl", "rows.jsonl", "rows.csv", "rows.pickle"])
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_named_with_a_way_to_convert_it(name: str, protocol: int, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(pickle.dumps(ROWS, protocol=protocol))
    with pytest.raises(DataError, match=r"this is a pickle of Python.*to_json\('rows.jsonl'") as caught:
        load(path)
    assert "data.encoding" not in str(caught.value)


def test_zip_archives_with_a_name_of_their_own_are_called_so(tmp_path: Path) -> None:
    for name, kind in {
        "a.npz": "a NumPy archive",
        "b.pt": "a file of torch",
        "c.docx": "a Word document",
        "d.xlsx": "a damaged workbook",
    }.items():
        path = tmp_path / name
        path.write_bytes(b"PK\x03\x04" + bytes(60))
        with pytest.raises(DataError, match=f"this is {kind}") as caught:
            load(path)
        assert "Unpack it" not in str(caught.value)


@pytest.mark.parametrize(
    ("split", "key"), [("train", "data.train"), ("validation", "data.valid"), ("test", "data.eval")]
)
def test_rows_in_memory_are_located_by_their_config_key(
    split: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FULLTUNE_CACHE", str(tmp_path))
    source = as_source([{"body": row["text"], "label": row["label"]} for row in ROWS], key)
    assert str(tmp_path) in source
    with pytest.raises(DataError, match="no column 'text'") as caught:
        load(source, split)
    assert [problem.where for problem in caught.value.problems] == [key]


def test_rows_in_a_folder_that_may_not_be_searched_are_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    stat = os.stat

    def refuse(path: Any, **options: Any) -> os.stat_result:
        if "shut" in str(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(DataError, match=r"Permission denied.*change the rights"):
        locate("shut/rows.jsonl")
