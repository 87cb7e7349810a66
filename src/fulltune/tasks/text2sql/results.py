"""Describe predicted queries for a user: their result rows, or why they fail. Queries only read, within limits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fulltune.errors import ConfigError, DataError
from fulltune.tasks.text2sql import execution, literals

if TYPE_CHECKING:
    from fulltune.tasks.base import Example, Task

#: Names of the added fields.
COLUMNS, ROWS, MORE_ROWS = "columns", "rows", "more_rows"
SQL_ERROR, SQL_WARNING = "sql_error", "sql_warning"


def check_queries(task: Task, *, execute: bool, database: str) -> None:
    """Check that options for queries are given to a task that writes queries.

    Raises:
        ConfigError: They are not.
    """
    if (execute or database) and task.name != "text2sql":
        raise ConfigError(f"the task {task.name}", expected="text2sql for --execute and --db", fix="leave them out")


def executed(example: Example, query: str, seconds: float, max_rows: int) -> dict[str, Any]:
    """Return the result of a query.

    ``columns`` has the names of its columns, ``rows`` its rows, with blobs as hexadecimal digits; ``more_rows`` is true
    if there are further ones, and ``sql_error`` says why a query failed.
    """
    database = Path(example.meta["database"])
    try:
        result = execution.execute(database, query, seconds=seconds, max_rows=max_rows)
    except DataError as error:  # the database cannot be read
        result = execution.Result(error=error.problems[0].found)
    if result.error is not None:
        return {ROWS: [], SQL_ERROR: result.error}
    rows = [[cell.hex() if isinstance(cell, bytes) else cell for cell in row] for row in result.rows]
    return {COLUMNS: list(result.columns), ROWS: rows} | ({MORE_ROWS: True} if result.truncated else {})


def checked(example: Example, query: str, seconds: float) -> dict[str, Any]:
    """Return ``sql_error`` for a query that its database cannot compile; it is not run."""
    try:
        error = execution.compile_error(Path(example.meta["database"]), query, seconds=seconds)
    except DataError as unreadable:
        error = unreadable.problems[0].found
    return {SQL_ERROR: error} if error else {}


def warned(example: Example, query: str, known: execution.Results) -> dict[str, Any]:
    """Return ``sql_warning`` for a query with values that occur neither in the question nor in their column."""
    warning = literals.warning(known, example.meta["database"], example.input, query)
    return {SQL_WARNING: warning} if warning else {}
