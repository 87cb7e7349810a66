"""Run the queries of text2sql on their databases, in the sandbox that evaluation uses."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fulltune.pipeline.loaded_model import LoadedModel
from fulltune.serve.limits import Limits
from fulltune.tasks.base import Example
from fulltune.tasks.text2sql import results

#: Queries run one at a time in the sandbox: those that wait for it take no thread from other work.
_THREAD = ThreadPoolExecutor(1, thread_name_prefix="fulltune-sql")


async def described(
    model: LoadedModel, examples: Sequence[Example], outputs: Sequence[dict[str, Any]], limits: Limits, *, execute: bool
) -> list[dict[str, Any]]:
    """Return answers with the results of their queries, or, without ``execute``, with those that cannot be run marked.

    The fields are those of :mod:`fulltune.tasks.text2sql.results`. Queries only read, within
    ``evaluation.sql_seconds`` each.
    """
    seconds = model.config.evaluation.sql_seconds
    loop = asyncio.get_running_loop()
    found = list[dict[str, Any]]()
    for example, output in zip(examples, outputs, strict=True):
        query = output["sql"]
        if execute:
            fields = await loop.run_in_executor(_THREAD, results.executed, example, query, seconds, limits.rows)
        else:
            fields = await loop.run_in_executor(_THREAD, results.checked, example, query, seconds)
        found.append(output | fields)
    return found
