"""Statements that SQLite cannot interrupt, endless results, and the life of the process that runs them."""

from __future__ import annotations

import gc
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from fulltune.errors import DataError, ProcessError
from fulltune.tasks.text2sql import sandbox as sandboxes
from fulltune.tasks.text2sql.execution import MAX_VALUE, Result, Results, execute, match
from fulltune.tasks.text2sql.sandbox import Sandbox, sandbox
from fulltune.tasks.text2sql.schema import from_create

LONG = 200_000
LIMIT = 0.1
#: Half a second of grace, and a margin for a busy machine.
SOON = 5.0

needs_limits = pytest.mark.skipif(sys.version_info < (3, 11), reason="sqlite3 cannot limit values before Python 3.11")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("long") / "long.sqlite"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT)")
        connection.executemany("INSERT INTO t VALUES (?, ?)", [(i, "a" * LONG + str(i)) for i in range(20)])
    return path


def brackets(count: int) -> str:
    return "SELECT " + "(" * count + "1" + ")" * count


#: SQLite checks the time between instructions: each of these spends its time inside one of them.
DEAF = {
    "instr": "SELECT " + " + ".join(["instr(a, substr(a, 1, 100000) || 'c')"] * 50) + " FROM t LIMIT 2",
    "instr in a join": "SELECT count(*) FROM t x, t y WHERE instr(x.a, substr(y.a, 2, 90000) || 'c')",
    "like": "SELECT count(*) FROM t x, t y WHERE x.a LIKE '%' || substr(y.a, 1, 400) || 'c%'",
    "replace": "SELECT sum(length(replace(x.a, substr(y.a, 1, 90000) || 'c', ''))) FROM t x, t y",
}


@pytest.mark.parametrize("name", DEAF)
def test_what_sqlite_does_not_interrupt_is_killed(database: Path, name: str) -> None:
    started = time.perf_counter()
    result = execute(database, DEAF[name], seconds=LIMIT)
    assert time.perf_counter() - started < SOON
    assert result == Result(error="stopped: it ran longer than 0.1 s", seconds=result.seconds, limit="time")
    assert execute(database, "SELECT count(*) FROM t").rows == ((20,),)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT " + "[" * 100_000,
        "SELECT " + "['" * 60_000,
        "SELECT " + '"' * 100_001,
        "SELECT " + "'" * 100_001,
        "SELECT " + "/*" * 100_000,
        brackets(20_000),
        "SELECT " + "NOT " * 20_000 + "1",
        "SELECT " + " OR ".join(["a = 1"] * 5000) + " FROM t",
        " UNION ALL ".join(["SELECT 1"] * 2000),
        "SELECT '" + "x" * 300_000 + "'",
    ],
    ids=lambda sql: sql[:12],
)
def test_endless_texts_fail_soon_with_a_short_reason(database: Path, sql: str) -> None:
    started = time.perf_counter()
    result = execute(database, sql)
    assert time.perf_counter() - started < SOON
    assert result.error is not None
    assert 0 < len(result.error) <= 201


@pytest.mark.parametrize(
    "sql",
    [
        "WITH RECURSIVE n(x, y) AS (SELECT 1, a FROM t UNION ALL SELECT 1, y || x FROM n, t) SELECT count(*) FROM n",
        "SELECT count(DISTINCT x.a || y.a || z.id) FROM t x, t y, t z",
        "SELECT x.a FROM t x, t y, t z ORDER BY random()",
    ],
)
def test_memory_is_limited(database: Path, sql: str) -> None:
    result = execute(database, sql, seconds=30)
    assert (result.error, result.limit) == ("stopped: it needs more than 256 MB", "memory")
    assert execute(database, "SELECT count(*) FROM t").rows == ((20,),)


@needs_limits
def test_a_value_that_is_too_long_names_the_limit(database: Path) -> None:
    longest = execute(database, f"SELECT length(hex(zeroblob({MAX_VALUE // 2 - 1000})))")
    assert longest.rows == ((MAX_VALUE - 2000,),)
    result = execute(database, f"SELECT hex(zeroblob({MAX_VALUE // 2 + 1000}))")
    assert (result.error, result.limit) == ("stopped: a text, blob or row is longer than 16 MiB", "size")
    assert execute(database, "SELECT nothing FROM t").limit == ""
    number = execute(database, "SELECT 0x10000000000000000")
    assert number.limit == ""
    assert "hex literal too big" in str(number.error)


