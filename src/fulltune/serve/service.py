"""Answer requests within their time: what the routes share."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import Request

from fulltune.errors import ConfigError, DataError, ModelError, Problem
from fulltune.serve.batching import Answer, Batcher, Job
from fulltune.serve.limits import Limits
from fulltune.serve.metrics import Metrics
from fulltune.serve.models import Models
from fulltune.serve.refusals import Refusal, invalid

Result = TypeVar("Result")


@dataclass(frozen=True)
class Service:
    """The parts of a server.

    Attributes:
        limits: Limits of a request.
        models: The current model.
        batcher: The thread that answers.
        metrics: Counters.
        database: text2sql: the database of inputs that name none.
        execute: text2sql: run the queries.
    """

    limits: Limits
    models: Models
    batcher: Batcher
    metrics: Metrics = field(repr=False)
    database: str = ""
    execute: bool = False

    async def answers(self, job: Job) -> list[Answer]:
        """Return the answers of a job; the places of one that is canceled are free at once.

        Raises:
            Refusal: The queue is full, or an input cannot be answered.
        """
        self.batcher.submit(job)
        try:
            return await asyncio.wrap_future(job.future)
        except (ConfigError, DataError, ModelError) as error:
            raise invalid(error) from error
        finally:
            job.future.cancel()

    async def in_time(self, request: Request, work: Coroutine[Any, Any, Result]) -> Result | None:
        """Return the result of some work; None if the client has gone before.

        Raises:
            Refusal: It takes longer than a request may.
        """
        result = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({result, gone}, timeout=self.limits.seconds, return_when=asyncio.FIRST_COMPLETED)
            if result.done():
                return result.result()
            if gone.done():
                return None
            fix = "send fewer or shorter inputs, or raise the limit of the server (--timeout)"
            problem = Problem(f"no answer after {self.limits.seconds:g} s", "an answer within the time limit", fix)
            raise Refusal(504, problem)
        finally:
            result.cancel()
            gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
