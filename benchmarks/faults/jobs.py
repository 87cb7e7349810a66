"""Jobs for the fault tests: complete runs of tiny models, with dropout, guards and a checkpoint every few steps."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import fakes

from fulltune.records.run import read_record
from fulltune.runtime.files import file_sha256

#: Families and tasks, and the columns of their rows.
JOBS = {
    "causal-lm": ("gpt2", lambda i: {"text": f"Once upon a time a fox met {i} kings" + " and a cat" * (i % 5)}),
    "classification": ("bert", lambda i: {"text": f"the {('court', 'film')[i % 2]} is {i}", "label": "ab"[i % 2]}),
    "seq2seq": ("t5", lambda i: {"source": f"say {i}", "target": f"{i} it is" + " so" * (i % 3)}),
    "text2sql": (
        "t5",
        lambda i: {"question": f"who is {i}", "sql": f"SELECT name FROM person WHERE id = {i}", "db_id": "people"},
    ),
}


def job(folder: Path, task: str, rows: int = 40) -> dict[str, Any]:
    """Return a config with its files in ``folder``: about ``rows / 4`` steps, two epochs, three evaluations."""
    kind, row = JOBS[task]
    if not (folder / kind).exists():
        fakes.save(kind, folder / kind)
    for name, numbers in {"train": range(rows), "valid": range(500, 508), "eval": range(900, 906)}.items():
        text = "".join(json.dumps(row(i)) + "\n" for i in numbers)
        (folder / f"{task}.{name}.jsonl").write_text(text, encoding="utf-8")
    data: dict[str, Any] = {name: str(folder / f"{task}.{name}.jsonl") for name in ("train", "valid", "eval")}
    data["allow_leaks"] = True  # the rows differ in one or two words
    if task == "text2sql":
        data["databases"] = str(_people(folder / "databases"))
    return {
        "model": str(folder / kind),
        "task": task,
        "data": data,
        "train": {"epochs": 2, "batch_size": 4, "accumulation": 2, "learning_rate": 1e-3, "evaluations": 3},
        "baselines": {"few_shot": 1},
        "evaluation": {"resamples": 100, "max_new_tokens": 4, "continuations": 1, "batch_size": 4},
        "guards": {"forgetting": None},
        "checkpoints": {"every": 3, "keep": 2},
    }


def _people(folder: Path) -> Path:
    """Write a folder with one small database."""
    folder.mkdir(exist_ok=True)
    with closing(sqlite3.connect(folder / "people.sqlite")) as database, database:
        database.execute("CREATE TABLE IF NOT EXISTS person (id INTEGER PRIMARY KEY, name TEXT)")
        database.executemany("INSERT OR REPLACE INTO person VALUES (?, ?)", [(1, "Vasilisa"), (2, "Ivan")])
    return folder


def outcome(run: Path) -> dict[str, str]:
    """Return hashes of everything that must not depend on whether the run was interrupted.

    These are weights, steps, predictions, and the record without its times and its peak memory.
    """
    files = [*sorted((run / "model").iterdir()), run / "steps.jsonl", run / "predictions.jsonl"]
    found = {str(path.relative_to(run)): file_sha256(path) for path in files}
    measured: Any = {
        "run_id": True,
        "created": True,
        "resources": True,
        "training": {"peak_bytes"},
        "baselines": {"__all__": {"seconds", "is_cached"}},
    }
    measured["baselines"] = {"__all__": {"seconds", "is_cached"}}
    record = read_record(run / "record.json").model_dump(mode="json", exclude=measured)
    text = json.dumps(record, sort_keys=True).replace(run.name, "RUN")  # a recommended command names the run
    return found | {"record.json": hashlib.sha256(text.encode()).hexdigest()}
