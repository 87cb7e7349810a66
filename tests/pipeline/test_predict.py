"""Answers of a file: those of the evaluation, in the order and with the columns of the input, in every format."""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pyarrow.parquet as pq
import pytest
from answering import Run, sentence
from filelock import FileLock
from matrix import often
from typer.testing import CliRunner, Result

import fulltune
from fulltune.cli.main import app
from fulltune.cli.predict import _named
from fulltune.errors import ConfigError, DataError, FulltuneError, StoreError
from fulltune.pipeline import predict as predicting
from fulltune.pipeline.loaded_model import LoadedModel
from fulltune.records.run import Recommendation
from fulltune.serve.server import server_of

#: Rows per block with this batch size.
SIZE, BLOCK = 1, 32


def rows_of(count: int) -> list[dict[str, Any]]:
    return [{"number": number, "body": sentence(number)} for number in range(count)]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def command(*arguments: object, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(app, ["predict", *map(str, arguments)], input=stdin)


def test_answers_are_those_of_the_evaluation(classes: Run, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", [{"note": index, **row} for index, row in enumerate(classes.rows)])
    found = fulltune.predict(classes.record, data, output=tmp_path / "out.jsonl")
    rows = read(tmp_path / "out.jsonl")
    assert [row["prediction"] for row in rows] == [one.output for one in classes.predictions]
    assert [max(row["probabilities"].values()) for row in rows] == [
        one.values["confidence"] for one in classes.predictions
    ]
    assert [{name: row[name] for name in ("note", "body", "label")} for row in rows] == [
        {"note": index, **row} for index, row in enumerate(classes.rows)
    ]
    assert (found.total, found.answered, found.truncated, found.resumed) == (len(rows), len(rows), 0, 0)
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(
    ("data", "proposed"),
    [("in.csv", "o.csv"), (["in.TSV", "b.csv"], "o.tsv"), ("in.xlsx", "o.jsonl"), ("-", "o.jsonl"), ([], "o.jsonl")],
    ids=str,
)
def test_the_format_of_the_input_is_proposed_for_the_output(data: Any, proposed: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"Name it {proposed}") as caught:
        fulltune.predict("latest", data, output=tmp_path / "o.xlsx")
    assert caught.value.problems[0].found == "the suffix '.xlsx'"


def test_queries_are_those_of_the_evaluation(queries: Run, tmp_path: Path) -> None:
    found = fulltune.predict(queries.record, [{"question": r["question"], "db_id": r["db_id"]} for r in queries.rows])
    assert [row["sql"] for row in found.rows] == [one.output for one in queries.predictions]
    [alone] = fulltune.predict(queries.record, [{"question": queries.rows[0]["question"]}], database="zoo").rows
    assert alone["sql"] == queries.predictions[0].output
    [missing] = fulltune.predict(queries.record, [{"question": "How many?"}]).rows
    assert missing["prediction"] is None
    assert missing["error"].startswith("2 databases")


#: Queries that answer the questions in turn, with what is added to the row: without running them, and with --execute.
QUERIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "SELECT name, legs FROM zoo WHERE legs IS NULL": ({}, {"columns": ["name", "legs"], "rows": []}),
    "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x, 'a', x'01' FROM n": (
        {},
        {"columns": ["x", "'a'", "x'01'"], "rows": [[1, "a", "01"], [2, "a", "01"]], "more_rows": True},
    ),
    "SELECT heads FROM zoo": (
        {"sql_error": "no such column: heads"},
        {"rows": [], "sql_error": "no such column: heads"},
    ),
    "SELECT": ({"sql_error": "incomplete input"}, {"rows": [], "sql_error": "incomplete input"}),
    "DELETE FROM zoo": (
        {"sql_error": "refused: DELETE is not a query"},
        {"rows": [], "sql_error": "refused: DELETE is not a query"},
    ),
    "SELECT legs FROM zoo WHERE name = 'mammoth'": (
        {"sql_warning": "'mammoth' (zoo.name) occurs neither in the question nor in the column"},
        {
            "columns": ["legs"],
            "rows": [],
            "sql_warning": "'mammoth' (zoo.name) occurs neither in the question nor in the column",
        },
    ),
    "SELECT abs(-9223372036854775808) FROM (SELECT 1)": ({}, {"rows": [], "sql_error": "integer overflow"}),
}


@pytest.fixture
def writing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let models answer with the queries of :data:`QUERIES` in turn."""

    def answer(_: LoadedModel, examples: Sequence[Any]) -> Iterator[dict[str, Any]]:
        return ({"prediction": query, "sql": query} for query, _ in zip(QUERIES, examples, strict=True))

    monkeypatch.setattr(LoadedModel, "answer", answer)


@pytest.mark.usefixtures("writing")
def test_queries_have_their_rows_or_the_reason_of_their_failure(queries: Run, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", [{"question": f"{n}?", "sql": f"reference {n}"} for n in range(len(QUERIES))])
    options: dict[str, Any] = {"database": "zoo", "evaluation": {"sql_seconds": 5}}
    for number, execute in enumerate((False, True)):
        found = fulltune.predict(queries.record, data, execute=execute, max_rows=2, **options)
        added = [
            {name: row[name] for name in row if name not in ("question", "sql", "prediction")} for row in found.rows
        ]
        assert added == [expected[number] for expected in QUERIES.values()]
        assert [(row["sql"], row["prediction"]) for row in found.rows] == [
            (f"reference {n}", query)
            for n, query in enumerate(QUERIES)  # the column of the input is kept
        ]
        assert found.failing_queries == sum("sql_error" in row for row in added)
        assert found.doubtful_queries == sum("sql_warning" in row for row in added) == 1
    fulltune.predict(queries.record, data, execute=True, max_rows=2, output=tmp_path / "out.parquet", **options)
    column = pq.read_table(tmp_path / "out.parquet").column("rows").to_pylist()
    assert [json.loads(cell) for cell in column] == [row["rows"] for row in found.rows]


@pytest.mark.usefixtures("writing")
def test_the_command_executes_queries(queries: Run, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", [{"question": f"{n}?"} for n in range(len(QUERIES))])
    options = (queries.record.folder, data, "--db", "zoo", "--set", "evaluation.sql_seconds=5")
    shown = command(*options, "--execute", "--max-rows", 2)
    assert [json.loads(line)["rows"] for line in shown.stdout.splitlines()] == [
        row[1]["rows"] for row in QUERIES.values()
    ]
    assert "7 of 7 rows answered" in shown.stderr
    assert "4 with a query that fails, 1 with a value from nowhere (`sql_warning`)" in shown.stderr
    found = fulltune.predict(queries.record, data, database="zoo")
    assert [row["sql"] for row in found.rows] == list(QUERIES)


@pytest.mark.parametrize("size", [2, 7, 64])
def test_the_batch_size_changes_no_byte(classes: Run, tmp_path: Path, size: int) -> None:
    data = write(tmp_path / "rows.jsonl", rows_of(70))
    for name, batch in (("one", 1), ("other", size)):
        fulltune.predict(classes.record, data, output=tmp_path / f"{name}.jsonl", evaluation={"batch_size": batch})
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "other.jsonl").read_bytes()


def test_every_format_has_the_same_rows(classes: Run, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", rows_of(20))
    for suffix in ("jsonl", "csv", "tsv", "parquet"):
        fulltune.predict(classes.record, data, output=tmp_path / f"out.{suffix}")
    expected = read(tmp_path / "out.jsonl")
    assert [
        {**row, "probabilities": dict(row["probabilities"])}
        for row in pq.read_table(tmp_path / "out.parquet").to_pylist()
    ] == expected
    for suffix, delimiter in (("csv", ","), ("tsv", "\t")):
        with (tmp_path / f"out.{suffix}").open(encoding="utf-8", newline="") as file:
            cells = list(csv.DictReader(file, delimiter=delimiter))
        assert [
            {**row, "number": int(row["number"]), "probabilities": json.loads(row["probabilities"])} for row in cells
        ] == expected


@pytest.mark.parametrize(
    ("delimiter", "encoding", "mark"),
    [
        (";", "cp1250", b"\xef\xbb\xbf"),
        (";", "utf-8", b""),
        (",", "utf-8-sig", b"\xef\xbb\xbf"),
        ("\t", "utf-16", b"\xef\xbb\xbf"),
    ],
)
def test_answers_open_where_the_rows_were_written(
    classes: Run, tmp_path: Path, delimiter: str, encoding: str, mark: bytes
) -> None:
    name = "smluvní pokuta, přípustná"
    lines = [delimiter.join(("number", "body", "note"))]
    lines += [delimiter.join((str(n), sentence(n), f'"{name}"')) for n in range(12)]
    data, output = tmp_path / "rows.csv", tmp_path / "out.csv"
    data.write_bytes("\n".join(lines).encode(encoding))
    fulltune.predict(classes.record, data, output=output)

    written = output.read_bytes()
    assert written[:3] == (mark or b"num")
    assert written.removeprefix(mark).startswith(delimiter.join(("number", "body", "note", "prediction")).encode())
    rows = list(csv.DictReader(io.StringIO(written.decode("utf-8-sig")), delimiter=delimiter))
    assert [row["note"] for row in rows] == [name] * 12
    again = fulltune.predict(classes.record, output, prefix="second_")
    assert [row["second_prediction"] for row in again.rows] == [row["prediction"] for row in rows]


def test_columns_keep_their_types_from_parquet_to_parquet(classes: Run, tmp_path: Path) -> None:
    import pyarrow as pa

    table = pa.table({"body": ["a court", "a film"], "day": [date(2026, 1, 2), None], "tags": [["a"], []]})
    pq.write_table(table, tmp_path / "rows.parquet")
    fulltune.predict(classes.record, tmp_path / "rows.parquet", output=tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet").select(table.column_names).to_pydict() == table.to_pydict()


def test_rows_of_python_are_answered_in_memory(classes: Run) -> None:
    import pandas as pd

    rows = rows_of(5)
    found = fulltune.predict(classes.record, pd.DataFrame(rows))
    assert [{name: row[name] for name in ("number", "body")} for row in found.rows] == rows
    assert [row["prediction"] for row in found.rows] == [
        answer["prediction"] for answer in fulltune.load(classes.record)([row["body"] for row in rows])
    ]


def test_a_stream_gets_json_lines(classes: Run, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", rows_of(3))
    stream = io.StringIO()
    fulltune.predict(classes.record, data, output=stream)
    fulltune.predict(classes.record, data, output=tmp_path / "out.jsonl")
    assert stream.getvalue() == (tmp_path / "out.jsonl").read_text(encoding="utf-8")


def test_rows_without_an_answer_say_why(classes: Run, tmp_path: Path) -> None:
    lines = ['{"body": "a court"}', '{"body": " "}', '{"body": 5}', "{oops", '{"other": 1}', '{"body": "a\\ud83d"}']
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = fulltune.predict(classes.record, data, output=tmp_path / "out.jsonl")
    rows = read(tmp_path / "out.jsonl")
    assert [row["prediction"] is None for row in rows] == [False, True, True, True, True, True]
    assert [row.get("error", "").split(";")[0] for row in rows[1:]] == [
        "text of whitespace only",
        "a number (5)",
        "not valid JSON (the word oops without quotes at column 2)",
        "nothing (the column is missing or null)",
        "half of a surrogate pair",
    ]
    assert rows[4]["other"] == 1
    assert (found.total, found.answered) == (6, 1)
    assert [one.where for one in found.unanswered] == [f"rows.jsonl:{line}" for line in range(2, 7)]
    for suffix in ("csv", "parquet"):  # a lone surrogate has no UTF-8
        output = tmp_path / f"out.{suffix}"
        fulltune.predict(classes.record, write(tmp_path / "half.jsonl", [{"body": "a\ud83d"}]), output=output)
        assert rb"a\ud83d" in output.read_bytes()


def test_a_long_text_is_answered_and_counted(classes: Run, tmp_path: Path) -> None:
    rows = [{"body": "court " * 600}, {"body": "court"}]
    found = fulltune.predict(classes.record, rows)
    assert found.rows[0]["truncated"] > 0
    assert "truncated" not in found.rows[1]
    assert found.truncated == 1


class _Killed(BaseException):
    """The end of a process, which nothing catches."""


def _stop_after(monkeypatch: pytest.MonkeyPatch, blocks: int, error: BaseException) -> None:
    """Let the model answer a number of blocks, then raise."""
    answer: Callable[..., Iterator[dict[str, Any]]] = LoadedModel.answer
    calls = 0

    def limited(model: LoadedModel, examples: Any) -> Iterator[dict[str, Any]]:
        nonlocal calls
        calls += 1
        if calls > blocks:
            raise error
        yield from answer(model, examples)

    monkeypatch.setattr(LoadedModel, "answer", limited)


@pytest.mark.parametrize("suffix", often(["jsonl", "csv", "parquet"], lambda suffix: suffix != "jsonl"))
def test_an_interrupted_call_resumes(
    classes: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    data = write(tmp_path / "rows.jsonl", rows_of(BLOCK * 3 + 5))
    whole, output = tmp_path / f"whole.{suffix}", tmp_path / f"out.{suffix}"
    fulltune.predict(classes.record, data, output=whole, evaluation={"batch_size": SIZE})
    with monkeypatch.context() as patch:
        _stop_after(patch, 2, _Killed())
        with pytest.raises(_Killed):
            fulltune.predict(classes.record, data, output=output, evaluation={"batch_size": SIZE})
    assert not output.exists()
    with (tmp_path / "out.partial").open("a", encoding="utf-8") as file:
        file.write('{"prediction": "torn')  # the write of a block that a kill has cut
    found = fulltune.predict(classes.record, data, output=output, evaluation={"batch_size": SIZE})
    assert found.resumed == 2 * BLOCK
    assert output.read_bytes() == whole.read_bytes()


def test_ctrl_c_says_that_the_call_resumes(classes: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write(tmp_path / "rows.jsonl", rows_of(BLOCK * 2))
    _stop_after(monkeypatch, 1, KeyboardInterrupt())
    result = command(
        classes.record.folder, data, "-o", tmp_path / "out.csv", "--quiet", "--set", f"evaluation.batch_size={SIZE}"
    )
    assert result.exit_code == 130
    assert "32 answered rows are kept; the same command resumes" in result.stderr


def test_answers_of_another_call_are_not_mixed_in(
    classes: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, output = write(tmp_path / "rows.jsonl", rows_of(BLOCK * 2)), tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        _stop_after(patch, 1, _Killed())
        with pytest.raises(_Killed):
            fulltune.predict(classes.record, data, output=output, evaluation={"batch_size": SIZE})
    write(data, rows_of(BLOCK * 2 + 1))
    with pytest.raises(ConfigError, match=r"interrupted call with another model, input or option.*--force"):
        fulltune.predict(classes.record, data, output=output, evaluation={"batch_size": SIZE})
    found = fulltune.predict(classes.record, data, output=output, evaluation={"batch_size": SIZE}, force=True)
    assert (found.total, found.resumed) == (BLOCK * 2 + 1, 0)


def test_another_process_at_the_same_file_is_refused(classes: Run, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", rows_of(2))
    with FileLock(tmp_path / "out.partial.lock"), pytest.raises(StoreError, match="another process writes this file"):
        fulltune.predict(classes.record, data, output=tmp_path / "out.csv")


def test_the_lock_is_removed_while_it_is_held(classes: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, lock = write(tmp_path / "rows.jsonl", rows_of(2)), tmp_path / "out.partial.lock"
    release, seen = FileLock.release, list[bool]()

    def observed(self: FileLock, force: bool = False) -> None:
        if self.is_locked and Path(self.lock_file) == lock:
            seen.append(lock.exists())
        release(self, force)

    monkeypatch.setattr(FileLock, "release", observed)
    fulltune.predict(classes.record, data, output=tmp_path / "out.csv")
    assert seen == [False]  # a process that has opened it finds a removed file, and makes another one
    assert not lock.exists()


@pytest.mark.parametrize(("output", "passes"), [(None, 1), ("out.jsonl", 2), ("out.csv", 3)])
def test_rows_are_read_as_few_times_as_the_format_permits(
    classes: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str | None, passes: int
) -> None:
    opened = Mock(wraps=predicting.open_source)
    monkeypatch.setattr(predicting, "open_source", opened)
    data = write(tmp_path / "rows.jsonl", rows_of(2))
    fulltune.predict(classes.record, data, output=None if output is None else tmp_path / output)
    assert opened.call_count == 1 + passes  # the first time for the names of the columns


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_a_large_file_is_read_line_by_line_and_gives_the_same_rows(
    classes: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, packed: bool
) -> None:
    rows = [{"number": str(number), "body": f'{sentence(number)}; "so"\nit is'} for number in range(40)]
    text = "\ufeff" + "".join(json.dumps(row) + "\r\n" for row in rows)
    if suffix == "csv":
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(buffer, ["number", "body"], delimiter=";")
        writer.writeheader()
        writer.writerows(rows)
        text = "sep=;\r\n" + buffer.getvalue()
    data = tmp_path / f"rows.{suffix}{'.gz' if packed else ''}"
    data.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    at_once = fulltune.predict(classes.record, data)
    monkeypatch.setattr(predicting, "_LARGE", 1)
    streamed = fulltune.predict(classes.record, data)
    assert streamed.rows == at_once.rows
    assert [{name: row[name] for name in rows[0]} for row in streamed.rows] == rows


def test_a_large_file_in_another_encoding_is_read_at_once(
    classes: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicting, "_LARGE", 1)
    text = "number;body\n" + "".join(f"{number};Příliš žluťoučký kůň běžel k soudu.\n" for number in range(9))
    (tmp_path / "rows.csv").write_bytes(text.encode("cp1250"))
    found = fulltune.predict(classes.record, tmp_path / "rows.csv")
    assert {row["body"] for row in found.rows} == {"Příliš žluťoučký kůň běžel k soudu."}
    assert found.files[0].encoding == "cp1250"
    (tmp_path / "more.csv").write_bytes(text.replace("0;", "10;").encode("cp1250"))
    [form] = fulltune.predict(classes.record, [str(tmp_path / name) for name in ("rows.csv", "more.csv")]).files
    assert form.assumed[0].endswith("; 1 more file is read in the same way")


def test_bytes_that_are_not_utf8_far_into_a_large_file_are_reported(
    classes: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fulltune.data import file_text

    monkeypatch.setattr(predicting, "_LARGE", 1)
    monkeypatch.setattr(file_text, "_SAMPLE", 64)
    lines = [f"row {number} of the court".encode() for number in range(20)]
    lines[15] = b"caf\xe9 of the court"
    (tmp_path / "rows.csv").write_bytes(b"body,number\n" + b"".join(line + b",1\n" for line in lines))
    found = fulltune.predict(classes.record, tmp_path / "rows.csv", output=tmp_path / "out.jsonl")
    assert (found.total, found.answered) == (20, 19)
    assert found.unanswered[0].where == "rows.csv:17"
    assert "the byte 0xE9, which is not UTF-8" in found.unanswered[0].reason


def test_wrong_calls_say_how_to_correct_them(classes: Run, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", rows_of(2))
    other = write(tmp_path / "other.jsonl", [{"bodies": "a", "prediction": "b"}])
    (tmp_path / "there.csv").write_text("kept")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "folder.csv").mkdir()
    cases: list[tuple[Any, dict[str, Any], type[FulltuneError], str]] = [
        (data, {"output": tmp_path / "out.jsn"}, ConfigError, r"suffix '\.jsn'.*Did you mean '\.jsonl'"),
        (data, {"output": tmp_path / "out"}, ConfigError, r"no suffix.*Name it out\.jsonl"),
        (data, {"output": tmp_path / "there.csv"}, ConfigError, "the file exists.*--force"),
        (data, {"output": tmp_path / "folder.csv", "force": True}, ConfigError, "this is a folder"),
        (data, {"output": tmp_path / "there.csv" / "a.csv"}, StoreError, "choose another file with --output"),
        (tmp_path / "missing.csv", {}, DataError, "no such file"),
        (tmp_path / "empty.jsonl", {}, DataError, "no rows"),
        (other, {}, DataError, "a column 'body'.*--set data.text=bodies"),
        (other, {"overrides": ["data.text=bodies"]}, ConfigError, "column 'prediction' already.*--prefix"),
        (data, {"output": tmp_path / "a\0.csv"}, ConfigError, "the path is not valid"),
        (data, {"output": tmp_path / f"{'x' * 300}.csv"}, StoreError, "name too long.*another file with --output"),
        ([], {}, ConfigError, "an empty list"),
        (None, {}, ConfigError, "None; expected a path"),
        (0.5, {}, ConfigError, r"0\.5; expected a path"),
        (data, {"execute": True}, ConfigError, "the task classification; expected text2sql for --execute and --db"),
    ]
    for source, options, error, message in cases:
        with pytest.raises(error, match=message):
            fulltune.predict(classes.record, source, **options)
    assert (tmp_path / "there.csv").read_text() == "kept"
    found = fulltune.predict(classes.record, other, overrides=["data.text=bodies"], prefix="tuned_")
    assert set(found.rows[0]) == {"bodies", "prediction", "tuned_prediction", "tuned_probabilities"}


def test_values_of_several_types_are_refused_by_parquet_and_kept_for_another_format(
    classes: Run, tmp_path: Path
) -> None:
    data = write(tmp_path / "rows.jsonl", [{"body": "a", "n": 1}, {"body": "b", "n": "two"}])
    with pytest.raises(StoreError, match=r"several types.*\.jsonl or \.csv"):
        fulltune.predict(classes.record, data, output=tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()
    fulltune.predict(classes.record, data, output=tmp_path / "out.jsonl")
    assert [row["n"] for row in read(tmp_path / "out.jsonl")] == [1, "two"]


def test_the_command_writes_json_lines_and_reads_stdin(classes: Run, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", rows_of(4))
    piped = command(classes.record.folder, "-", "--quiet", stdin=data.read_text())
    named = command(classes.record.folder, data, "--quiet")
    assert piped.exit_code == named.exit_code == 0
    assert piped.stdout == named.stdout
    assert [json.loads(line)["number"] for line in named.stdout.splitlines()] == [0, 1, 2, 3]
    table = command(classes.record.folder, "-", "--quiet", stdin=b"number;body\n7;a court\n")
    assert json.loads(table.stdout)["number"] == "7"
    empty = command(classes.record.folder, "-", stdin="")
    assert (empty.exit_code, empty.stdout) == (1, "")
    assert "nothing on stdin" in empty.stderr


def test_a_closed_stdin_is_an_empty_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(DataError, match="nothing on stdin"), _named(["-"]):
        pass


def test_the_command_summarizes_a_file(classes: Run, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", [*rows_of(3), {"body": ""}])
    result = command(classes.record.folder, data, "--output", tmp_path / "out.csv", "--json")
    assert json.loads(result.stdout)["answered"] == 3
    shown = command(classes.record.folder, data, "--output", tmp_path / "out.csv", "--force")
    text = " ".join(shown.stdout.split())
    assert "3 of 4 rows answered" in text
    assert "1 without an answer" in text
    assert "rows.jsonl:4: empty text" in text
    usage = command(classes.record.folder, data, "--json")
    assert usage.exit_code == 2
    assert "the rows go to stdout" in usage.stderr
    nothing = command(classes.record.folder, write(tmp_path / "bad.jsonl", [{"body": ""}]), "--quiet")
    assert nothing.exit_code == 1


def test_quoting_is_inferred_from_complete_rows_of_a_large_file(
    classes: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fulltune.data import file_text

    monkeypatch.setattr(predicting, "_LARGE", 1)
    monkeypatch.setattr(file_text, "_SAMPLE", 50)  # ends inside a cell
    body = 'the ""court\\"" said,\nit is so,\nand so on'
    (tmp_path / "rows.csv").write_text(f'body,number\n"a film",0\n"{body}",1\n"{body}",2\n', encoding="utf-8")
    found = fulltune.predict(classes.record, tmp_path / "rows.csv")
    assert [row["body"] for row in found.rows] == ["a film", *[body.replace('""', '"')] * 2]


def _of_baseline(run: Run, name: str) -> list[Any]:
    lines = read(run.record.folder / "predictions.jsonl")
    return [line["output"] for line in lines if line["system"] == name]


@pytest.mark.parametrize("name", ["tfidf", "majority", "linear_probe", "few_shot"])
def test_a_baseline_of_a_run_answers_as_in_the_report(classes: Run, name: str) -> None:
    asked = [{"body": row["body"]} for row in classes.rows]
    found = fulltune.predict(f"{classes.record.run_id}#{name}", asked, out=classes.record.folder.parent)

    assert [row["prediction"] for row in found.rows] == _of_baseline(classes, name)
    assert all(0 <= row["confidence"] <= 1 for row in found.rows)
    assert found.model == f"{classes.record.run_id}#{name}"
    assert found.warning == ""


def test_the_nearest_query_is_that_of_the_report(queries: Run) -> None:
    asked = [{"question": row["question"], "db_id": row["db_id"]} for row in queries.rows]
    found = fulltune.predict(f"{queries.record.folder}#nearest", asked)

    assert [row["sql"] for row in found.rows] == _of_baseline(queries, "nearest")


def test_a_baseline_writes_a_file_in_one_command(classes: Run, tmp_path: Path) -> None:
    data, output = write(tmp_path / "rows.jsonl", classes.rows), tmp_path / "out.jsonl"
    result = command("latest#tfidf", data, "--output", output, "--out", classes.record.folder.parent)

    assert result.exit_code == 0, result.output
    assert [row["prediction"] for row in read(output)] == _of_baseline(classes, "tfidf")


def test_what_needs_no_model_loads_no_torch(classes: Run, tmp_path: Path) -> None:
    """A wrong call is refused, and a baseline on words answers, ten core-seconds earlier than a model does."""
    data = write(tmp_path / "rows.jsonl", classes.rows)
    code = (
        "import sys, fulltune\n"
        f"found = fulltune.predict({str(classes.record.folder) + '#tfidf'!r}, {str(data)!r})\n"
        "try: fulltune.predict(sys.argv[1], 'missing.csv')\n"
        "except fulltune.DataError: pass\n"
        "print(found.answered, sorted({'torch', 'transformers', 'datasets', 'peft'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(classes.record.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{len(classes.rows)} []"


def test_a_baseline_that_a_run_does_not_have_is_refused(classes: Run, tales: Run) -> None:
    with pytest.raises(ConfigError, match=r"no baseline 'tfdif' of .* Did you mean 'tfidf'\?"):
        fulltune.predict(f"{classes.record.folder}#tfdif", classes.rows)
    with pytest.raises(ConfigError, match="scores texts and answers none"):
        fulltune.predict(f"{tales.record.folder}#ngram", tales.rows)


def test_a_baseline_is_not_fitted_on_other_rows_than_those_of_the_run(
    classes: Run,
) -> None:
    train = classes.record.folder.parent.parent / "train.jsonl"
    kept = train.read_text(encoding="utf-8")
    train.write_text(kept.replace("law", "film", 1), encoding="utf-8")
    try:
        with pytest.raises(DataError, match=r"training rows .* have changed since the run"):
            fulltune.predict(f"{classes.record.folder}#tfidf", [{"body": "the court"}])
    finally:
        train.write_text(kept, encoding="utf-8")


def test_the_answers_of_a_rejected_run_come_with_a_warning(classes: Run, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / classes.record.run_id
    shutil.copytree(classes.record.folder, folder)
    advice = Recommendation(use="tfidf", action="use the baseline", sentence="Use it.")
    changes = {"outcome": "rejected", "reasons": ("worse than TF-IDF by 3.0 points",), "recommendation": advice}
    (folder / "record.json").write_text(classes.record.model_copy(update=changes).to_json(), encoding="utf-8")
    data = write(tmp_path / "rows.jsonl", classes.rows)

    expected = (
        "This model was rejected: worse than TF-IDF by 3.0 points; "
        f"`fulltune predict {classes.record.run_id}#tfidf` answers with TF-IDF."
    )
    assert fulltune.predict(folder, classes.rows).warning == expected
    assert server_of(folder, None, folder.parent, (), {}).warning == expected
    result = command(folder, data, "--output", tmp_path / "out.jsonl")
    assert expected in " ".join(result.stdout.split())
