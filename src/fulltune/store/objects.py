"""Files kept by content: each lies under its own SHA-256, read-only, once however often it is used.

    entry = Objects(Path("runs/registry/objects")).put(Path("runs/x/model/model.safetensors"))

Weights on the same disk are hard-linked and become read-only where they are; anything else is copied.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Container, Iterator
from pathlib import Path

from fulltune.errors import Problem
from fulltune.runtime.files import file_sha256, files_sha256, remove_abandoned, storing, sync_folder, unfinished_path
from fulltune.store.manifest import FileEntry

#: Files that make a checkpoint what it is: these are hashed, and only these are fetched from a hub. No pickle is.
CHECKPOINT_FILES = ("*.safetensors", "*.gguf", "*.json", "*.txt", "*.model", "*.jinja")

#: Bytes below which a file is copied: configs get edited where they lie, weights do not.
_SMALL = 1 << 20

_UNFINISHED = ".part"

#: What a file is called until its content is known.
_NEW = "new"

#: Seconds after which a half-written file belongs to nobody any more.
_ABANDONED = 24 * 3600


def checkpoint_files(folder: Path) -> list[Path]:
    """The files of a checkpoint's folder that its hash is taken of, in the hash's order."""
    return sorted(path for pattern in CHECKPOINT_FILES for path in folder.glob(pattern))


def checkpoint_sha256(folder: Path) -> str:
    """One hash over the names and the bytes of all files of a checkpoint."""
    return files_sha256(checkpoint_files(folder))


class Objects:
    """A folder of files by content."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, sha256: str) -> Path:
        """Where the file with this hash lies, if it is there."""
        return self.root / sha256[:2] / sha256

    def put(self, source: Path) -> FileEntry:
        """Keep a file; one that is there already and whole stays, a damaged one is replaced.

        Raises:
            StoreError: It cannot be read, or the disk is full or read-only.
        """
        with storing(self.root):
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
        """What is wrong with the file that should be there, every byte read; None if nothing is."""
        path, what = self.path(entry.sha256), name or "the file"
        if not path.is_file():
            return Problem(f"{what} is missing", f"{entry.size:,} bytes", where=str(path))
        if path.stat().st_size != entry.size or file_sha256(path) != entry.sha256:
            return Problem(f"{what} is damaged", f"content with the SHA-256 {entry.sha256[:12]}…", where=str(path))
        return None

    def unneeded(self, needed: Container[str]) -> Iterator[Path]:
        """Files that nobody needs, and what killed processes left half-written a day ago or longer."""
        for path in self.root.glob("??/*"):
            if path.name not in needed:
                yield path
        for path in self.root.glob(f".*{_UNFINISHED}"):
            if time.time() - path.stat().st_ctime > _ABANDONED:
                yield path


def link_or_copy(source: Path, goal: Path) -> None:
    """The same file under a second name where that saves space and the disk allows it, else its bytes again."""
    if source.stat().st_size < _SMALL:
        shutil.copyfile(source, goal)
        return
    try:
        os.link(source.resolve(), goal)
    except OSError:
        shutil.copyfile(source, goal)
