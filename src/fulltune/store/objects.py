"""Store files by content: each under its own SHA-256, read-only, and only once.

    entry = Objects(Path("runs/registry/objects")).put(Path("runs/x/model/model.safetensors"))

Weights on the same disk are hard-linked, which makes the originals read-only too; other files are copied.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Container, Iterator
from pathlib import Path

from fulltune.errors import Problem
from fulltune.runtime.files import (
    file_sha256,
    files_sha256,
    remove_abandoned,
    store_errors,
    sync_folder,
    unfinished_path,
)
from fulltune.store.manifest import FileEntry

#: Files that define a checkpoint: only these are hashed and downloaded from a hub. Pickle files are excluded.
CHECKPOINT_FILES = ("*.safetensors", "*.gguf", "*.json", "*.txt", "*.model", "*.jinja")

#: Files below this size (bytes) are copied: users edit configs in place, but not weights.
_SMALL = 1 << 20

_UNFINISHED = ".part"

#: Name of a file until its hash is known.
_NEW = "new"

#: Seconds after which an unfinished file counts as abandoned.
_ABANDONED = 24 * 3600


def checkpoint_files(folder: Path) -> list[Path]:
    """Return the files of a checkpoint folder that are hashed, in the order of the hash."""
    return sorted(path for pattern in CHECKPOINT_FILES for path in folder.glob(pattern))


def checkpoint_sha256(folder: Path) -> str:
    """Return one hash over the names and bytes of all files of a checkpoint."""
    return files_sha256(checkpoint_files(folder))


class Objects:
    """A folder of files that are stored by content."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, sha256: str) -> Path:
        """Return the path of the file with this hash; it need not exist."""
        return self.root / sha256[:2] / sha256

    def put(self, source: Path) -> FileEntry:
        """Store a file; an intact copy stays as it is, a damaged one is replaced.

        Raises:
            StoreError: The source cannot be read, or the disk is full or read-only.
        """
        with store_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            remove_abandoned(self.root / _NEW)
            temporary = unfinished_path(self.root / _NEW)
            try:
                link_or_copy(source, temporary)
                entry = FileEntry(size=temporary.stat().st_size, sha256=file_sha256(temporary))
                if self.problem(entry) is not None:
                    self._move(temporary, self.path(entry.sha256))
            finally:
                temporary.unlink(missing_ok=True)
        return entry

    def _move(self, temporary: Path, goal: Path) -> None:
        os.chmod(temporary, 0o444)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        goal.parent.mkdir(exist_ok=True)
        os.replace(temporary, goal)
        sync_folder(goal.parent)

    def problem(self, entry: FileEntry, name: str = "") -> Problem | None:
        """Read all bytes of a stored file; return a problem if it is missing or damaged, otherwise None."""
        path = self.path(entry.sha256)
        what = name or "the file"
        if not path.is_file():
            return Problem(f"{what} is missing", f"{entry.size:,} bytes", where=str(path))
        if path.stat().st_size != entry.size or file_sha256(path) != entry.sha256:
            return Problem(f"{what} is damaged", f"content with the SHA-256 {entry.sha256[:12]}…", where=str(path))
        return None

    def unneeded(self, needed: Container[str]) -> Iterator[Path]:
        """Yield files that are not needed, and unfinished files that are older than :data:`_ABANDONED` seconds."""
        for path in self.root.glob("??/*"):
            if path.name not in needed:
                yield path
        for path in self.root.glob(f".*{_UNFINISHED}"):
            if time.time() - path.stat().st_ctime > _ABANDONED:
                yield path


def link_or_copy(source: Path, goal: Path) -> None:
    """Hard-link the file if it is large and the disk allows it; otherwise copy it."""
    if source.stat().st_size < _SMALL:
        shutil.copyfile(source, goal)
        return
    try:
        os.link(source.resolve(), goal)
    except OSError:
        shutil.copyfile(source, goal)
