"""Write the example data sets as files: ``train.jsonl`` and ``eval.jsonl`` in a folder."""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

#: Rows as lines of JSON.
Lines = Sequence[bytes]


def write_contracts(folder: Path, n: int = 1500) -> dict[Path, int]:
    """Write ``n`` of 4000 clauses with the columns ``text``, ``label`` and ``contract``."""
    return _write(folder, *split_contracts(_lines("contracts")[:n]))


def split_contracts(lines: Lines) -> tuple[Lines, Lines]:
    """Return the rows to train on and those for evaluation: a third, 500 at most, and no contract is in both."""
    contracts = [json.loads(line)["contract"] for line in lines]
    first = contracts.index(contracts[-min(500, len(lines) // 3)])
    return lines[:first], lines[first:]


def write_text2sql(folder: Path) -> dict[Path, int]:
    """Write rows with ``question``, ``sql``, ``db_id`` and ``template``, and SQLite files in ``databases``."""
    databases = folder / "databases"
    databases.mkdir(parents=True, exist_ok=True)
    for name in ("clinic", "library", "shop"):
        _replace(databases / f"{name}.sqlite", _content(f"{name}.sqlite"))
    return _write(folder, _lines("text2sql-train"), _lines("text2sql-eval"))


def write_tales(folder: Path) -> dict[Path, int]:
    """Write folk tales in a northern English dialect with the columns ``id``, ``title``, ``text`` and ``theme``."""
    return _write(folder, _lines("tales-train"), _lines("tales-eval"))


#: Writer of each data set: it makes the folder, and returns the number of rows of each file.
DATASETS: Mapping[str, Callable[[Path], dict[Path, int]]] = {
    "contracts": write_contracts,
    "tales": write_tales,
    "text2sql": write_text2sql,
}


def _content(name: str) -> bytes:
    return lzma.decompress(files("fulltune.data.demo").joinpath(f"{name}.xz").read_bytes())


def _lines(name: str) -> Lines:
    # Only \n ends a row: a text may hold other characters that end lines.
    return [line + b"\n" for line in _content(f"{name}.jsonl").removesuffix(b"\n").split(b"\n")]


def _write(folder: Path, train: Lines, evaluation: Lines) -> dict[Path, int]:
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for name, lines in (("train", train), ("eval", evaluation)):
        path = folder / f"{name}.jsonl"
        _replace(path, b"".join(lines))
        written[path] = len(lines)
    return written


def _replace(path: Path, content: bytes) -> None:
    """Write a file unless it has this content: cached answers depend on the time of a database."""
    if not path.exists() or path.read_bytes() != content:
        path.write_bytes(content)
