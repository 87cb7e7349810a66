"""Run SQL on behalf of another process, which may kill this one at any time.

:mod:`fulltune.tasks.text2sql.sandbox` starts this file as a script, so it imports only the standard library. Requests
are JSON objects on stdin, one per line; so are answers on stdout. The process ends with stdin. The operating system
limits memory, CPU time and wall time where it can, independently of SQLite.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import signal
import sqlite3
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from typing import Any

Answer = dict[str, Any]
Cell = int | float | str | bytes | None
#: Name of a table, and its forms in a prompt: with types and keys, and with names alone.
_Table = tuple[str, str, str]

#: Maximum size in bytes of a text, blob or table row that a query may build or read.
MAX_VALUE = 16 << 20
#: Maximum length of a query, and of a schema in SQL, in characters.
MAX_SQL = 1 << 18
MAX_SCHEMA = 16 << 20
#: Maximum size of a result in bytes: texts and blobs by their length, and :data:`CELL` for each value.
MAX_RESULT = 64 << 20
CELL = 100
#: Results above this size in bytes have digests instead of long texts and blobs.
MAX_WHOLE = 1 << 18
#: Length in characters above which texts and blobs are replaced by digests, and length of their kept beginning.
_LONG, _KEPT = 120, 40
#: Memory limit of SQLite, and address space in addition to that at the start, in bytes.
MAX_MEMORY = 256 << 20
_MAX_ADDRESS_SPACE = 512 << 20
#: Seconds after its time limit at which a query is killed if SQLite does not stop it.
GRACE = 0.5
#: Number of virtual machine instructions between two checks of the clock.
_STEPS = 1000

_ALLOWED = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE})
# For schemas, statements run on a database in memory; those that read files or change the process are rejected.
_REFUSED_IN_SCHEMA = frozenset({sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH, sqlite3.SQLITE_CREATE_VTABLE})
_NAMES = {
    sqlite3.SQLITE_ATTACH: "ATTACH",
    sqlite3.SQLITE_CREATE_TABLE: "CREATE",
    sqlite3.SQLITE_CREATE_VTABLE: "CREATE VIRTUAL TABLE",
    sqlite3.SQLITE_DELETE: "DELETE",
    sqlite3.SQLITE_DETACH: "DETACH",
    sqlite3.SQLITE_INSERT: "INSERT",
    sqlite3.SQLITE_PRAGMA: "PRAGMA",
    sqlite3.SQLITE_SELECT: "SELECT",
    sqlite3.SQLITE_UPDATE: "UPDATE",
}
_REFUSED_FUNCTIONS = frozenset({"edit", "fts3_tokenizer", "load_extension", "readfile", "writefile"})
#: Modules of virtual tables that a query may read, with the suffixes of the tables that hold their contents.
_FTS3_TABLES = ("content", "docsize", "segdir", "segments", "stat")
_RTREE_TABLES = ("node", "parent", "rowid")
READABLE_MODULES = {
    "fts3": _FTS3_TABLES,
    "fts4": _FTS3_TABLES,
    "fts5": ("config", "content", "data", "docsize", "idx"),
    "geopoly": _RTREE_TABLES,
    "rtree": _RTREE_TABLES,
    "rtree_i32": _RTREE_TABLES,
}
# Virtual tables of these modules read these PRAGMAs; a query itself cannot begin with PRAGMA.
_READ_PRAGMAS = frozenset({"data_version", "page_size"})
# SQLite stores the statement as written, from the name on.
_VIRTUAL = re.compile(
    r"""CREATE\ VIRTUAL\ TABLE\s+("(?:[^"]|"")*"|\[[^\]]*\]|`[^`]*`|'[^']*'|\S+)\s+USING\s+["'`\[]?(\w+)""",
    re.VERBOSE | re.IGNORECASE,
)
# The only PRAGMA in database dumps that changes only the connection.
_HARMLESS_PRAGMAS = frozenset({"foreign_keys"})
# Numbers from sqlite3.h (named in Python from 3.11 on): length, SQL length, attached databases, LIKE pattern,
# trigger depth.
_LIMITS = {0: MAX_VALUE, 1: MAX_SQL, 7: 0, 8: 500, 10: 10}
_LIMIT_SQL_LENGTH = 1
_PLAIN = re.compile(r"[A-Za-z_]\w*\Z", re.ASCII)
_REFUSED_TABLE = (
    "refused: a table-valued function, or a virtual table of another module than "
    f"{', '.join(READABLE_MODULES)}, is not allowed in a query"
)


