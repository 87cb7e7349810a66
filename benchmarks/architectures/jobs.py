"""Rows and configs of the tasks that every model type is tested on.

Texts are longer than the windows of the models, share a prefix, and differ in length within a batch.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

Row = dict[str, Any]

#: Longer than every window: later tokens must not see all of it.
SHARED = "read the old tale of the fox and the seven kings with care, then say what it means"
#: Tokens of an answer.
CAP = 8
TRAIN, EVAL = 8, 6

_WORDS = ("fox", "king", "cat", "dog", "hen", "bear", "tsar", "owl", "wolf", "hare")


def _words(row: int, count: int) -> str:
    return " ".join(_WORDS[(row * 7 + place * place + place) % len(_WORDS)] for place in range(count))


def _prompt(row: int) -> Row:
    return {
        "prompt": f"{SHARED}: {row} {_words(row, 1 + row % 5)}",
        "completion": f" so {_words(row + 3, 1 + row % 4)}",
    }


def _pair(row: int) -> Row:
    return {"source": f"{row} {_words(row, 1 + 2 * (row % 4))}", "target": _words(row + 1, 1 + row % 3)}


def _question(row: int) -> Row:
    return {
        "question": f"who has {row} legs{' and wool' * (row % 3)}?",
        "sql": f"SELECT name FROM animal WHERE legs = {row}",
        "db_id": "zoo",
    }


def _text(row: int) -> str:
    return f"{_words(row, 2 + 3 * (row % 4))} {row}"


def _labeled(row: int) -> Row:
    return {"text": _text(row), "label": ("law", "tale", "film")[row % 3]}


def _several(row: int) -> Row:
    return {"text": _text(row), "labels": [name for bit, name in enumerate(("law", "tale", "film")) if row >> bit & 1]}


#: The task of a config and the function that makes a row, by the name of a column of the matrix.
TASKS: dict[str, tuple[str, Callable[[int], Row]]] = {
    "pc": ("causal-lm", _prompt),
    "s2s": ("seq2seq", _pair),
    "sql": ("text2sql", _question),
    "cls": ("classification", _labeled),
    "multi": ("classification", _several),
}


def config(base: Path, column: str, folder: Path, *, fast: bool, dropout: float | None = None) -> dict[str, Any]:
    """Return a config of two steps, each over all training rows, whose files are written to ``folder``.

    Args:
        base: Folder of the checkpoint.
        column: One of :data:`TASKS`.
        folder: Folder for the rows.
        fast: Use every fast path and one micro-batch per step; otherwise none, and two micro-batches per step.
        dropout: Dropout of every layer in training; the checkpoints have none.
    """
    task, row = TASKS[column]
    folder.mkdir(parents=True, exist_ok=True)
    data: dict[str, Any] = {"train": _write(folder / "train.jsonl", row, range(TRAIN))}
    data |= {"eval": _write(folder / "eval.jsonl", row, range(100, 100 + EVAL))}
    data["allow_leaks"] = True  # the rows differ in a few words
    if column in ("s2s", "sql"):
        data["instruction"] = SHARED
    if column == "sql":
        data["databases"] = str(folder)
        _write_zoo(folder / "zoo.sqlite")
    switch = "auto" if fast else "off"
    return {
        "model": str(base),
        "task": task,
        "data": data,
        "train": {
            "epochs": 2,
            "batch_size": TRAIN if fast else TRAIN // 2,
            "accumulation": 1 if fast else 2,
            "learning_rate": 1e-3,
            "scheduler": "constant",
            "warmup": 0,
            "evaluations": 1,
        },
        "regularize": {"dropout": dropout},
        "speed": {"kernels": switch, "packing": switch, "unpad": switch},
        "baselines": {"few_shot": 1},
        "evaluation": {"resamples": 100, "max_new_tokens": CAP, "continuations": 2, "batch_size": 4},
        "guards": {"forgetting": None, "divergence": None, "overfitting": None},
        "checkpoints": None,
    }


def _write(path: Path, row: Callable[[int], Row], numbers: range) -> str:
    path.write_text("".join(json.dumps(row(number)) + "\n" for number in numbers), encoding="utf-8")
    return str(path)


def _write_zoo(path: Path) -> None:
    if path.exists():
        return
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE animal (name TEXT, legs INTEGER)")
        connection.execute("INSERT INTO animal VALUES ('fox', 4), ('hen', 2)")
