"""Bad rows that are skipped, splits marked in a column, folders of texts, files by their content, dialects of CSV."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fulltune.config import Config, DataConfig, load_config
from fulltune.data.audit import audit
from fulltune.data.load import Column, Table, load_table
from fulltune.data.read import open_source
from fulltune.errors import ConfigError, DataError, Problem
from fulltune.records.run import FileFormat
from fulltune.runtime import plugins
from fulltune.tasks.dataset import Data, prepare

COLUMNS = (Column("text", str), Column("label", str))
ROWS = [{"text": f"row {number}, of five", "label": "yes" if number % 2 else "no"} for number in range(5)]


def load(source: Any, split: str = "train", **data: Any) -> Table:
    settings = DataConfig(train=source if isinstance(source, tuple) else str(source), **data)
    return load_table(settings.train, COLUMNS, settings, split=split)


def read(source: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the rows of a source without roles, and the places of its bad rows."""
    items = [item for item in open_source(str(source), "train").rows if not isinstance(item, FileFormat)]
    rows = [dict(item[1]) for item in items if not isinstance(item, Problem)]
    return rows, [item.where for item in items if isinstance(item, Problem)]


def fields(table: Table) -> list[dict[str, Any]]:
    return [dict(row.fields) for row in table]


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def lines(rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def delimited(rows: Any, **options: Any) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), **options)
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def config(task: str = "classification", **data: Any) -> Config:
    return load_config({"model": "gpt2", "task": task, "data": data})


def prepared(**data: Any) -> Data:
    settings = config(**data)
    return prepare(settings, plugins.load("task", settings.task)(settings))[1]


# Problems with one cause


def test_rows_with_one_cause_are_one_line_with_the_first_rows_and_a_count(tmp_path: Path) -> None:
    rows = [{"text": number, "label": "a"} for number in range(96)] + [{"text": "", "label": "a"}]
    with pytest.raises(DataError) as caught:
        load(write(tmp_path / "a.jsonl", lines(rows)))
    assert len(caught.value.problems) == 97
    assert str(caught.value).splitlines() == [
        "2 problems:",
        "  - a.jsonl:1, a.jsonl:2, a.jsonl:3 and 93 more, field 'text': a number (0); expected text. Write it "
        "as text, or remove the row.",
        "  - a.jsonl:97, field 'text': empty text; expected text. Fill it in, or remove the row.",
    ]


