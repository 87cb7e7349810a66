"""Cache baselines: predictions that depend only on the base model, the data and the prompt.

An entry consists of JSON lines and a last line, the manifest, with their count and SHA-256. An entry that does not
match its manifest is ignored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fulltune.runtime import distributed
from fulltune.runtime.files import atomic, store_errors, to_json


def cache_key(parts: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the parts as canonical JSON; the order of the keys has no effect."""
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def cache_path(out: str | Path, key: str) -> Path:
    """Return the path of the entry with this :func:`cache_key` under ``out``; it need not exist."""
    return Path(out) / "cache" / f"{key}.jsonl"


def write_cache(path: Path, rows: Iterable[Any]) -> int:
    """Write an entry atomically, consuming the rows as they come, and return their count.

    Raises:
        StoreError: The disk is full or read-only.
    """
    with store_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    count = 0
    with atomic(path) as write:
        for row in rows:
            line = to_json(row).encode() + b"\n"
            digest.update(line)
            count += 1
            write(line)
        write(to_json({"count": count, "sha256": digest.hexdigest()}).encode() + b"\n")
    return count


def cached_rows(path: Path, make: Callable[[], Iterable[Any]]) -> Iterable[Any]:
    """Return the rows of an entry; compute and write them first if there is no valid entry.

    All processes of a run compute the rows together. The main process writes and reads the entry and broadcasts it.

    Raises:
        StoreError: The disk is full or read-only.
    """
    if not distributed.on_main(lambda: _checked(path) is not None):
        rows = list(make()) if distributed.size() > 1 else make()
        distributed.on_main(lambda: write_cache(path, rows))
    if distributed.size() == 1:
        return read_cache(path) or ()
    return distributed.on_main(lambda: list(read_cache(path) or ()))


def read_cache(path: Path) -> Iterator[Any] | None:
    """Return an iterator over the rows of an entry, or None if it is missing or damaged (checked before the first)."""
    count = _checked(path)
    return None if count is None else _rows(path, count)


def _rows(path: Path, count: int) -> Iterator[Any]:
    with path.open("rb") as file:
        for _, line in zip(range(count), file, strict=False):
            yield json.loads(line)


def _checked(path: Path) -> int | None:
    """Return the number of rows of a valid entry, or None."""
    digest = hashlib.sha256()
    count, last = -1, b""
    try:
        with path.open("rb") as file:
            for line in file:
                if last:
                    digest.update(last)
                last = line
                count += 1
        manifest = json.loads(last)
    except (OSError, ValueError, RecursionError):
        return None
    return count if manifest == {"count": count, "sha256": digest.hexdigest()} else None
