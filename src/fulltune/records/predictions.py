"""Define the result of answering a file of rows."""

from __future__ import annotations

from typing import Any

from fulltune.records.base import Model
from fulltune.records.run import FileFormat


class Unanswered(Model):
    """A row without an answer: where it is stored, and why."""

    where: str
    reason: str


class Predictions(Model):
    """Summary of a call of ``fulltune predict``.

    Attributes:
        model: The run, version or model that answered.
        task: Its task.
        output: The file that was written; empty if the rows are in ``rows``.
        total: Number of rows of the input.
        answered: Number of rows with an answer.
        truncated: Number of rows whose text is longer than the model reads.
        failing_queries: text2sql: number of queries that cannot be run or, if queries were run, failed.
        doubtful_queries: text2sql: number of queries with a value from neither the question nor its column.
        resumed: Number of rows that an interrupted call had answered.
        seconds: Time of this call after the model was loaded.
        unanswered: The first rows without an answer.
        files: The formats of the input.
        warning: A reason not to use the answers: the run of the model was rejected or stopped; else empty.
        rows: The rows with their answers, if no file was written.
    """

    model: str
    task: str
    output: str = ""
    total: int
    answered: int
    truncated: int = 0
    failing_queries: int = 0
    doubtful_queries: int = 0
    resumed: int = 0
    seconds: float
    unanswered: tuple[Unanswered, ...] = ()
    files: tuple[FileFormat, ...] = ()
    warning: str = ""
    rows: tuple[dict[str, Any], ...] = ()
