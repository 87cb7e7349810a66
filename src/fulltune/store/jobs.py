"""Folders of resumable jobs: one for each set of arguments, locked by one process at a time."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fulltune.config import Config, DataSource
from fulltune.errors import StoreError
from fulltune.runtime import paths
from fulltune.runtime.files import file_sha256, files_sha256, store_errors, to_json
from fulltune.runtime.version import __version__


def job_folder(out: str | Path, kind: str, config: Config, arguments: Mapping[str, Any]) -> Path:
    """Return ``out/KIND-TASK-MODEL-HASH``: the same for the same config, data, arguments and version of fulltune."""
    data = config.data
    known = {
        "fulltune": __version__,
        "config": config.model_dump(mode="json"),
        "data": [_fingerprint(name) for name in (data.train, data.valid, data.eval, data.databases, data.schemas)],
        **arguments,
    }
    digest = hashlib.sha256(to_json(known).encode()).hexdigest()[:8]
    model = re.sub(r"[^a-z0-9.]+", "-", config.model.rstrip("/").rpartition("/")[2].lower()).strip("-.")
    return Path(out) / f"{kind}-{config.task}-{model[:32]}-{digest}"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create the folder and lock it for the duration of the block.

    Raises:
        StoreError: Another process holds the lock, or the folder cannot be written.
    """
    with store_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise StoreError(
                "another process is using this folder", where=str(folder), fix="wait until it ends"
            ) from None
    try:
        yield
    finally:
        lock.release()


def _fingerprint(name: DataSource | float | None) -> str:
    """Return a hash of the contents of a file, folder, pattern or list; for any other name, the name itself."""
    if isinstance(name, tuple):
        return hashlib.sha256("\n".join(map(_fingerprint, name)).encode()).hexdigest()
    files = []
    if isinstance(name, str):
        files = [file for path in paths.matches(name) for file in _files(Path(path))]
    if not files:
        return str(name)
    return file_sha256(files[0]) if files == [Path(str(name))] else files_sha256(files)


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
