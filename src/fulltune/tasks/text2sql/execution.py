"""Run predicted queries on real databases without trusting them, and compare the results of two queries.

A query is model output: it must be one statement that only reads, with limits on time, rows and memory. It runs in a
separate process (:mod:`fulltune.tasks.text2sql.sandbox`), which is killed if SQLite does not stop by itself.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from fulltune.errors import DataError
from fulltune.tasks.text2sql.comparison import columns_match, rows_match
from fulltune.tasks.text2sql.lexer import QUERY_WORDS, first_word, is_ordered, mentions_order, tokens, trimmed
from fulltune.tasks.text2sql.sandbox import sandbox
from fulltune.tasks.text2sql.snapshot import printable, source
from fulltune.tasks.text2sql.ties import match_but_for_ties
from fulltune.tasks.text2sql.worker import CELL, MAX_RESULT, MAX_SQL, MAX_VALUE

__all__ = [
    "MAX_RESULT",
    "MAX_VALUE",
    "Database",
    "Result",
    "Results",
    "Row",
    "compile_error",
    "execute",
    "is_ordered",
    "match",
    "printable",
    "verdict",
]

Row = tuple[int | float | str | bytes | None, ...]


@dataclass(frozen=True)
class Origin:
    """The query behind a result, and its limits."""

    path: Path
    sql: str
    seconds: float
    max_rows: int


@dataclass(frozen=True)
class Result:
    """Result of a query.

    Attributes:
        rows: Rows in the order returned; empty after an error. In a result above 256 KiB, texts and blobs of more than
            120 characters are replaced by their beginning, length and SHA-256.
        error: Reason for a failure, or None.
        seconds: Wall time.
        truncated: True if there were more rows than the limit.
        limit: The limit that ended the query: ``time``, ``memory``, ``size`` (of one value), ``crash`` (its process
            died), or empty.
        size: Size of the result in bytes: 100 for each value, plus the length of texts and blobs.
        origin: The query behind the result, or None.
        columns: Names of the columns, as SQLite gives them; empty after an error.
    """

    rows: tuple[Row, ...] = ()
    error: str | None = None
    seconds: float = 0.0
    truncated: bool = False
    limit: str = ""
    size: int = 0
    origin: Origin | None = field(default=None, compare=False, repr=False)
    columns: tuple[str, ...] = field(default=(), compare=False, repr=False)

    @property
    def empty(self) -> bool:
        """True if the query ran and returned no rows: agreement of such results is weak evidence."""
        return self.error is None and not self.rows


class Database:
    """A SQLite file that is open for reading by untrusted queries. A context manager.

    Raises:
        DataError: The file is missing or is not a SQLite database.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        request(self.path, "open", 10.0)

    def execute(self, sql: str, *, seconds: float = 2.0, max_rows: int = 10_000) -> Result:
        """Run one query. Invalid queries never raise: the reason is in ``Result.error``."""
        return execute(self.path, sql, seconds=seconds, max_rows=max_rows)

    def close(self) -> None:
        """Do nothing: the worker closes the file when it opens another."""

    def __enter__(self) -> Database:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Results:
    """Cache of query results, limited by total size in bytes; the least recently used are dropped."""

    def __init__(self, seconds: float, budget: int = MAX_RESULT) -> None:
        self._seconds, self._budget = seconds, budget
        self._known: OrderedDict[tuple[str, str], Result] = OrderedDict()
        self._size = 0

    def __reduce__(self) -> tuple[type[Results], tuple[float, int]]:
        """Pickle without the cached results."""
        return Results, (self._seconds, self._budget)

    def execute(self, database: str, sql: str) -> Result:
        """Return the result of :func:`execute`; a database that cannot be read counts as a failed query."""
        key = (database, sql)
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        result = self._run(database, sql)
        self._known[key] = result
        self._size += _footprint(key, result)
        while self._size > self._budget:
            self._size -= _footprint(*self._known.popitem(last=False))
        return result

    def _run(self, database: str, sql: str) -> Result:
        try:
            return execute(database, sql, seconds=self._seconds)
        except DataError as error:
            return Result(error=error.problems[0].found)


def _footprint(key: tuple[str, str], result: Result) -> int:
    """Return the approximate size of a result in memory, with digests instead of long texts."""
    texts = sum(len(cell) for row in result.rows for cell in row if isinstance(cell, (str, bytes)))
    return len(key[1]) + texts + CELL * (1 + sum(map(len, result.rows)))


def execute(path: str | Path, sql: str, *, seconds: float = 2.0, max_rows: int = 10_000) -> Result:
    """Run one untrusted query on the SQLite file at ``path``, which is never changed or created.

    The connection is read-only. An authorizer allows SELECT, reading columns, functions and recursion, and rejects
    everything else. Only one statement is accepted (a semicolon and comments may follow). The query ends after
    ``seconds`` of wall time, or at most half a second later with its process. Texts or blobs above 16 MiB are errors
    (from Python 3.11 on), and so is memory above 256 MB. At most ``max_rows`` rows and 64 MB are read.

    Raises:
        DataError: The file is missing or is not a SQLite database.
    """
    start = time.perf_counter()
    sql = trimmed(sql)
    refused = _refusal(sql)
    if refused:
        return Result(error=refused)
    query = {"sql": _without_semicolons(sql), "rows": max_rows}
    answer = request(Path(path), "query", seconds, **query)
    taken = time.perf_counter() - start
    if "error" in answer:
        return Result(error=printable(answer["error"]), seconds=taken, limit=answer.get("limit", ""))
    rows = answer["rows"]
    values = tuple(tuple(map(_cell, row)) for row in rows) if answer["blobs"] else tuple(map(tuple, rows))
    origin = Origin(Path(path), sql, seconds, max_rows)
    return Result(
        values, None, taken, answer["truncated"], size=answer["size"], origin=origin, columns=tuple(answer["columns"])
    )