def test_a_later_file_without_a_column_is_one_problem(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", delimited(ROWS))
    write(tmp_path / "b.csv", delimited([{"text": row["text"], "klass": "x"} for row in ROWS]))
    table = load(str(tmp_path / "*.csv"))
    assert len(table) == 5
    (problem,) = table.problems
    assert problem.where.endswith("b.csv")
    assert "no column `label` in this file" in str(problem)


# Bad rows


def test_skipped_rows_are_counted_in_the_record_and_listed_in_the_audit(tmp_path: Path) -> None:
    rows = [*ROWS, {"text": "", "label": "no"}, *({**row, "text": f"{row['text']}!"} for row in ROWS)]
    path = write(tmp_path / "a.jsonl", lines(rows) + '{"text": "cut\n')
    data = prepared(train=str(path), bad_rows="skip", eval=0.2)
    assert data.train.table.info.skipped == 2
    assert len(data.train.table) + len(data.eval.table) == 10
    for action, level in (("skip", "warning"), ("refuse", "error")):
        report = audit(
            train=data.train.table,
            evaluation=data.eval.table,
            train_examples=data.train.examples,
            eval_examples=data.eval.examples,
            config=config(train=str(path), bad_rows=action),
        )
        (finding,) = [finding for finding in report.findings if finding.kind == "bad_rows"]
        assert (finding.level, finding.count) == (level, 2)
        assert [row.where for row in report.bad_rows] == ["a.jsonl:6", "a.jsonl:12"]


def test_more_bad_rows_than_good_ones_stop_a_run_that_skips(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", lines([*ROWS, *[{"text": "", "label": "x"}] * 6]))
    table = load(path)
    examples = prepared(train=str(path), bad_rows="skip").train.examples
    settings = config(train=str(path), bad_rows="skip")
    report = audit(train=table, evaluation=table, train_examples=examples, eval_examples=examples, config=settings)
    assert [finding.level for finding in report.findings if finding.kind == "bad_rows"] == ["error", "error"]
    assert any("more than can be" in finding.message for finding in report.findings)


# Splits in a column

PARTS = ["train"] * 4 + ["Dev"] * 2 + ["test"] * 3
MARKED = [{"text": f"text {n}", "label": "ab"[n % 2], "part": part} for n, part in enumerate(PARTS)]


def test_a_column_marks_the_splits_in_one_file(tmp_path: Path) -> None:
    path = write(tmp_path / "all.csv", delimited(MARKED))
    data = prepared(train=str(path), split="part")
    assert [example.id for example in data.train.examples] == [f"all.csv:{n}" for n in range(2, 6)]
    assert data.valid is not None
    assert [example.id for example in data.valid.examples] == ["all.csv:6", "all.csv:7"]
    assert [example.id for example in data.eval.examples] == ["all.csv:8", "all.csv:9", "all.csv:10"]
    assert "part" not in data.train.table[0].fields
    assert len(prepared(train=str(path), split="part", limit=3, eval_limit=1).train.examples) == 3


def test_a_config_that_a_run_wrote_reads_the_same_splits(tmp_path: Path) -> None:
    settings = config(train=str(write(tmp_path / "all.csv", delimited(MARKED))), split="part")
    again = load_config(settings.model_dump(mode="json"))
    task = plugins.load("task", "classification")
    assert len(prepare(again, task(again))[1].eval.examples) == len(prepare(settings, task(settings))[1].eval.examples)


def test_without_test_rows_the_validation_rows_decide_and_without_both_a_fraction(tmp_path: Path) -> None:
    dev = write(tmp_path / "dev.csv", delimited([row for row in MARKED if row["part"] != "test"]))
    data = prepared(train=str(dev), split="part")
    assert (len(data.eval.examples), data.valid) == (2, None)
    train = write(tmp_path / "train.csv", delimited([{**row, "part": "train"} for row in MARKED]))
    assert len(prepared(train=str(train), split="part", eval=0.3).eval.examples) == 3


def test_a_source_of_its_own_is_read_by_its_marks_if_it_has_any(tmp_path: Path) -> None:
    path = write(tmp_path / "all.jsonl", lines(MARKED))
    other = write(tmp_path / "other.jsonl", lines([{"text": "own", "label": "a"}]))
    assert len(prepared(train=str(path), split="part", eval=str(other)).eval.examples) == 1
    assert len(prepared(train=str(path), split="part", eval=str(path)).eval.examples) == 3


def test_rows_that_mark_no_split_and_a_missing_column_are_named(tmp_path: Path) -> None:
    rows = [*MARKED, {"text": "x", "label": "a", "part": "holdout"}, {"text": "y", "label": "a", "part": ""}]
    settings = DataConfig(train=str(write(tmp_path / "all.csv", delimited(rows))), split="part")
    table = load_table(settings.train, COLUMNS, settings)
    assert [(problem.where, problem.found) for problem in table.problems] == [
        ("all.csv:11", "'holdout' marks no split"),
        ("all.csv:12", "nothing marks the split"),
    ]
    with pytest.raises(DataError, match="no column 'prt'"):
        load_table(settings.train, COLUMNS, settings.model_copy(update={"split": "prt"}))
    tests = write(tmp_path / "tests.csv", delimited([row for row in MARKED if row["part"] == "test"]))
    settings = settings.model_copy(update={"train": str(tests)})
    with pytest.raises(DataError, match="none of 3 rows is marked as train in the column 'part'"):
        load_table(settings.train, COLUMNS, settings)


def test_a_bad_row_of_a_marked_split_is_reported_once(tmp_path: Path) -> None:
    rows = [*MARKED, {"text": "", "label": "a", "part": "test"}]
    data = prepared(train=str(write(tmp_path / "a.jsonl", lines(rows) + "{broken\n")), split="part")
    assert [problem.where for problem in data.eval.table.problems] == ["a.jsonl:10"]
    assert [problem.where for problem in data.train.table.problems] == ["a.jsonl:11"]


# Folders


def test_subfolders_are_read_and_their_names_can_be_labels(tmp_path: Path) -> None:
    for name in (
        "pos/a.txt",
        "pos/2024/b.txt",
        "neg/a.txt",
        "top.txt",
        ".hidden/c.txt",
        "neg/.d.txt",
        "__MACOSX/e.txt",
    ):
        write(tmp_path / name, f"text of {name}")
    settings = DataConfig(train=str(tmp_path), label="folder", id="file", group="folder", bad_rows="skip")
    table = load_table(settings.train, COLUMNS, settings)
    assert [(row.id, row.fields["label"]) for row in table] == [
        ("neg/a.txt", "neg"),
        ("pos/2024/b.txt", "pos"),
        ("pos/a.txt", "pos"),
    ]
    assert table.bad_places == ("top.txt",)
    assert len(load_table(str(tmp_path), COLUMNS[:1], DataConfig(train="x"))) == 4
    with pytest.raises(DataError, match=r"set `data\.label: folder`"):
        load(tmp_path)


def test_folders_named_after_splits_are_these_splits(tmp_path: Path) -> None:
    for name in ("train/pos/a.txt", "train/neg/b.txt", "test/pos/c.txt"):
        write(tmp_path / name, f"text of {name}")
    read = {"label": "folder"}
    assert [row.fields["label"] for row in load(tmp_path, **read)] == ["neg", "pos"]
    assert fields(load(tmp_path, "test", **read)) == [{"text": "text of test/pos/c.txt", "label": "pos"}]
    assert len(load(f"{tmp_path}#test", **read)) == 1
    assert load(tmp_path, "test", **read).files[0].part == "test"
    with pytest.raises(DataError, match=r"no subfolder 'tset'; expected one of test, train\. Did you mean 'test'"):
        load(f"{tmp_path}#tset")


def test_nested_files_of_rows_are_one_source(tmp_path: Path) -> None:
    write(tmp_path / "2023" / "a.csv", delimited(ROWS[:2]))
    write(tmp_path / "2024" / "b.csv", delimited(ROWS[2:]))
    assert fields(load(tmp_path)) == ROWS
    assert fields(load(f"{tmp_path}/**/*.csv")) == ROWS


def test_a_folder_of_texts_and_files_of_rows_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "README.txt", "x")
    write(tmp_path / "data.csv", delimited(ROWS))
    with pytest.raises(
        DataError, match=r"both text documents \(README\.txt, 1 in all\) and files of rows.*by a pattern"
    ):
        load(tmp_path)


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    write(tmp_path / "a" / "x.txt", "x")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert len(load_table(str(tmp_path), COLUMNS[:1], DataConfig(train="x"))) == 1


# Formats by content


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt", "a.dat", "a"])
def test_a_csv_with_another_name_is_read_and_noted(tmp_path: Path, name: str) -> None:
    table = load(write(tmp_path / name, delimited(ROWS)))
    assert fields(table) == ROWS
    assert table.files[0].format == "csv"
    assert any("its content is CSV: read as such" in sentence for sentence in table.files[0].assumed)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.txt", "a.data"])
@pytest.mark.parametrize("text", [lines(ROWS), json.dumps(ROWS)], ids=["lines", "array"])
def test_json_with_another_name_is_read_and_noted(tmp_path: Path, name: str, text: str) -> None:
    table = load(write(tmp_path / name, text))
    assert fields(table) == ROWS
    assert table.files[0].assumed == (f"its name ends in {Path(name).suffix}, but its content is JSON: read as such",)


def test_prose_in_a_text_file_stays_a_document(tmp_path: Path) -> None:
    for text in ("Once, there was\na king, who\nhad, it\n", "text\n\nnot a header\n", "[1] a note\n", "{not json}\n"):
        table = load_table(str(write(tmp_path / "a.txt", text)), COLUMNS[:1], DataConfig(train="x"))
        assert fields(table) == [{"text": text}]


@pytest.mark.parametrize(("ending", "packed"), [(".gz", gzip.compress), (".xz", lzma.compress), (".bz2", bz2.compress)])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt"])
def test_compressed_text_is_read_whatever_its_name(tmp_path: Path, ending: str, packed: Any, name: str) -> None:
    text = delimited(ROWS) if name == "a.csv" else lines(ROWS)
    for path in (tmp_path / f"{name}{ending}", tmp_path / name):
        path.write_bytes(packed(text.encode()))
        assert fields(load(path)) == ROWS
        path.write_bytes(packed(text.encode())[:-15])
        with pytest.raises(DataError, match="damaged or cut off"):
            load(path)


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_arrow_files_of_both_kinds_are_read(tmp_path: Path, kind: str) -> None:
    table = pa.Table.from_pylist(ROWS)
    path = tmp_path / "a.arrow"
    with (pa.ipc.new_file if kind == "file" else pa.ipc.new_stream)(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    assert fields(load(path)) == ROWS
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"Arrow file|file is damaged"):
        load(path)


def test_a_parquet_file_named_csv_is_read_and_noted(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.csv")
    table = load(tmp_path / "a.csv")
    assert fields(table) == ROWS
    assert table.files[0].assumed == ("its name ends in .csv, but its content is Parquet: read as such",)


def test_a_text_that_begins_like_a_binary_file_is_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "ORCID,text,label\n1,x,y\n")
    assert fields(load(path)) == [{"text": "x", "label": "y"}]


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ({"version": 1, "clauses": ROWS}, "clauses"),
        ({"result": {"items": ROWS, "total": 5}}, "result.items"),
        ({"meta": {"x": 1}, "all": {"train": ROWS, "test": []}}, "all.train"),
    ],
)
def test_rows_under_a_key_are_read_by_its_name(tmp_path: Path, value: Any, part: str) -> None:
    path = write(tmp_path / "a.json", json.dumps(value))
    assert fields(load(f"{path}#{part}")) == ROWS
    with pytest.raises(DataError, match=r"there is no such key; expected one of"):
        load(f"{path}#nothing")