def test_large_results_are_compared_by_digests_and_need_little_memory(database: Path) -> None:
    query = "SELECT x.id + 0.5, x.a FROM t x, t y WHERE y.id < 15"
    first, second = execute(database, query, seconds=30), execute(database, f"{query} ORDER BY y.id", seconds=30)
    assert len(first.rows) == 300
    assert first.size > 300 * LONG
    assert sum(len(text) for _, text in first.rows) < 300 * 150
    assert first.rows[0][1].startswith("a" * 40 + "… (200001 bytes, SHA-256 ")  # type: ignore[union-attr]
    assert match(first, second, ordered=False)
    other = execute(database, "SELECT x.id + 0.5, replace(x.a, 'a1', 'b1') FROM t x, t y WHERE y.id < 15", seconds=30)
    assert not match(first, other, ordered=False)


def test_results_that_are_kept_have_a_budget(database: Path) -> None:
    results = Results(2.0, budget=5000)
    for number in range(100):
        assert results.execute(str(database), f"SELECT {number}").rows == ((number,),)
    assert results._size <= 5000
    assert 1 < len(results._known) < 100
    assert results.execute(str(database), "SELECT 99") is results.execute(str(database), "SELECT 99")
    missing = results.execute(str(database.with_name("none.sqlite")), "SELECT 1")
    assert missing.error == "there is no such database"


SCHEMAS = {
    "a long value": ("CREATE TABLE a (b); INSERT INTO a VALUES (hex(hex(zeroblob(200000000))))", "longer than 16 MiB"),
    "a default that pads": (
        "CREATE TABLE a (b, c DEFAULT (printf('%.*c', 900000000, 'x'))); INSERT INTO a (b) VALUES (1)",
        "longer than|MB",
    ),
    "pragma": ("CREATE TABLE a (b); PRAGMA hard_heap_limit = 1000", "PRAGMA hard_heap_limit is not allowed"),
    "another pragma": ("PRAGMA writable_schema = 1; CREATE TABLE a (b)", "PRAGMA writable_schema is not allowed"),
    "attach": ("ATTACH 'x.sqlite' AS x; CREATE TABLE x.a (b)", "ATTACH is not allowed"),
    "vacuum": ("CREATE TABLE a (b); VACUUM INTO 'x.sqlite'", "cannot be read"),
    "extension in a trigger": (
        "CREATE TABLE a (b); CREATE TRIGGER c AFTER INSERT ON a BEGIN SELECT load_extension('x'); END; "
        "INSERT INTO a VALUES (1)",
        "load_extension",
    ),
    "extension in a default": (
        "CREATE TABLE a (b, c DEFAULT (load_extension('x'))); INSERT INTO a (b) VALUES (1)",
        "unsafe use of load_extension",
    ),
    "rows without end": (
        "CREATE TABLE a (b); WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) "
        "INSERT INTO a SELECT x FROM n",
        "longer than|MB",
    ),
    "files of the process": ("CREATE TABLE a AS SELECT * FROM pragma_database_list", "PRAGMA database_list is not"),
    "extension": ("CREATE TABLE a (b); INSERT INTO a VALUES (load_extension('x'))", "load_extension is not allowed"),
}


