"""Run a predicted query on a real database without trusting it, and compare what two queries returned.

A query is data from a model: one statement, limited in time, rows and memory, that may do nothing but read.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from fulltune.errors import DataError
from fulltune.tasks.text2sql.comparison import rows_match
from fulltune.tasks.text2sql.lexer import QUERY_WORDS, first_word, is_ordered, tokens

__all__ = ["Database", "Result", "Row", "execute", "is_ordered", "match", "open_readonly"]

Row = tuple[int | float | str | bytes | None, ...]

#: Longest text or blob, in bytes, that a query may build or read.
MAX_VALUE = 1 << 18
#: All texts and blobs of one result together, in bytes.
MAX_RESULT = 64 << 20
#: Virtual machine instructions between two looks at the clock.
_STEPS = 1000

_ALLOWED = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE})
_NAMES = {
    sqlite3.SQLITE_ATTACH: "ATTACH",
    sqlite3.SQLITE_CREATE_TABLE: "CREATE",
    sqlite3.SQLITE_DELETE: "DELETE",
    sqlite3.SQLITE_INSERT: "INSERT",
    sqlite3.SQLITE_PRAGMA: "PRAGMA",
    sqlite3.SQLITE_UPDATE: "UPDATE",
}
_REFUSED_FUNCTIONS = frozenset(
    {"edit", "fts3_tokenizer", "load_extension", "randomblob", "readfile", "writefile", "zeroblob"}
)
# One call of these can pad for minutes, and no handler is asked meanwhile: only a plain literal format is taken.
_PADDING_FUNCTIONS = frozenset({"format", "printf"})
_WIDE = re.compile(r"\*|\d{4}")
# From sqlite3.h; Python names them only from 3.11 on.
_LIMIT_LENGTH, _LIMIT_ATTACHED, _LIMIT_PATTERN = 0, 7, 8
_LONGEST_PATTERN = 500


@dataclass(frozen=True)
class Result:
    """What a query gave.

    Attributes:
        rows: The rows read, in the order in which they came; empty after an error.
        error: Why there are none, or None.
        seconds: Wall time.
        truncated: More rows were there than the limit lets through.
    """

    rows: tuple[Row, ...] = ()
    error: str | None = None
    seconds: float = 0.0
    truncated: bool = False

    @property
    def empty(self) -> bool:
        """It ran and returned no row: agreement on that is weak evidence."""
        return self.error is None and not self.rows


class Database:
    """A SQLite file, open for reading by untrusted queries. A context manager; for one thread.

    Raises:
        DataError: The file is missing or is not a SQLite database.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._refused, self._pads = "", False
        self._connection = open_readonly(self.path)
        self._connection.text_factory = _text
        _limit(self._connection)
        self._connection.set_authorizer(self._authorise)

    def execute(self, sql: str, *, seconds: float = 2.0, max_rows: int = 10_000) -> Result:
        """Run one query. A bad query never raises: the reason is in ``Result.error``."""
        start = time.perf_counter()
        self._refused, self._pads = _refusal(sql), _pads(sql)
        if self._refused:
            return Result(error=self._refused)
        self._connection.set_progress_handler(_deadline(start + seconds), _STEPS)
        try:
            rows, truncated = _read(self._connection.execute(_without_semicolons(sql)), max_rows)
        except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, MemoryError) as error:
            return Result(error=self._reason(error, seconds), seconds=time.perf_counter() - start)
        finally:
            self._connection.set_progress_handler(None, _STEPS)
        return Result(rows, None, time.perf_counter() - start, truncated)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Database:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _authorise(
        self, action: int, first: str | None, second: str | None, database: str | None, trigger: str | None
    ) -> int:
        self._refused = self._refused or self._objection(action, first or "", (second or "").lower())
        return sqlite3.SQLITE_DENY if self._refused else sqlite3.SQLITE_OK

    def _objection(self, action: int, first: str, second: str) -> str:
        if action == sqlite3.SQLITE_UPDATE and first == "sqlite_master":
            return "refused: table-valued functions are not allowed in a query"  # SQLite declares them as tables
        if action not in _ALLOWED:
            return f"refused: {_NAMES.get(action, 'this action')} is not allowed in a query"
        if action == sqlite3.SQLITE_FUNCTION:
            refused = _REFUSED_FUNCTIONS | (_PADDING_FUNCTIONS if self._pads else frozenset())
            return f"refused: the function {second} is not allowed in a query" if second in refused else ""
        return ""

    def _reason(self, error: BaseException, seconds: float) -> str:
        if self._refused:
            return self._refused
        if str(error) == "interrupted":
            return f"stopped: it ran longer than {seconds:g} s"
        return str(error) or type(error).__name__


