"""Untrusted queries on a real database: accepted queries, refused ones, and limits on their time."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fulltune.errors import DataError
from fulltune.tasks.text2sql.execution import MAX_VALUE, Database, Result, execute, is_ordered, match
from fulltune.tasks.text2sql.schema import find_database, from_create, schema_of_file

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"
ROWS = [(i, f"name {i % 7}", i / 3, None if i % 5 else i) for i in range(300)]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    folder = tmp_path / "a folder with % ? # and ü"
    folder.mkdir()
    path = folder / "x y%20?#.sqlite"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, score REAL, note INT)")
        connection.executemany("INSERT INTO t VALUES (?, ?, ?, ?)", ROWS)
    return path


@pytest.fixture
def unchanged(database: Path) -> Iterator[None]:
    """Check that nothing changed the file or created another one next to it."""
    before = hashlib.sha256(database.read_bytes()).digest()
    yield
    assert hashlib.sha256(database.read_bytes()).digest() == before
    assert [path.name for path in database.parent.iterdir()] == [database.name]


PLAIN = [
    "SELECT * FROM t",
    "select name, count(*), avg(score) from t group by name having count(*) > 42 order by 2 desc, 1",
    "SELECT a.id FROM t a JOIN t b ON a.id = b.id + 1 WHERE b.note IS NOT NULL",
    "WITH big AS (SELECT * FROM t WHERE score > 50) SELECT count(*) FROM big",
    "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 20) SELECT x FROM n",
    "SELECT name FROM t EXCEPT SELECT 'name 3'",
    "VALUES (1, 'a'), (2, NULL)",
    "SELECT rank() OVER (ORDER BY score DESC), id FROM t LIMIT 5",
    "SELECT upper(name), strftime('%Y', '2020-01-01'), printf('%.2f', score), name LIKE '%3' FROM t",
    "SELECT printf(\"%d\", id), printf(name || '%5d', id), printf('%1000d', id), length(group_concat(name)) FROM t",
    "SELECT zeroblob(4), length(randomblob(4)), length(hex(zeroblob(2000000)))",
    "SELECT ';', '--', \"name\" FROM t LIMIT 1; ; -- the end",
    "-- a comment first\n/* and another */ SELECT x'00ff', 1e999",
    "SELECT name FROM sqlite_master",
    "\ufeffSELECT id FROM t LIMIT 3\u200b",
]


@pytest.mark.parametrize("sql", PLAIN)
def test_a_plain_query_gives_what_sqlite_gives(database: Path, sql: str) -> None:
    with closing(sqlite3.connect(database)) as connection:
        expected = connection.execute(sql.replace("; ; -- the end", "").strip("\ufeff\u200b")).fetchall()
    result = execute(database, sql, seconds=20)
    assert expected
    assert result.error is None
    assert list(result.rows) == expected
    assert not result.truncated
    assert match(result, execute(database, sql), ordered=is_ordered(sql))


REFUSED = {
    "ATTACH 'other.sqlite' AS other": "ATTACH",
    "DETACH main": "DETACH",
    "PRAGMA table_info(t)": "PRAGMA",
    "PRAGMA writable_schema = 1": "PRAGMA",
    "SELECT * FROM pragma_table_info('t')": "a table-valued function",
    "SELECT * FROM pragma_database_list": "a table-valued function",
    "INSERT INTO t VALUES (1000, 'x', 1, 1)": "INSERT",
    "REPLACE INTO t VALUES (1, 'x', 1, 1)": "REPLACE",
    "UPDATE t SET name = 'x'": "UPDATE",
    "DELETE FROM t": "DELETE",
    "WITH x AS (SELECT 1) DELETE FROM t": "DELETE",
    "WITH x AS (SELECT 1) INSERT INTO t SELECT 1, 'a', 2, 3": "INSERT",
    "WITH x AS (SELECT 1) UPDATE t SET name = 'x'": "UPDATE",
    "DROP TABLE t": "DROP",
    "CREATE TABLE u (a)": "CREATE",
    "CREATE TEMP TABLE u AS SELECT * FROM t": "CREATE",
    "CREATE VIRTUAL TABLE u USING fts5(a)": "CREATE",
    "ALTER TABLE t RENAME TO u": "ALTER",
    "BEGIN": "BEGIN",
    "COMMIT": "COMMIT",
    "ROLLBACK": "ROLLBACK",
    "SAVEPOINT s": "SAVEPOINT",
    "VACUUM": "VACUUM",
    "VACUUM INTO 'copy.sqlite'": "VACUUM",
    "REINDEX": "REINDEX",
    "ANALYZE": "ANALYZE",
    "EXPLAIN SELECT 1": "EXPLAIN",
    "SELECT load_extension('evil.so')": "load_extension",
    "SELECT fts3_tokenizer('simple')": "fts3_tokenizer",
    "SELECT 1; DROP TABLE t": "one statement",
    "SELECT 1; SELECT 2": "one statement",
    "": "no query",
    " \n": "no query",
    "-- only a comment": "not a query",
    "(SELECT 1)": "not a query",
    "SELEC 1": "not a query",
    "The query is SELECT 1": "not a query",
    "SELECT writefile('x', 'y')": "no such function",
    "SELECT readfile('/etc/passwd')": "no such function",
    "SELECT absent FROM t": "no such column",
    "SELECT * FROM nowhere": "no such table",
    "SELECT 1 FROM": "incomplete input",
    "SELECT ?": "binding",
    "SELECT 'a\0b'": "null character",
    "SELECT '\ud800'": "surrogates",
    "SELECT " + "(" * 5000 + "1" + ")" * 5000: "",
}


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("sql", REFUSED, ids=lambda sql: sql[:40] or "empty")
def test_everything_else_is_refused_with_a_reason(
    database: Path, sql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    result = execute(database, sql)
    assert result.error is not None
    assert REFUSED[sql] in result.error
    assert result.rows == ()
    assert not result.empty
    assert not list(Path.cwd().iterdir())


BOMBS = {
    "endless recursion": "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n",
    "recursion without rows": "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x FROM n) SELECT x FROM n WHERE x > 1",
    "cross join": "SELECT count(*) FROM t a, t b, t c, t d, t e",
    "sort": "SELECT a.name FROM t a, t b, t c, t d ORDER BY a.score * b.score - c.score",
    "group": "SELECT count(*) FROM t a, t b, t c, t d GROUP BY a.score * b.score - c.score",
    "distinct": "SELECT DISTINCT a.score * b.score - c.score FROM t a, t b, t c, t d ORDER BY 1",
}


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("name", BOMBS)
def test_an_expensive_query_ends_soon_after_its_limit(database: Path, name: str) -> None:
    result = execute(database, BOMBS[name], seconds=0.05)
    assert result.error == "stopped: it ran longer than 0.05 s"
    assert result.seconds < 5  # any of them would take hours; the margin is for a busy machine


TOO_LONG = "stopped: a text, blob or row is longer than 16 MiB"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="sqlite3 cannot limit values before Python 3.11")
@pytest.mark.parametrize("call", ["zeroblob(1000000000)", "hex(randomblob(1000000000))", "hex(zeroblob(9000000))"])
def test_a_function_cannot_fill_memory(database: Path, call: str) -> None:
    result = execute(database, f"SELECT {call}")
    assert (result.error, result.limit) == (TOO_LONG, "size")


@pytest.mark.parametrize(
    "call", ["printf('%.900000000c', 'x')", "printf('%.*f', 1000000000, 1)", "printf('%*d', 1e9, 1)"]
)
def test_a_format_with_endless_padding_stops_at_the_limits(database: Path, call: str) -> None:
    started = time.perf_counter()
    execute(database, f"SELECT length({call})", seconds=0.1)
    assert time.perf_counter() - started < 5


@pytest.mark.skipif(sys.version_info < (3, 11), reason="sqlite3 cannot limit values before Python 3.11")
def test_a_value_cannot_grow_without_bound(database: Path) -> None:
    doubling = "WITH RECURSIVE n(x) AS (SELECT 'aaaaaaaa' UNION ALL SELECT x || x FROM n) SELECT length(x) FROM n"
    assert execute(database, doubling, seconds=20).error == TOO_LONG
    long = f"SELECT substr(group_concat(a.name), 1, {MAX_VALUE}) FROM t a, t b, (SELECT 1 FROM t LIMIT 40)"
    assert execute(database, long, seconds=20).error == TOO_LONG


def test_rows_beyond_the_limit_are_cut_and_reported(database: Path) -> None:
    result = execute(database, "SELECT id FROM t ORDER BY id", max_rows=10)
    assert result.truncated
    assert result.rows == tuple((i,) for i in range(10))
    assert not execute(database, "SELECT id FROM t", max_rows=300).truncated


def test_results_of_hundreds_of_megabytes_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "wide.sqlite"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE t (a TEXT)")
        connection.execute("INSERT INTO t VALUES (?)", ("x" * (1 << 18),))
        connection.execute("CREATE TABLE n (i)")
        connection.executemany("INSERT INTO n VALUES (?)", [(i,) for i in range(1000)])
    result = execute(path, "SELECT a FROM t, n", seconds=60)
    assert result.truncated
    assert 200 < len(result.rows) < 300


def test_a_query_after_an_interrupted_one_runs(database: Path) -> None:
    with Database(database) as open_database:
        assert open_database.execute(BOMBS["cross join"], seconds=0.01).error
        assert open_database.execute("DROP TABLE t").error
        assert open_database.execute("SELECT count(*) FROM t").rows == ((300,),)


def test_bytes_that_are_not_utf8_do_not_crash(tmp_path: Path) -> None:
    path = tmp_path / "latin.sqlite"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE t (a TEXT)")
        connection.execute("INSERT INTO t VALUES (CAST(x'e96c616e' AS TEXT)), (CAST(x'e86c616e' AS TEXT))")
    rows = execute(path, "SELECT a FROM t").rows
    assert rows == (("\\xe9lan",), ("\\xe8lan",))


def test_a_missing_database_is_an_error_and_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such database.*Check data\.databases"):
        execute(tmp_path / "none.sqlite", "SELECT 1")
    with pytest.raises(DataError, match="no such database"):
        execute(tmp_path, "SELECT 1")
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_kind_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "text.sqlite").write_text("this is no database, " * 100)
    with pytest.raises(DataError, match="not a database"):
        execute(tmp_path / "text.sqlite", "SELECT 1")


def test_a_result_reports_that_it_is_empty() -> None:
    assert Result().empty
    assert not Result(error="x").empty
    assert not Result(rows=((None,),)).empty


def load(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "geoquery").is_dir(), reason="needs ../shared/data/geoquery")
def test_every_reference_query_of_geoquery_runs_and_matches_itself_and_its_original() -> None:
    rows = [row for name in ("train", "dev", "test") for row in load(SHARED / "geoquery" / f"{name}.jsonl")]
    assert len(rows) >= 800
    with Database(SHARED / "geoquery" / "geography.sqlite") as open_database:
        for row in rows:
            result, original = open_database.execute(row["sql"]), open_database.execute(row["sql_original"])
            assert match(result, original, ordered=is_ordered(row["sql"])), row


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "spider").is_dir(), reason="needs ../shared/data/spider")
def test_every_reference_query_of_spider_runs_and_matches_itself() -> None:
    rows = load(SHARED / "spider" / "questions.jsonl")
    assert len(rows) >= 500
    for row in rows:
        path = find_database(SHARED / "spider" / "databases", row["db_id"])
        result = execute(path, row["sql"])
        assert match(result, result, ordered=is_ordered(row["sql"])), (row, result.error)
        assert len(result.rows) == row["n_result_rows"]


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "spider").is_dir(), reason="needs ../shared/data/spider")
def test_the_schema_of_a_file_is_that_of_its_create_statements() -> None:
    schemas = json.loads((SHARED / "spider" / "schemas.json").read_text(encoding="utf-8"))
    assert len(schemas) >= 10
    for db_id, statements in schemas.items():
        assert (
            from_create(statements).line == schema_of_file(find_database(SHARED / "spider" / "databases", db_id)).line
        )