def test_rows_under_an_unusual_key_are_recognized_by_the_wanted_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", json.dumps({"version": 1, "clauses": ROWS, "authors": ["x"]}))
    assert fields(load(path)) == ROWS
    assert load(path).files[0].part == "clauses"


# Dialects of CSV


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", ":", "~", "^", "\x1f", "\x01", "¦"])
def test_any_delimiter_is_inferred(tmp_path: Path, delimiter: str) -> None:
    table = load(write(tmp_path / "a.csv", delimited(ROWS, delimiter=delimiter)))
    assert fields(table) == ROWS
    assert table.files[0].delimiter == delimiter


def test_a_delimiter_in_the_config_decides(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", delimited(ROWS, delimiter="*"))
    assert fields(load(path, delimiter="*")) == ROWS
    assert DataConfig(train="x", delimiter="\\t").delimiter == "\t"
    with pytest.raises(ConfigError, match=r"data\.delimiter is '\|\|'; expected one character"):
        load_config({"model": "gpt2", "task": "causal-lm", "data": {"train": "x", "delimiter": "||"}})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('text,note;label\n"a, b";x\nc;y\n', [{"text,note": "a, b", "label": "x"}, {"text,note": "c", "label": "y"}]),
        ("'text','label'\n'a, b','x'\n", [{"text": "a, b", "label": "x"}]),
        ('text,label\n"say \\"yes\\", then",x\n', [{"text": 'say "yes", then', "label": "x"}]),
        ('text\tlabel\n"Yes," he said.\tx\n5" pipe\ty\n', [
            {"text": '"Yes," he said.', "label": "x"}, {"text": '5" pipe', "label": "y"}]),
        ('"text","label"\n"1","a","x"\n"2","b","y"\n', [
            {"": "1", "text": "a", "label": "x"}, {"": "2", "text": "b", "label": "y"}]),
        ("text;label\r\n1,5 m;x\r\n2,5 m;y\r\n", [{"text": "1,5 m", "label": "x"}, {"text": "2,5 m", "label": "y"}]),
        ("text,,,label\na,,,x\n", [{"text": "a", "": "", "label": "x"}]),
        ("text,label,label\na,x,z\n", [{"text": "a", "label": "x"}]),
        ("\n\ntext,label\na,x\n", [{"text": "a", "label": "x"}]),
        ("text,label\ra,x\rb,y\r", [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]),
    ],
)  # fmt: skip
def test_dialects_of_programs_and_people(tmp_path: Path, text: str, expected: Any) -> None:
    assert read(write(tmp_path / "a.csv", text)) == (expected, [])


