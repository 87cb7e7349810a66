"""Write ``report.html`` from a run folder: small files are read completely, predictions are streamed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fulltune.records.run import Prediction, Step, read_record, without_discarded
from fulltune.report.page import render
from fulltune.report.reproduce import commands
from fulltune.runtime.files import atomic_text
from fulltune.runtime.json_lines import Lines
from fulltune.runtime.validation import read_json


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
        audit = read_json(path, "the audit")
    except FileNotFoundError:
        return None
    return audit if isinstance(audit, dict) else {"findings": audit}
