"""The example data sets as files: ``train.jsonl`` and ``eval.jsonl`` in a folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from fulltune.data.demo.contracts import make_contracts
from fulltune.data.demo.tales import Language, make_tales
from fulltune.data.demo.text2sql import make_text2sql

Rows = list[dict[str, Any]]


class WriteDataset(Protocol):
    """Writes a data set into a folder, which it makes; gives the number of rows of each file."""

    def __call__(self, folder: Path, *, seed: int = 17) -> dict[Path, int]: ...


def write_contracts(folder: Path, *, seed: int = 17, n: int = 1500) -> dict[Path, int]:
    """Columns ``text``, ``label``, ``contract``; two thirds of the contracts for training, no contract in both."""
    train, evaluation = _split(make_contracts(n, seed=seed), "contract", 2 / 3)
    return _write(folder, {"train": train, "eval": evaluation})


def write_text2sql(folder: Path, *, seed: int = 17) -> dict[Path, int]:
    """Columns ``question``, ``sql``, ``db_id``, ``template``; the SQLite files stand in ``databases``."""
    return _write(folder, make_text2sql(folder / "databases", seed=seed))


def write_tales(folder: Path, *, seed: int = 17, language: Language = "ru") -> dict[Path, int]:
    """Columns ``id``, ``title``, ``text``, ``plot``, ``language``; the last fifth of the tales for evaluation."""
    tales = make_tales(seed=seed, language=language)
    cut = len(tales) * 4 // 5
    return _write(folder, {"train": tales[:cut], "eval": tales[cut:]})


def write_english_tales(folder: Path, *, seed: int = 17) -> dict[Path, int]:
    """As :func:`write_tales`, in English."""
    return write_tales(folder, seed=seed, language="en")


#: Name → what writes it.
DATASETS: Mapping[str, WriteDataset] = {
    "contracts": write_contracts,
    "tales": write_tales,
    "tales-en": write_english_tales,
    "text2sql": write_text2sql,
}


def _split(rows: Iterable[dict[str, Any]], group: str, share: float) -> tuple[Rows, Rows]:
    """The first ``share`` of the groups, and the rest; generated groups come in no particular order."""
    rows = list(rows)
    groups = list(dict.fromkeys(row[group] for row in rows))
    first = set(groups[: round(share * len(groups))])
    return [row for row in rows if row[group] in first], [row for row in rows if row[group] not in first]


def _write(folder: Path, splits: Mapping[str, Rows]) -> dict[Path, int]:
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for name, rows in splits.items():
        path = folder / f"{name}.jsonl"
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.write_text("".join(lines), encoding="utf-8", newline="\n")
        written[path] = len(rows)
    return written