def test_a_broken_quote_in_a_quoted_file_does_not_turn_quoting_off(tmp_path: Path) -> None:
    text = '"text","label"\n' + '"good, row","x"\n' * 5 + '"broken"row","x"\n'
    rows, bad = read(write(tmp_path / "a.csv", text))
    assert [row["text"] for row in rows] == ["good, row"] * 5
    assert bad == ["a.csv:7"]


def test_a_text_with_commas_in_every_row_is_not_taken_for_row_numbers(tmp_path: Path) -> None:
    table = load(write(tmp_path / "a.csv", delimited(ROWS) + "Hello, world,x\nGood, bye,y\n"))
    assert len(table.problems) == 2
    rows, bad = read(write(tmp_path / "b.csv", "text,label\nHello, world,x\nGood, bye,y\n"))
    assert (len(rows), len(bad)) == (0, 2)


# Labels


def labels_of(path: Path) -> list[str]:
    return [row.fields["label"] for row in load(path)]


@pytest.mark.parametrize(
    ("values", "read"),
    [
        ([0.0, 1.0, 1.0], ["0", "1", "1"]),
        ([0, 1, 1], ["0", "1", "1"]),
        ([1.0, 2.5, 3.0], ["1", "2.5", "3"]),
        ([-0.0, 1.0, -1.0], ["0", "1", "-1"]),
    ],
)
def test_labels_written_as_numbers_are_the_same_in_json_and_csv(tmp_path: Path, values: Any, read: list[str]) -> None:
    rows = [{"text": f"text {number}", "label": value} for number, value in enumerate(values)]
    assert labels_of(write(tmp_path / "a.jsonl", lines(rows))) == read
    assert labels_of(write(tmp_path / "a.csv", delimited(rows))) == read
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert labels_of(tmp_path / "a.parquet") == read


