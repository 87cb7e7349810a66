"""Folders of long jobs that go on where they were: one for each set of arguments, held by one process at a time."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

import fulltune
from fulltune.config import Config
from fulltune.errors import StoreError
from fulltune.store.files import file_sha256, files_sha256, storing, to_json


def job_folder(out: str | Path, kind: str, config: Config, arguments: Mapping[str, Any]) -> Path:
    """``out/KIND-TASK-MODEL-HASH``: the same for the same config, data, arguments and version of fulltune."""
    data = config.data
    known = {
        "fulltune": fulltune.__version__,
        "config": config.model_dump(mode="json"),
        "data": [_fingerprint(name) for name in (data.train, data.valid, data.eval, data.databases, data.schemas)],
        **arguments,
    }
    digest = hashlib.sha256(to_json(known).encode()).hexdigest()[:8]
    model = re.sub(r"[^a-z0-9.]+", "-", config.model.rstrip("/").rpartition("/")[2].lower()).strip("-.")
    return Path(out) / f"{kind}-{config.task}-{model[:32]}-{digest}"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make the folder, and keep other processes out of it for as long as the block lasts.

    Raises:
        StoreError: Another process is at work there, or nothing can be written.
    """
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise StoreError("another process is at work here", where=str(folder), fix="wait until it ends") from None
    try:
        yield
    finally:
        lock.release()


def _fingerprint(name: str | float | None) -> str:
    """The bytes of a file or of the files in a folder; else the name."""
    path = Path(str(name))
    if not isinstance(name, str) or not path.exists():
        return str(name)
    if path.is_dir():
        return files_sha256(sorted(file for file in path.rglob("*") if file.is_file()))
    return file_sha256(path)