def compile_error(path: str | Path, sql: str, *, seconds: float = 2.0) -> str:
    """Return why SQLite cannot compile an untrusted query for a database, without running it; empty if it can.

    The query is refused for the same reasons as by :func:`execute`: it must be one statement that only reads.

    Raises:
        DataError: The file is missing or is not a SQLite database.
    """
    sql = trimmed(sql)
    refused = _refusal(sql)
    if refused:
        return refused
    answer = request(Path(path), "query", seconds, sql=f"EXPLAIN {_without_semicolons(sql)}", rows=0)
    return printable(answer["error"]) if "error" in answer else ""


def request(path: Path, do: str, seconds: float, **options: Any) -> dict[str, Any]:
    """Return the worker's answer about a database file.

    Raises:
        DataError: The file is missing or is not a SQLite database.
    """
    opened = source(path)
    answer = sandbox().ask({"do": do, "uri": opened.uri, "stamp": list(opened.stamp), **options}, seconds)
    if "unreadable" in answer:
        raise DataError(
            f"this cannot be read ({printable(answer['unreadable'])})",
            expected="a SQLite database",
            fix="replace the file",
            where=printable(str(path)),
        )
    return answer


def match(gold: Result, predicted: Result, *, ordered: bool) -> bool:
    """Return True if two results are equal.

    Rows are compared as multisets, or in sequence if ``ordered`` (:func:`is_ordered` of the reference query). Rows with
    equal sort keys may then be in any order; if only the sequences differ, the reference query is run again to get the
    keys. Columns are compared in their order, as in BIRD's comparison of tuples (Li et al. 2023), which however ignores
    repeated rows. Numbers are equal within a relative 1e-6 or an absolute 1e-9; integers must be exactly equal (floats
    from 2**53 on do not count as integers); 3 equals 3.0. Text is case-sensitive, NULL equals NULL, and text never
    equals a number. A failed query matches nothing. A truncated result matches only a truncated one, by the rows read.
    """
    if not _comparable(gold, predicted):
        return False
    if ordered and rows_match(gold.rows, predicted.rows, ordered=True):
        return True
    same_rows = rows_match(gold.rows, predicted.rows, ordered=False)
    return same_rows and (not ordered or _match_but_for_ties(gold, predicted))


def _match_but_for_ties(gold: Result, predicted: Result) -> bool:
    origin = gold.origin
    if origin is None:
        return False

    def run(sql: str) -> tuple[Row, ...]:
        return execute(origin.path, sql, seconds=origin.seconds, max_rows=origin.max_rows).rows

    return match_but_for_ties(origin.sql, gold.rows, predicted.rows, run)


def verdict(gold_sql: str, gold: Result, predicted: Result, rule: str) -> bool | None:
    """Return whether two results are equal by the rule of ``evaluation.sql_match``: ``strict`` or ``spider``.

    ``strict`` is :func:`match`. ``spider`` follows the Spider test suites (Zhong et al. 2020): some order of the
    predicted columns must give the reference rows, as a multiset or, if the reference query has an ORDER BY anywhere
    (:func:`mentions_order`), in sequence. Values are equal as in Python: 3 equals 3.0, and numbers that differ by
    rounding differ. Two empty results match, whatever their columns. Failed and truncated results are treated as in
    :func:`match`.

    Returns:
        None if the comparison by ``spider`` was given up because it takes too long (:data:`comparison.MAX_CELLS`).
    """
    if rule != "spider":
        return match(gold, predicted, ordered=is_ordered(gold_sql))
    if not _comparable(gold, predicted):
        return False
    return columns_match(gold.rows, predicted.rows, ordered=mentions_order(gold_sql))


def _comparable(gold: Result, predicted: Result) -> bool:
    return gold.error is None and predicted.error is None and gold.truncated == predicted.truncated


def _cell(cell: Any) -> Any:
    return bytes.fromhex(cell["hex"]) if isinstance(cell, dict) else cell


def _refusal(sql: str) -> str:
    """Return the reason for which a text is rejected without running it, or an empty string.

    VACUUM INTO and EXPLAIN do not call the authorizer, so that the first word must be checked.
    """
    if len(sql) > MAX_SQL:
        return f"refused: a query of {len(sql):,} characters; at most {MAX_SQL:,} are allowed"
    word = first_word(sql)
    if word in QUERY_WORDS:
        return ""
    return f"refused: {printable(word) or 'this'} is not a query" if sql.strip() else "refused: there is no query"


def _without_semicolons(sql: str) -> str:
    """Remove the semicolons at the end of the text; the rest may still be two statements."""
    parts = tokens(sql)
    end = len(parts)
    while end and parts[end - 1].text == ";":
        end -= 1
    return sql if end == len(parts) else sql[: parts[end].start]
