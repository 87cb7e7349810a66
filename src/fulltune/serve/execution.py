"""Run the queries of text2sql on their databases, in the sandbox that evaluation uses."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fulltune.errors import DataError
from fulltune.pipeline.loaded import LoadedModel
from fulltune.serve.limits import Limits
from fulltune.tasks.base import Example
from fulltune.tasks.text2sql.execution import Result, execute

#: Queries run one at a time in the sandbox: those that wait for it take no thread from other work.
_THREAD = ThreadPoolExecutor(1, thread_name_prefix="fulltune-sql")


async def executed(
    model: LoadedModel, examples: Sequence[Example], outputs: Sequence[dict[str, Any]], limits: Limits
) -> list[dict[str, Any]]:
    """Return answers with the results of their queries.

    ``rows`` has the rows of the result, ``more_rows`` is true if there are further ones, and ``sql_error`` says why a
    query failed. Queries only read, within ``evaluation.sql_seconds`` each.
    """
    seconds = model.config.evaluation.sql_seconds
    loop = asyncio.get_running_loop()
    found = list[dict[str, Any]]()
    for example, output in zip(examples, outputs, strict=True):
        database = Path(example.meta["database"])
        result = await loop.run_in_executor(_THREAD, _result, database, output["sql"], seconds, limits.rows)
        found.append(output | _fields(result))
    return found


def _result(database: Path, query: str, seconds: float, rows: int) -> Result:
    try:
        return execute(database, query, seconds=seconds, max_rows=rows)
    except DataError as error:  # the database cannot be read
        return Result(error=error.problems[0].found)


def _fields(result: Result) -> dict[str, Any]:
    if result.error is not None:
        return {"rows": [], "sql_error": result.error}
    rows = [[cell.hex() if isinstance(cell, bytes) else cell for cell in row] for row in result.rows]
    return {"rows": rows} | ({"more_rows": True} if result.truncated else {})