# ---- Queries ----


class _Guard:
    """Authorizer of queries that keeps the first reason for a rejection."""

    def __init__(self) -> None:
        self.reason = ""

    def begin(self) -> None:
        self.reason = ""

    def authorize(self, action: int, first: str | None, second: str | None, *_: str | None) -> int:
        self.reason = self.reason or self._objection(action, first or "", (second or "").lower())
        return sqlite3.SQLITE_DENY if self.reason else sqlite3.SQLITE_OK

    def _objection(self, action: int, first: str, second: str) -> str:
        if action == sqlite3.SQLITE_UPDATE and first == "sqlite_master":
            return _REFUSED_TABLE  # SQLite declares such a table at its first use
        if action == sqlite3.SQLITE_PRAGMA and first in _READ_PRAGMAS and not second:
            return ""
        if action not in _ALLOWED:
            return f"refused: {_NAMES.get(action, 'this action')} is not allowed in a query"
        if action == sqlite3.SQLITE_FUNCTION and second in _REFUSED_FUNCTIONS:
            return f"refused: the function {second} is not allowed in a query"
        return ""


class _Open:
    """An open database; the last one stays open until another is requested or its file changes."""

    def __init__(self, uri: str) -> None:
        self.guard = _Guard()
        self.connection = _opened(uri)
        try:
            _connect_virtual_tables(self.connection)
            self.connection.text_factory = _text
            self.connection.set_authorizer(self.guard.authorize)
        except BaseException:
            self.connection.close()
            raise

    def refusal(self, name: str) -> str:
        """Return why queries may not read a table or view, or an empty string."""
        self.guard.begin()
        with suppress(sqlite3.Error, sqlite3.Warning):  # an error of SQLite is reported by the query
            self.connection.execute(f"SELECT 1 FROM {_quoted(name)} LIMIT 0").close()
        return self.guard.reason


class Worker:
    """Worker that answers requests one at a time."""

    def __init__(self) -> None:
        self._key: Any = None
        self._open: _Open | None = None

    def answer(self, request: Answer) -> Answer:
        """Return the answer to a request: its result, or ``error`` with ``limit``, or ``unreadable``."""
        actions = {"query": self._query, "open": self._check, "schema": self._schema, "create": _create}
        try:
            return actions[request["do"]](request)
        except MemoryError:
            self._forget()
            return _stopped("memory", f"it needs more than {MAX_MEMORY >> 20} MB")

    def _check(self, request: Answer) -> Answer:
        try:
            self._database(request)
        except sqlite3.Error as error:
            return {"unreadable": str(error)}
        return {}

    def _query(self, request: Answer) -> Answer:
        until = _until(request)
        try:
            database = self._database(request)
        except sqlite3.Error as error:
            return {"unreadable": str(error)}
        database.guard.begin()
        database.connection.set_progress_handler(until, _STEPS)
        try:
            _check_characters(request["sql"])
            with closing(database.connection.execute(request["sql"])) as cursor:
                names = [column[0] for column in cursor.description or ()]
                return _read(cursor, request["rows"]) | {"columns": names}
        except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
            return _failure(error, database.guard.reason, request["seconds"])
        finally:
            database.connection.set_progress_handler(None, _STEPS)

    def _schema(self, request: Answer) -> Answer:
        try:
            with closing(_opened(request["uri"])) as connection:
                connection.set_progress_handler(_until(request), _STEPS)
                queried = _Open(request["uri"])
                with closing(queried.connection):
                    kinds = ("table", "view") if request["views"] else ("table",)
                    return _serialise(connection, kinds, queried.refusal)
        except sqlite3.Error as error:
            return {"unreadable": str(error)}

    def _database(self, request: Answer) -> _Open:
        key = (request["uri"], request["stamp"])
        if self._open is None or self._key != key:
            self._forget()
            self._open = _Open(request["uri"])
            self._key = key
        return self._open

    def _forget(self) -> None:
        if self._open is not None:
            self._open.connection.close()
        self._open = None