def test_a_number_is_one_label_whether_written_as_1_or_as_1_0(tmp_path: Path) -> None:
    values = [0.5, 1, 1.0, 2.0, 10**16, 1e16]
    rows = [{"text": f"text {number}", "label": value} for number, value in enumerate(values)]
    assert labels_of(write(tmp_path / "a.jsonl", lines(rows))) == ["0.5", "1", "1", "2", str(10**16), str(10**16)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_real_valued_targets_are_refused_as_labels(tmp_path: Path, name: str) -> None:
    rows = [{"text": f"text {number}", "label": number / 7} for number in range(40)]
    path = write(tmp_path / name, lines(rows) if name == "a.jsonl" else delimited(rows))
    with pytest.raises(DataError, match=r"34 different real numbers in 40 labels .*low, medium and high") as caught:
        load(path)
    assert caught.value.problems[0].field == "data.label"


def test_labels_like_versions_stay_as_they_are_written(tmp_path: Path) -> None:
    rows = [
        {"text": f"text {number}", "label": value} for number, value in enumerate(["1.0", "1.10", "1.1", "2.0 beta"])
    ]
    assert labels_of(write(tmp_path / "a.csv", delimited(rows))) == [row["label"] for row in rows]


def test_a_separator_that_separates_nothing_is_refused(tmp_path: Path) -> None:
    rows = [{"text": "x", "labels": "a|b"}, {"text": "y", "labels": "c"}]
    path = write(tmp_path / "a.csv", delimited(rows))
    columns = (Column("text", str), Column("labels", list))
    settings = DataConfig(train=str(path), label_separator=";")
    with pytest.raises(DataError, match=r"';' separates no labels, but '\|' occurs in 1 of 2 cells.*separator: '\|'"):
        load_table(settings.train, columns, settings)
    settings = DataConfig(train=str(path), label_separator="|")
    assert load_table(settings.train, columns, settings)[0].fields["labels"] == ["a", "b"]


# Rows given from Python


@pytest.fixture
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FULLTUNE_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("_cache")
def test_rows_in_memory_are_located_by_their_number() -> None:
    settings = config(train=[*ROWS, {"text": None, "label": "x"}], eval=ROWS).data
    table = load_table(settings.train, COLUMNS, settings)
    assert [row.where for row in table][:2] == ["row 1 of data.train", "row 2 of data.train"]
    assert [problem.where for problem in table.problems] == ["row 6 of data.train"]
    assert load_table(str(settings.eval), COLUMNS, settings, split="test")[0].where == "row 1 of data.eval"


@pytest.mark.usefixtures("_cache")
def test_items_that_are_no_rows_are_located() -> None:
    with pytest.raises(ConfigError) as caught:
        config(train=[*ROWS, "text", 5])
    assert [problem.where for problem in caught.value.problems] == ["row 6 of data.train", "row 7 of data.train"]
    assert "a value of type str ('text'); expected a dict of values by column" in str(caught.value)


@pytest.mark.usefixtures("_cache")
def test_a_dictionary_of_splits_gives_them_all() -> None:
    from datasets import Dataset, DatasetDict

    def splits(*names: str) -> Any:
        return DatasetDict({name: Dataset.from_list([{"text": name, "label": "a"}]) for name in names})

    def texts(data: DataConfig, key: str) -> list[str]:
        return [row.fields["text"] for row in load_table(getattr(data, key), COLUMNS, data)]

    data = config(train=splits("train", "validation", "test")).data
    assert [texts(data, key) for key in ("train", "valid", "eval")] == [["train"], ["validation"], ["test"]]
    data = config(train=splits("train", "dev")).data
    assert (texts(data, "eval"), data.valid) == (["dev"], None)
    data = config(train=splits("train", "test"), eval=0.3).data
    assert data.eval == 0.3
    assert texts(config(train=ROWS, eval=splits("test")).data, "eval") == ["test"]
    with pytest.raises(ConfigError, match=r"a DatasetDict without a split named train.*one of its splits: fit"):
        config(train=splits("fit"))


@pytest.mark.parametrize(
    "above",
    ["Clauses of 2024\n", "Clauses;\nwritten 1. 2. 2024;\n\n", "\nClauses of 2024; \n", "sep=;\nAll of them\n"],
)
def test_a_title_above_the_column_names_is_skipped(above: str, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text(above + "text;label\n" + "".join(f"clause {i}, and more;a{i % 2}\n" for i in range(20)))
    rows, bad = read(file)
    assert (len(rows), rows[0], bad) == (20, {"text": "clause 0, and more", "label": "a0"}, [])


def test_prose_in_one_column_has_no_title(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("full text\n" + "".join(f"Yes, {i}\n" for i in range(20)))
    assert len(read(file)[1]) == 20


def test_rows_under_two_keys_are_found(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"meta": {"version": 1}, "data": {"clauses": ROWS}}))
    assert read(file) == (ROWS, [])
