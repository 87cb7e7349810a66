"""Databases as users bring them: with journals, with unreadable parts, damaged, or empty."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from fulltune.errors import DataError
from fulltune.tasks.text2sql import snapshot
from fulltune.tasks.text2sql.execution import Database, execute
from fulltune.tasks.text2sql.schema import find_database, from_create, schema_of_file


def make(path: Path, statements: str = "CREATE TABLE t (a INT); INSERT INTO t VALUES (1);") -> Path:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(statements)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: hashlib.sha256(path.read_bytes()).digest() for path in folder.iterdir()}


# ---- Journals ----


@pytest.fixture
def with_wal(tmp_path: Path) -> Path:
    """Create a database of one row, and six more in a write-ahead log that has not been checkpointed."""
    path = make(tmp_path / "live.sqlite", "PRAGMA journal_mode = wal; CREATE TABLE t (a INT); INSERT INTO t VALUES (0)")
    kept = tmp_path / "kept"
    kept.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.executemany("INSERT INTO t VALUES (?)", [(i,) for i in range(1, 7)])
        connection.execute("CREATE TABLE late (b INT)")
        connection.commit()
        for ending in ("", "-wal"):
            shutil.copy(f"{path}{ending}", kept / f"shop.sqlite{ending}")
    return kept / "shop.sqlite"


def test_rows_in_a_write_ahead_log_are_read_and_nothing_is_written(with_wal: Path) -> None:
    before = contents(with_wal.parent)
    assert execute(with_wal, "SELECT count(*) FROM t").rows == ((7,),)
    assert schema_of_file(with_wal).line == "t(a int) | late(b int)"
    assert contents(with_wal.parent) == before


def test_a_log_that_grows_is_read_again(with_wal: Path) -> None:
    assert execute(with_wal, "SELECT count(*) FROM t").rows == ((7,),)
    with closing(sqlite3.connect(with_wal)) as connection:
        connection.execute("INSERT INTO t VALUES (7)")
        connection.commit()
        assert execute(with_wal, "SELECT count(*) FROM t").rows == ((8,),)
    assert execute(with_wal, "SELECT count(*) FROM t").rows == ((8,),)


def test_a_crash_in_the_middle_of_writing_is_rolled_back_in_a_copy(tmp_path: Path) -> None:
    path = make(tmp_path / "live.sqlite", "CREATE TABLE t (a INT); INSERT INTO t VALUES (1), (2)")
    kept = tmp_path / "kept"
    kept.mkdir()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA cache_size = 1")
        connection.execute("BEGIN")
        connection.execute("UPDATE t SET a = 99")
        connection.execute("CREATE TABLE big AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n "
                           "WHERE x < 20000) SELECT x FROM n")  # fmt: skip
        for ending in ("", "-journal"):
            shutil.copy(f"{path}{ending}", kept / f"live.sqlite{ending}")
        connection.execute("ROLLBACK")
    before = contents(kept)
    assert execute(kept / "live.sqlite", "SELECT a FROM t").rows == ((1,), (2,))
    assert contents(kept) == before


def test_a_log_too_large_to_copy_or_that_changes_all_the_time_is_refused(
    with_wal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copyfile

    def copy_while_written(source: Path, target: Path) -> None:
        copy(source, target)
        with open(f"{with_wal}-wal", "ab") as log:
            log.write(b"x")

    monkeypatch.setattr(snapshot.shutil, "copyfile", copy_while_written)
    with pytest.raises(DataError, match=r"is being written to.*End the program"):
        execute(with_wal, "SELECT 1")
    monkeypatch.setattr(snapshot, "MAX_COPY", 10)
    with pytest.raises(DataError, match=r"too large to be copied.*no shop\.sqlite-wal.*wal_checkpoint"):
        execute(with_wal, "SELECT 1")


# ---- Parts that cannot be read ----


def rewrite(path: Path, name: str, sql: bytes) -> Path:
    """Replace a text in the schema table, as another program or another build of SQLite would have written it."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA writable_schema = 1")
        connection.execute("UPDATE sqlite_master SET sql = CAST(? AS TEXT) WHERE name = ?", (sql, name))
        connection.commit()
    return path


SOUND = "CREATE TABLE t (a INT); INSERT INTO t VALUES (1); "


