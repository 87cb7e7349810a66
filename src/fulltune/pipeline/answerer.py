"""Define the interface of models and baselines that answer rows, and add the results of queries to their answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from fulltune.tasks.base import Example, Task
from fulltune.tasks.text2sql import execution, results


class Answerer(Protocol):
    """A model, or a baseline of a run."""

    @property
    def name(self) -> str:
        """Name for people."""

    @property
    def task(self) -> Task:
        """The task, with its labels."""

    @property
    def block(self) -> int:
        """Rows that are answered at a time."""

    @property
    def identity(self) -> list[Any]:
        """Everything that the answers depend on besides the inputs, as plain data."""

    def answer(self, examples: Sequence[Example]) -> Iterator[dict[str, Any]]:
        """Yield the answers to examples, in their order."""


class WithQueries:
    """Answers of text2sql that mark queries with an error or unknown values, or have the results of those that ran.

    Args:
        model: The model or baseline.
        seconds: Time limit of a query.
        max_rows: Largest number of result rows; None to compile queries without running them.
    """

    def __init__(self, model: Answerer, seconds: float, max_rows: int | None) -> None:
        self.name = model.name
        self.task = model.task
        self.block = model.block
        self._model = model
        self._seconds = seconds
        self._max_rows = max_rows
        self._known = execution.Results(seconds)

    @property
    def identity(self) -> list[Any]:
        """Everything that the answers depend on besides the inputs, as plain data."""
        return [*self._model.identity, self._max_rows]

    def answer(self, examples: Sequence[Example]) -> Iterator[dict[str, Any]]:
        """Yield the answers to examples, in their order."""
        for example, fields in zip(examples, self._model.answer(examples), strict=True):
            yield fields | self._result(example, str(fields["sql"]))

    def _result(self, example: Example, query: str) -> dict[str, Any]:
        if self._max_rows is None:
            result = results.checked(example, query, self._seconds)
        else:
            result = results.executed(example, query, self._seconds, self._max_rows)
        return result if results.SQL_ERROR in result else result | results.warned(example, query, self._known)