def _opened(uri: str) -> sqlite3.Connection:
    # Trusted: otherwise SQLite rejects schemas whose indexes or generated columns call JSON functions. Functions with
    # side effects cannot be called from a schema in any case, and Python disables extensions.
    connection = sqlite3.connect(uri, uri=True, isolation_level=None)
    try:
        for pragma in ("query_only = 1", "trusted_schema = 1", "cell_size_check = 1", "mmap_size = 0"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("PRAGMA temp_store = 2")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        _limit(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _connect_virtual_tables(connection: sqlite3.Connection) -> None:
    """Connect the virtual tables of readable modules before the authorizer is set, which rejects all others."""
    for name, module in _virtual_tables(connection):
        if module in READABLE_MODULES:
            with suppress(sqlite3.Error):  # a query on it reports SQLite's reason
                connection.execute(f"SELECT 1 FROM {_quoted(name)} LIMIT 0").close()


def _virtual_tables(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    """Return name and module of each virtual table whose name and statement are readable."""
    connection.text_factory = _name_text
    query = "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND sql LIKE 'CREATE VIRTUAL TABLE%'"
    matches = [(name, _VIRTUAL.match(sql)) for name, sql in connection.execute(query) if _is_text(name)]
    return [(name, match[2].lower()) for name, match in matches if match]


def _limit(connection: sqlite3.Connection, sql: int = MAX_SQL) -> None:
    """Limit the length of values and statements, if Python supports it (from 3.11 on)."""
    setlimit: Callable[[int, int], int] | None = getattr(connection, "setlimit", None)
    if setlimit is not None:
        for limit, value in (_LIMITS | {_LIMIT_SQL_LENGTH: sql}).items():
            setlimit(limit, value)


def _until(request: Answer) -> Callable[[], bool]:
    """Return a progress handler that interrupts when the time of the request is over."""
    end = time.perf_counter() + request["seconds"]
    return lambda: time.perf_counter() > end


def _check_characters(sql: str) -> None:
    """Check that SQLite can read all characters; Python 3.10 would run statements up to a null character.

    Raises:
        ValueError: It cannot.
    """
    sql.encode()
    if "\0" in sql:
        raise ValueError("it contains a null character")


def _stopped(limit: str, why: str) -> Answer:
    return {"error": f"stopped: {why}", "limit": limit}


def _failure(error: Exception, refused: str, seconds: float) -> Answer:
    if refused:
        return {"error": refused}
    if str(error) == "interrupted":
        return _stopped("time", f"it ran longer than {seconds:g} s")
    # SQLite's message names the column; where it cannot be decoded, Python 3.10 raises an error without a message.
    if isinstance(error, UnicodeDecodeError) or (type(error) is sqlite3.DatabaseError and not error.args):
        return {"error": "the name of a column is not valid UTF-8"}
    if "string or blob too big" in str(error):
        return _stopped("size", f"a text, blob or row is longer than {MAX_VALUE >> 20} MiB")
    return {"error": str(error) or type(error).__name__, "limit": ""}


def _text(raw: bytes) -> str:
    # Old databases contain Latin-1 bytes; escapes keep different bytes different and are printable.
    return raw.decode("utf-8", "backslashreplace")


def _read(cursor: Iterable[tuple[Cell, ...]], max_rows: int) -> Answer:
    """Fetch rows up to ``max_rows`` or :data:`MAX_RESULT` bytes, with little memory beyond that.

    Two results that match have the same size, so that either both or neither have digests.
    """
    rows: list[tuple[Cell, ...]] = []
    size = 0
    for row in cursor:
        if len(rows) >= max_rows or size > MAX_RESULT:
            return _result(rows, size, truncated=True)
        before = size
        size = size + _size(row)
        if before <= MAX_WHOLE < size:
            rows = [_digested(earlier) for earlier in rows]
        rows.append(_digested(row) if size > MAX_WHOLE else row)
    return _result(rows, size, truncated=False)


def _result(rows: list[tuple[Cell, ...]], size: int, truncated: bool) -> Answer:
    blobs = any(isinstance(cell, bytes) for row in rows for cell in row)
    plain: Any = [[_plain(cell) for cell in row] for row in rows] if blobs else rows
    return {"rows": plain, "blobs": blobs, "size": size, "truncated": truncated}


def _plain(cell: Cell) -> Any:
    return {"hex": cell.hex()} if isinstance(cell, bytes) else cell


def _size(row: Sequence[Cell]) -> int:
    return CELL * len(row) + sum(len(cell) for cell in row if isinstance(cell, (str, bytes)))


def _digested(row: Sequence[Cell]) -> tuple[Cell, ...]:
    return tuple(_digest(cell) if isinstance(cell, (str, bytes)) and len(cell) > _LONG else cell for cell in row)


def _digest(cell: str | bytes) -> str | bytes:
    """Return the beginning of a long value, its length and its SHA-256."""
    raw = cell.encode() if isinstance(cell, str) else cell
    end = f"… ({len(raw)} bytes, SHA-256 {hashlib.sha256(raw).hexdigest()})"
    return cell[:_KEPT] + end if isinstance(cell, str) else cell[:_KEPT] + end.encode()


# ---- Schemas ----


def _create(request: Answer) -> Answer:
    """Return the schema of an empty database in memory after running the statements."""
    reason = ""

    def authorize(action: int, first: str | None, second: str | None, *_: str | None) -> int:
        nonlocal reason
        if not reading:
            reason = reason or _objection_to_schema(action, first or "", second or "")
        return sqlite3.SQLITE_DENY if reason else sqlite3.SQLITE_OK

    reading = False
    with closing(sqlite3.connect(":memory:")) as connection:
        _limit(connection, MAX_SCHEMA)
        connection.execute("PRAGMA trusted_schema = 1")
        connection.execute("PRAGMA temp_store = 2")
        connection.set_authorizer(authorize)
        connection.set_progress_handler(_until(request), _STEPS)
        try:
            _check_characters(request["sql"])
            connection.executescript(request["sql"])
            reading = True
            return _serialise(connection)
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
            failed = _failure(error, "", request["seconds"])
            return failed | {"error": f"{failed['error']}: {reason}" if reason else failed["error"]}


def _objection_to_schema(action: int, first: str, second: str) -> str:
    if action == sqlite3.SQLITE_CREATE_VTABLE and second.lower() in READABLE_MODULES:
        return ""
    if action in _REFUSED_IN_SCHEMA:
        return f"{_NAMES.get(action, 'recursion')} is not allowed in a schema"
    if action == sqlite3.SQLITE_PRAGMA and first in _READ_PRAGMAS and not second:
        return ""
    if action == sqlite3.SQLITE_PRAGMA and first.lower() not in _HARMLESS_PRAGMAS:
        return f"PRAGMA {first} is not allowed in a schema"
    if action == sqlite3.SQLITE_FUNCTION and second.lower() in _REFUSED_FUNCTIONS:
        return f"the function {second} is not allowed in a schema"
    return ""


def _serialise(
    connection: sqlite3.Connection,
    kinds: Sequence[str] = ("table", "view"),
    refusal: Callable[[str], str] = lambda name: "",
) -> Answer:
    """Return one line for all readable tables and views, one of their names alone, and a sentence for each fault.

    Args:
        connection: The database.
        kinds: Kinds of what is described.
        refusal: Function from a name to the reason why queries may not read it, if they may not.
    """
    connection.text_factory = _name_text
    every = connection.execute("SELECT type, name FROM sqlite_master ORDER BY rowid").fetchall()
    hidden = _shadow_tables(connection)
    named = [(kind, name) for kind, name in every if kind in kinds and not name.startswith("sqlite_")]
    named = [(kind, name) for kind, name in named if name.lower() not in hidden]
    tables = list[_Table]()
    faults = list[str]()
    for kind, name in named:
        try:
            described = _table(connection, name, faults)
            if reason := refusal(name):
                faults.append(f"{kind} {_shown(name)}: {reason}")
            else:
                tables.append(described)
        except sqlite3.Error as error:
            if str(error) == "interrupted":
                return _stopped("time", "reading it takes too long")
            faults.append(f"{kind} {_shown(name)}: {error}")
    return {
        "tables": [name for name, _, _ in tables],
        "line": " | ".join(typed for _, typed, _ in tables),
        "names": " | ".join(names for _, _, names in tables),
        "faults": faults,
    }


def _shadow_tables(connection: sqlite3.Connection) -> set[str]:
    """Return the lowercase names of the tables in which virtual tables store their contents."""
    tables = _virtual_tables(connection)
    return {f"{name}_{ending}".lower() for name, module in tables for ending in READABLE_MODULES.get(module, ())}


def _name_text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _is_text(name: str) -> bool:
    return not any("\udc80" <= character <= "\udcff" for character in name)


def _shown(name: str) -> str:
    """Return a name for display in a terminal."""
    plain = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return plain if plain.isprintable() else ascii(plain)


def _table(connection: sqlite3.Connection, table: str, faults: list[str]) -> _Table:
    """Return the name of a table, the table with types and keys, and with names alone."""
    if not _is_text(table):
        raise sqlite3.DataError("its name is not valid UTF-8")
    # Position, name, declared type, …; the last value is 1 for hidden columns of virtual tables, 2 and 3 for generated.
    every = connection.execute(f"PRAGMA table_xinfo({_quoted(table)})").fetchall()
    info = [column for column in every if column[-1] != 1]
    unreadable = [name for _, name, *_ in info if not _is_text(name)]
    faults += [f"column {_shown(name)} of {_shown(table)}: its name is not valid UTF-8" for name in unreadable]
    columns = [(_name(connection, name), _kind(kind)) for _, name, kind, *_ in info if _is_text(name)]
    typed = ", ".join(f"{name} {kind}".rstrip() for name, kind in columns)
    keys = ", ".join(_foreign_keys(connection, table))
    own = _name(connection, table)
    names = ", ".join(name for name, _ in columns)
    return table, f"{own}({typed}{'; ' if keys else ''}{keys})", f"{own}({names})"


def _kind(declared: str) -> str:
    return declared.lower() if _is_text(declared) else ""


def _foreign_keys(connection: sqlite3.Connection, table: str) -> list[str]:
    """Return each key as ``column = table.column``; a key of several columns gives several, in declared order."""
    keys: dict[int, list[str]] = defaultdict(list)
    for key, position, other, column, target, *_ in connection.execute(f"PRAGMA foreign_key_list({_quoted(table)})"):
        if not all(map(_is_text, (other, column, target or ""))):
            continue
        target = target or _primary_key(connection, other, position)
        end = f"{_name(connection, other)}.{_name(connection, target)}" if target else _name(connection, other)
        keys[key].append(f"{_name(connection, column)} = {end}")
    # SQLite numbers the keys of a table in reverse order.
    return [text for key in sorted(keys, reverse=True) for text in keys[key]]


def _primary_key(connection: sqlite3.Connection, table: str, position: int) -> str:
    """Return the column that REFERENCES without a column refers to; empty if the other table cannot be read."""
    try:
        info = connection.execute(f"PRAGMA table_info({_quoted(table)})").fetchall()
    except sqlite3.OperationalError:
        return ""
    return next((str(name) for _, name, _, _, _, rank in info if rank == position + 1 and _is_text(name)), "")


def _name(connection: sqlite3.Connection, name: str) -> str:
    return name if _PLAIN.match(name) and not _reserved(connection, name) else _quoted(name)


def _reserved(connection: sqlite3.Connection, word: str) -> bool:
    """Return True if a word cannot be a bare name, according to SQLite itself."""
    try:
        connection.execute(f"SELECT NULL AS {word}")
    except sqlite3.OperationalError:
        return True
    return False


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


# ---- The process ----


def _limit_process() -> None:
    """Limit memory permanently, and ignore Ctrl-C: the end of the parent also ends this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in ("SIGALRM", "SIGXCPU"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(f"PRAGMA hard_heap_limit = {MAX_MEMORY}")
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        _lower(resource.RLIMIT_AS, used + _MAX_ADDRESS_SPACE)
        _lower(resource.RLIMIT_CORE, 0)
    except (ImportError, OSError, ValueError):
        return  # this system has no such limits; SQLite's own limit always applies


def _lower(kind: int, value: int) -> None:
    import resource

    soft, hard = resource.getrlimit(kind)
    set_before = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(kind, (min([value, *set_before]), hard))


def _limit_time(seconds: float) -> None:
    """Let the system end this process after ``seconds`` of wall time, or about as many of CPU time; 0 removes both.

    The parent enforces the limit too; this one is for a process whose parent was killed.
    """
    try:
        import resource

        signal.setitimer(signal.ITIMER_REAL, seconds)
        spent = resource.getrusage(resource.RUSAGE_SELF)
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        end = math.ceil(spent.ru_utime + spent.ru_stime + seconds) + 1
        soft = end if seconds and (hard == resource.RLIM_INFINITY or end < hard) else hard
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))
    except (ImportError, AttributeError, OSError, ValueError):
        return  # no such limits on this system: only the parent enforces them


def main() -> None:
    """Answer requests until stdin ends."""
    _limit_process()
    worker = Worker()
    sys.stdout.buffer.write(b"{}\n")
    sys.stdout.buffer.flush()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        _limit_time(request["seconds"] + 2 * GRACE)
        reply = _encoded(worker, request)
        _limit_time(0)
        sys.stdout.buffer.write(reply)
        sys.stdout.buffer.flush()


def _encoded(worker: Worker, request: Answer) -> bytes:
    answer = worker.answer(request)
    try:
        return json.dumps(answer).encode() + b"\n"
    except MemoryError:
        return json.dumps(_stopped("memory", "its result does not fit in memory")).encode() + b"\n"


if __name__ == "__main__":
    main()