@pytest.mark.parametrize(
    ("statements", "fault"),
    [
        ("CREATE TABLE gone (x); CREATE VIEW v AS SELECT * FROM gone; DROP TABLE gone", "view v: no such table"),
        ("CREATE VIEW v AS SELECT load_extension('x') AS y", "view v: unsafe use of load_extension"),
        ("CREATE VIEW v AS SELECT nofunction(a) FROM t", "view v: no such function"),
        ('CREATE VIEW "\x1b[31mv" AS SELECT * FROM gone', r"view '\x1b[31mv': no such table"),
        ("CREATE VIEW v AS SELECT * FROM w; CREATE VIEW w AS SELECT * FROM v", "view v: view v is circularly defined"),
    ],
)
def test_a_view_that_cannot_be_read_leaves_the_rest_usable(tmp_path: Path, statements: str, fault: str) -> None:
    path = make(tmp_path / "a.sqlite", SOUND + statements)
    found = schema_of_file(path)
    assert found.line == "t(a int)"
    assert any(text.startswith(fault) for text in found.faults)
    assert execute(path, "SELECT a FROM t").rows == ((1,),)


def test_a_virtual_table_of_an_unknown_module_leaves_the_rest_usable(tmp_path: Path) -> None:
    path = make(tmp_path / "a.sqlite", SOUND + "CREATE TABLE map (x)")
    rewrite(path, "map", b"CREATE VIRTUAL TABLE map USING spatialite(x)")
    found = schema_of_file(path)
    assert (found.line, found.faults) == ("t(a int)", ("table map: no such module: spatialite",))
    assert execute(path, "SELECT a FROM t").rows == ((1,),)
    assert "spatialite" in str(execute(path, "SELECT * FROM map").error)


def test_exponential_views_leave_the_tables_usable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fulltune.tasks.text2sql.schema.SECONDS", 0.2)
    views = "".join(f"CREATE VIEW w{i + 1} AS SELECT * FROM w{i} UNION ALL SELECT * FROM w{i};" for i in range(40))
    path = make(tmp_path / "a.sqlite", SOUND + "CREATE VIEW w0 AS SELECT * FROM t;" + views)
    found = schema_of_file(path)
    assert (found.line, found.faults) == ("t(a int)", ("all views: stopped: it ran longer than 0.2 s",))
    assert execute(path, "SELECT a FROM t").rows == ((1,),)
    started = time.perf_counter()
    # A fast machine reaches SQLite's limit of references before the time limit.
    assert "stopped" in (error := str(execute(path, "SELECT count(*) FROM w40", seconds=0.2).error)) or "max" in error
    assert time.perf_counter() - started < 5


def test_names_that_are_not_utf8_are_left_out(tmp_path: Path) -> None:
    path = make(tmp_path / "a.sqlite", SOUND + "CREATE TABLE u (a, b); INSERT INTO u VALUES (1, 2)")
    rewrite(path, "u", "CREATE TABLE u (a, ébc text)".encode("latin-1"))
    found = schema_of_file(path)
    assert (found.line, found.faults) == ("t(a int) | u(a)", (r"column \xe9bc of u: its name is not valid UTF-8",))
    assert execute(path, "SELECT a FROM u").rows == ((1,),)
    assert execute(path, "SELECT * FROM u").error == "the name of a column is not valid UTF-8"


def test_a_table_whose_name_is_not_utf8_is_left_out(tmp_path: Path) -> None:
    path = make(tmp_path / "a.sqlite", SOUND + "CREATE TABLE uxx (a)")
    path.write_bytes(path.read_bytes().replace(b"uxx", "uéx".encode("latin-1")))
    found = schema_of_file(path)
    assert (found.line, found.faults) == ("t(a int)", (r"table u\xe9x: its name is not valid UTF-8",))


def test_a_database_without_a_readable_part_reports_the_reason(tmp_path: Path) -> None:
    path = make(tmp_path / "a.sqlite", "CREATE VIEW v AS SELECT * FROM gone")
    with pytest.raises(DataError, match=r"no table that can be read \(view v: no such table: main\.gone\)"):
        schema_of_file(path)


def test_names_with_any_characters_work(tmp_path: Path) -> None:
    names = ['"', "'", "]", "`", ";", "--", "a b", "ü", "日本", "select", "\n", "\x1b[31m", "%s", "{}", "a" * 500]
    quoted = ['"' + name.replace('"', '""') + '"' for name in names]
    tables = "; ".join(f"CREATE TABLE {name} ({', '.join(quoted)})" for name in quoted)
    path = make(tmp_path / "a.sqlite", tables)
    found = schema_of_file(path)
    assert found.faults == ()
    assert found.line == from_create(tables).line
    for name in quoted:
        assert name.strip('a"') in found.line
        assert execute(path, f"SELECT {name} FROM {name}").error is None