def execute(path: str | Path, sql: str, *, seconds: float = 2.0, max_rows: int = 10_000) -> Result:
    """Run one untrusted query on the SQLite file at ``path``, which is never changed and never made.

    The connection is read-only; an authorizer lets through SELECT, reading columns, functions and recursion and
    refuses everything else; only one statement is taken (a semicolon and comments may follow). A progress handler ends
    the query after about ``seconds``; a text or blob above 256 KiB is an error (from Python 3.11 on); at most
    ``max_rows`` rows are read.

    Raises:
        DataError: The file is missing or is not a SQLite database.
    """
    with Database(path) as database:
        return database.execute(sql, seconds=seconds, max_rows=max_rows)


def match(gold: Result, predicted: Result, *, ordered: bool) -> bool:
    """Whether two results are the same.

    Rows are compared as multisets, or in sequence when ``ordered`` (:func:`is_ordered` of the gold query). Columns
    count in the order in which they stand, as in BIRD's comparison of tuples (Li et al. 2023), which however ignores
    repeated rows; the test suites for Spider (Zhong et al. 2020) compare multisets as here, but also accept permuted
    columns. Numbers agree within a relative 1e-6 or an absolute 1e-9, whole numbers exactly, 3 equals 3.0; text is
    case-sensitive; NULL equals NULL; text never equals a number. A query that failed matches nothing. A truncated
    result matches only a truncated one, by the rows read.
    """
    if gold.error is not None or predicted.error is not None or gold.truncated != predicted.truncated:
        return False
    return rows_match(gold.rows, predicted.rows, ordered=ordered)


def open_readonly(path: Path) -> sqlite3.Connection:
    """A connection that can neither change nor make the file."""
    if not path.is_file():
        raise DataError(
            "there is no such database",
            expected="a SQLite file",
            fix="check data.databases and the row's db_id; databases are opened read-only and never made",
            where=str(path),
        )
    # ``immutable`` also keeps SQLite from making lock and journal files beside the database.
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None)
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.DatabaseError as error:
        connection.close()
        raise DataError(
            f"this cannot be read ({error})", expected="a SQLite database", fix="replace the file", where=str(path)
        ) from None
    return connection


def _text(raw: bytes) -> str:
    # Old databases hold Latin-1 bytes; escapes keep different bytes different and can be printed.
    return raw.decode("utf-8", "backslashreplace")


def _limit(connection: sqlite3.Connection) -> None:
    """Bound what one value may take, where Python can (from 3.11 on)."""
    setlimit: Callable[[int, int], int] | None = getattr(connection, "setlimit", None)
    if setlimit is not None:
        setlimit(_LIMIT_LENGTH, MAX_VALUE)
        setlimit(_LIMIT_ATTACHED, 0)
        setlimit(_LIMIT_PATTERN, _LONGEST_PATTERN)


def _pads(sql: str) -> bool:
    """Whether a call of ``printf`` or ``format`` has anything but a literal format with narrow fields."""
    found = tokens(sql)
    for name, bracket, form, after in zip(found, found[1:], found[2:], [*found[3:], None], strict=False):
        if name.text.strip('"`[]').lower() in _PADDING_FUNCTIONS and bracket.text == "(":
            plain = form.kind == "string" and after is not None and after.text in (",", ")")
            if not plain or _WIDE.search(form.text):
                return True
    return False


def _refusal(sql: str) -> str:
    """VACUUM INTO and EXPLAIN do not ask the authorizer what it would refuse, so the first word decides beforehand."""
    word = first_word(sql)
    if word in QUERY_WORDS:
        return ""
    return f"refused: {word or 'this'} is not a query" if sql.strip() else "refused: there is no query"


def _without_semicolons(sql: str) -> str:
    """Cut at the first of the semicolons that end the text; what stands before may still be two statements."""
    found = tokens(sql)
    end = len(found)
    while end and found[end - 1].text == ";":
        end -= 1
    return sql if end == len(found) else sql[: found[end].start]


def _deadline(at: float) -> Callable[[], int]:
    return lambda: time.perf_counter() > at


def _read(cursor: sqlite3.Cursor, max_rows: int) -> tuple[tuple[Row, ...], bool]:
    rows: list[Row] = []
    size = 0
    for row in cursor:
        if len(rows) >= max_rows or size > MAX_RESULT:
            return tuple(rows), True
        rows.append(row)
        size += _size(row)
    return tuple(rows), False


def _size(row: Sequence[object]) -> int:
    return sum(len(cell) for cell in row if isinstance(cell, (str, bytes)))