@needs_limits
@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_are_built_within_limits(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fulltune.tasks.text2sql.schema.SECONDS", 0.5)
    statements, message = SCHEMAS[name]
    with pytest.raises(DataError, match=message):
        from_create(statements)
    assert not list(tmp_path.iterdir())


def test_exponential_triggers_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fulltune.tasks.text2sql.schema.SECONDS", LIMIT)
    triggers = [
        f"CREATE TABLE t{i} (x); CREATE TRIGGER r{i} AFTER INSERT ON t{i} BEGIN "
        + f"INSERT INTO t{i + 1} VALUES (1); " * 40
        + "END;"
        for i in range(9)
    ]
    with pytest.raises(DataError, match=r"longer than 0\.1 s"):
        from_create(" ".join(triggers) + "CREATE TABLE t9 (x); INSERT INTO t0 VALUES (1)")


def test_a_dump_with_rows_is_a_schema() -> None:
    dump = "PRAGMA foreign_keys=OFF;\nBEGIN TRANSACTION;\nCREATE TABLE a (b INT);\nINSERT INTO a VALUES(1);\nCOMMIT;"
    assert from_create(dump).line == "a(b int)"


@pytest.mark.parametrize(
    ("statements", "line"),
    [
        ("INSERT INTO a VALUES (1, 'x'), (2, 'y')", "a(b int, c text)"),
        ("INSERT INTO a SELECT b + 1, c FROM a", "a(b int, c text)"),
        ("CREATE TABLE d AS SELECT b FROM a", "a(b int, c text) | d(b int)"),
        ("ALTER TABLE a RENAME COLUMN b TO d", "a(d int, c text)"),
        ("ALTER TABLE a DROP COLUMN b", "a(c text)"),
        ("ALTER TABLE a RENAME TO d; ANALYZE", "d(b int, c text)"),
        ("CREATE TRIGGER e AFTER INSERT ON a BEGIN SELECT raise(ABORT, 'no') WHERE new.b < 0; END; "
         "INSERT INTO a VALUES (1, 'x'), (2, 'y')", "a(b int, c text)"),
        ("CREATE VIRTUAL TABLE d USING fts5(e, f); INSERT INTO d VALUES ('x', 'y')", "a(b int, c text) | d(e, f)"),
        ("CREATE VIRTUAL TABLE d USING rtree(e, f, g)", "a(b int, c text) | d(e int, f real, g real)"),
        ("CREATE INDEX i ON a (json_extract(c, '$.x'))", "a(b int, c text)"),
        ("CREATE TABLE d (e CHECK (json_valid(e)), f DEFAULT (hex(randomblob(4)))); INSERT INTO d (e) VALUES ('[]')",
         "a(b int, c text) | d(e, f)"),
        ("CREATE TABLE d (e, f INT AS (e + 1), g TEXT AS (json_extract(e, '$.x')) STORED)",
         "a(b int, c text) | d(e, f int, g text)"),
    ],
)  # fmt: skip
def test_statements_of_dumps_and_migrations_are_a_schema(statements: str, line: str) -> None:
    assert from_create(f"CREATE TABLE a (b INT, c TEXT); {statements};").line == line


def test_a_schema_of_many_megabytes_is_refused_at_once() -> None:
    with pytest.raises(DataError, match="16,777,216 are allowed"):
        from_create("-" * (17 << 20))


# ---- The process ----


def test_one_process_is_started_and_reused_and_ended(database: Path) -> None:
    execute(database, "SELECT 1")
    process = sandbox()._process
    assert process is not None
    execute(database, "SELECT 2")
    execute(database, "SELECT nothing")
    assert sandbox()._process is process
    sandbox().close()
    assert process.returncode is not None
    assert execute(database, "SELECT 3").rows == ((3,),)


def test_a_process_that_was_killed_is_replaced(database: Path) -> None:
    execute(database, "SELECT 1")
    process = sandbox()._process
    assert process is not None
    os.kill(process.pid, signal.SIGTERM)
    process.wait()
    assert execute(database, "SELECT 1").rows == ((1,),)


def test_a_process_that_dies_is_a_failed_query() -> None:
    own = Sandbox()
    answer = own.ask({"do": "what it does not know"}, 60)
    assert answer == {"error": "stopped: its process died (exit code 1)", "limit": "crash"}
    assert own.ask({"do": "create", "sql": "CREATE TABLE a (b)"}, 60)["line"] == "a(b)"
    own.close()


def test_threads_take_turns(database: Path) -> None:
    answers: dict[int, Result] = {}

    def ask(number: int) -> None:
        answers[number] = execute(database, f"SELECT {number}")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {number: result.rows for number, result in answers.items()} == {n: ((n,),) for n in range(8)}


def test_a_python_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for command, reason in ((Path(os.sep) / "none", "No such file"), ("/bin/false", "exit code 1")):
        monkeypatch.setattr(sandboxes.sys, "executable", str(command))
        own = Sandbox()
        with pytest.raises(ProcessError, match=rf"did not start.*{reason}"):
            own.ask({"do": "create", "sql": ""}, 1)


SCRIPT = """
import sys
from fulltune.tasks.text2sql.execution import execute
from fulltune.tasks.text2sql.sandbox import sandbox
execute(sys.argv[1], "SELECT 1")
print(sandbox()._process.pid, flush=True)
if sys.argv[2] == "busy":
    execute(sys.argv[1], sys.argv[3], seconds=0.2)
elif sys.argv[2] == "wait":
    input()
"""


def _start(database: Path, mode: str) -> tuple[subprocess.Popen[str], int]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-W", "error", "-c", SCRIPT, str(database), mode, DEAF["instr"]]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    script = subprocess.Popen(command, env=environment, text=True, **pipes)
    assert script.stdout is not None
    return script, int(script.stdout.readline())


def _ends(pid: int) -> bool:
    for _ in range(500):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if Path(f"/proc/{pid}/stat").exists() and " Z " in Path(f"/proc/{pid}/stat").read_text():
            return True
        threading.Event().wait(0.01)
    return False


def test_a_program_ends_silently_and_its_worker_with_it(database: Path) -> None:
    script, worker = _start(database, "exit")
    output = script.communicate(timeout=60)
    assert output == ("", "")
    assert script.returncode == 0
    assert _ends(worker)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("mode", ["wait", "busy"])
def test_the_worker_of_a_program_that_was_killed_ends(database: Path, mode: str) -> None:
    """An idle worker sees the end of its stdin; inside a function the system ends it soon after its limit."""
    script, worker = _start(database, mode)
    script.kill()
    script.communicate()
    assert _ends(worker)


def test_no_process_is_left_behind_by_garbage(database: Path) -> None:
    own = Sandbox()
    own.ask({"do": "create", "sql": "CREATE TABLE a (b)"}, 5)
    own.close()
    del own
    gc.collect()