def test_a_damaged_page_fails_what_reads_it_and_nothing_else(tmp_path: Path) -> None:
    path = make(tmp_path / "a.sqlite", SOUND + "CREATE TABLE u (a); INSERT INTO u VALUES ('x'), ('y')")
    size = 4096
    raw = bytearray(path.read_bytes())
    page = next(i for i in range(len(raw) // size) if b"x" in raw[i * size + size - 20 : (i + 1) * size])
    raw[page * size : page * size + 8] = b"\xff" * 8
    path.write_bytes(raw)
    assert "malformed" in str(execute(path, "SELECT * FROM u").error)
    assert execute(path, "SELECT * FROM t").rows == ((1,),)
    assert schema_of_file(path).line == "t(a int) | u(a)"


# ---- Files that are not databases ----


def test_files_that_are_not_databases_are_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "encrypted.sqlite").write_bytes(os.urandom(8192))
    (tmp_path / "empty.sqlite").write_bytes(b"")
    (tmp_path / "short.sqlite").write_bytes(b"SQLite format 3\0" + b"\0" * 40)
    (tmp_path / "folder.sqlite").mkdir()
    (tmp_path / "link.sqlite").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.sqlite")
    messages = {
        "encrypted": "not a database",
        "empty": "no table",
        "short": r"cannot be read|no table",
        "folder": "no such database",
        "link": "no such database",
        "pipe": "no such database",
    }
    for name, message in messages.items():
        with pytest.raises(DataError, match=message):
            schema_of_file(tmp_path / f"{name}.sqlite")
    with pytest.raises(DataError, match=r"encrypted\.sqlite.*not a database.*Replace the file"):
        Database(tmp_path / "encrypted.sqlite")


def test_a_schema_table_that_is_damaged_is_a_clear_error(tmp_path: Path) -> None:
    path = rewrite(make(tmp_path / "a.sqlite"), "t", b"CREATE TABLE t (")
    with pytest.raises(DataError, match="malformed database schema"):
        schema_of_file(path)
    with pytest.raises(DataError, match="malformed database schema"):
        execute(path, "SELECT 1")


@pytest.mark.parametrize(
    "db_id", ["x" * 5000, "ü" * 200, "\x1b[31mx", "a\nb", "a\0b", "\ud800", "x\u202ey", "con\rx", "~", "*", "[a]", " "]
)
def test_an_id_of_any_kind_is_a_short_error_without_control_characters(tmp_path: Path, db_id: str) -> None:
    make(tmp_path / "shop.sqlite")
    with pytest.raises(DataError) as caught:
        find_database(tmp_path, db_id)
    message = str(caught.value)
    assert message.isprintable()
    assert "db_id" in message
    assert len(message) < 1000 + len(str(tmp_path))


def test_the_names_of_files_are_shown_without_control_characters(tmp_path: Path) -> None:
    make(tmp_path / "\x1b[31mshop.sqlite")
    with pytest.raises(DataError, match=r"incomplete|unrecognized token") as caught:
        from_create("CREATE TABLE \x1b[31m(a)")
    assert str(caught.value).isprintable()
    with pytest.raises(DataError, match=r"the folder has \\x1b\[31mshop|The folder has \\x1b\[31mshop"):
        find_database(tmp_path, "x")


def test_texts_that_are_not_utf8_stay_different_and_printable(tmp_path: Path) -> None:
    path = make(tmp_path / "a.sqlite", "CREATE TABLE t (a); INSERT INTO t VALUES (CAST(x'e9' AS TEXT)), ('é'), (x'e9')")
    assert execute(path, "SELECT a FROM t").rows == (("\\xe9",), ("é",), (b"\xe9",))
    assert execute(path, "SELECT count(*) FROM t WHERE a = CAST(x'e9' AS TEXT)").rows == ((1,),)


def test_numbers_come_back_as_they_are(tmp_path: Path) -> None:
    path = make(tmp_path / "a.sqlite")
    sql = "SELECT 9223372036854775807, -9223372036854775808, 1e999, -1e999, 0.1, 1e-320, 5e-324, NULL, '', x''"
    with closing(sqlite3.connect(path)) as connection:
        expected = connection.execute(sql).fetchall()
    rows = execute(path, sql).rows
    assert list(rows) == expected
    assert [type(cell) for cell in rows[0]] == [type(cell) for cell in expected[0]]


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    path = make(tmp_path / "a.sqlite")
    assert execute(path, "SELECT * FROM t").rows == ((1,),)
    path.unlink()
    make(path, "CREATE TABLE t (a INT); INSERT INTO t VALUES (2), (3);")
    assert execute(path, "SELECT * FROM t").rows == ((2,), (3,))


# ---- Parts that SQLite computes, and virtual tables ----

COMPUTED = """
CREATE TABLE t (j TEXT, x INT AS (json_extract(j, '$.x')) STORED, y INT AS (x + 1));
CREATE INDEX i ON t (json_extract(j, '$.x'));
CREATE VIEW v AS SELECT json_extract(j, '$.x') AS z FROM t;
INSERT INTO t VALUES ('{"x": 5}');
"""


def test_a_schema_that_calls_json_functions_is_read_and_queried(tmp_path: Path) -> None:
    path = make(tmp_path / "json.sqlite", COMPUTED)
    assert schema_of_file(path).line == "t(j text, x int, y int) | v(z)"
    assert execute(path, "SELECT x, y, z FROM t, v WHERE json_extract(j, '$.x') = 5").rows == ((5, 6, 5),)


VIRTUAL = {
    "fts5": ("CREATE VIRTUAL TABLE doc USING fts5(title, body)", "doc(title, body)",
             "INSERT INTO doc VALUES ('a', 'red fox'), ('b', 'dog')", "SELECT title FROM doc WHERE doc MATCH 'fox'"),
    "fts4": ("CREATE VIRTUAL TABLE doc USING fts4(title, body)", "doc(title, body)",
             "INSERT INTO doc VALUES ('a', 'red fox'), ('b', 'dog')", "SELECT title FROM doc WHERE doc MATCH 'fox'"),
    "rtree": ('CREATE VIRTUAL TABLE "r t" USING rtree(title, low, high)', '"r t"(title int, low real, high real)',
              "INSERT INTO \"r t\" VALUES (1, 0, 1), (2, 5, 6)", 'SELECT title FROM "r t" WHERE high < 2'),
}  # fmt: skip


@pytest.mark.parametrize("module", VIRTUAL)
def test_virtual_tables_are_queried_and_the_tables_behind_them_are_hidden(tmp_path: Path, module: str) -> None:
    create, line, insert, query = VIRTUAL[module]
    path = make(tmp_path / "v.sqlite", f"CREATE TABLE doc_note (n); {create}; {insert};")
    before = contents(tmp_path)
    assert schema_of_file(path).line == f"doc_note(n) | {line}"
    assert execute(path, query).rows == ((1 if module == "rtree" else "a",),)
    assert execute(path, "INSERT INTO doc(doc) VALUES ('optimize')").error == "refused: INSERT is not a query"
    assert contents(tmp_path) == before


def test_table_valued_functions_and_other_modules_stay_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "v.sqlite", "CREATE VIRTUAL TABLE doc USING fts5(a); CREATE VIEW v AS SELECT * FROM dbstat")
    for table in ("pragma_database_list", "dbstat", "v", "json_each('[1]')"):
        result = execute(path, f"SELECT * FROM {table}")
        assert result.rows == ()
        assert result.error is not None
    assert execute(path, "SELECT * FROM doc").error is None


@pytest.mark.parametrize(
    "more",
    [
        "CREATE VIRTUAL TABLE words USING fts5vocab(doc, row)",
        "CREATE VIEW words AS SELECT name FROM dbstat",
        "CREATE VIEW words AS SELECT load_extension(a) FROM doc",
    ],
)
def test_what_queries_may_not_read_is_not_in_the_schema(tmp_path: Path, more: str) -> None:
    path = make(
        tmp_path / "v.sqlite", f"CREATE VIRTUAL TABLE doc USING fts5(a); {more}; CREATE VIEW w AS SELECT a FROM doc"
    )
    found = schema_of_file(path)
    assert found.line == "doc(a) | w(a)"
    [fault] = found.faults
    kind = "view" if "VIEW" in more else "table"
    assert fault == f"{kind} words: {execute(path, 'SELECT 1 FROM words').error}"
