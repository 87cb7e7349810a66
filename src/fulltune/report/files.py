"""Write ``report.html`` from a run folder: small files are read completely, predictions are streamed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from fulltune.errors import StoreError
from fulltune.records.run import Prediction, Step, read_record, without_discarded
from fulltune.report.page import render
from fulltune.report.reproduce import commands
from fulltune.runtime.files import atomic_text
from fulltune.runtime.validation import first_problem, read_failure

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


def write_report(run_folder: Path) -> Path:
    """Write ``report.html`` atomically from the other files of a run folder.

    Args:
        run_folder: Contains ``record.json`` and, optionally, ``steps.jsonl``, ``predictions.jsonl`` and ``audit.json``.

    Returns:
        The path of the report.

    Raises:
        StoreError: The record is missing or newer than this fulltune, a file is damaged (named with its line), or the
            disk is full (an older report is then unchanged).
    """
    folder = Path(run_folder)
    record = read_record(folder / "record.json")
    steps = without_discarded(Lines(folder / "steps.jsonl", Step))
    predictions = Lines(folder / "predictions.jsonl", Prediction)
    page = render(record, steps, predictions, _audit(folder / "audit.json"), reproduce=commands(folder))
    return atomic_text(folder / "report.html", page)


def _audit(path: Path) -> dict[str, Any] | None:
    try:
        audit = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise StoreError(
            f"the audit cannot be read ({read_failure(error)})", where=str(path), fix="run it again"
        ) from error
    return audit if isinstance(audit, dict) else {"findings": audit}


def _unreadable(path: Path, line: int, error: ValidationError) -> StoreError:
    return StoreError(
        f"the line does not match its schema ({first_problem(error)})",
        where=f"{path}:{line}",
        fix="run it again, or restore the file",
    )
