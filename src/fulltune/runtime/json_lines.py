"""Read a JSON Lines file of records, one line at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

from fulltune.errors import StoreError
from fulltune.runtime.validation import first_problem

Line = TypeVar("Line", bound=BaseModel)


@dataclass(frozen=True)
class Lines(Generic[Line]):
    """A JSON Lines file that can be iterated repeatedly, with one line in memory at a time.

    A missing file counts as empty. A last line without a newline is the remainder of a crash, and is skipped if it
    cannot be parsed.
    """

    path: Path
    schema: type[Line]

    def __iter__(self) -> Iterator[Line]:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for index, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    yield self.schema.model_validate_json(line)
                except ValidationError as error:
                    if not line.endswith(b"\n"):
                        return
                    raise _unreadable(self.path, index, error) from error


def _unreadable(path: Path, line: int, error: ValidationError) -> StoreError:
    return StoreError(
        f"the line does not match its schema ({first_problem(error)})",
        where=f"{path}:{line}",
        fix="run it again, or restore the file",
    )
