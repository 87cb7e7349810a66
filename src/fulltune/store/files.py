"""Files that are whole or not there: written beside their place, flushed to the disk, then renamed over it."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic_core import PydanticSerializationError
from pydantic_core import to_json as _dump
from safetensors import SafetensorError

from fulltune.errors import StoreError

_FIXES = {
    errno.ENOSPC: "free some space, or choose another place with --out",
    errno.EDQUOT: "your quota is used up: free some space, or choose another place with --out",
    errno.EROFS: "the file system is read-only: choose another place with --out",
    errno.EACCES: "this user may not write there: choose another place with --out",
    errno.EPERM: "this user may not write there: choose another place with --out",
    errno.ENOTDIR: "a part of this path is a file: choose another place with --out",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter place with --out",
}


def to_json(value: Any, indent: int | None = None) -> str:
    """Strict JSON; floats that are no numbers become ``"NaN"``, ``"Infinity"`` or ``"-Infinity"``.

    Raises:
        StoreError: The value holds something that JSON cannot.
    """
    try:
        return _dump(value, indent=indent, inf_nan_mode="strings").decode()
    except PydanticSerializationError as error:
        raise StoreError(f"a value cannot be written as JSON ({error})", fix="mend the row it comes from") from error


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turns an operating-system error in the block into a :class:`StoreError` that says what to do.

    safetensors tells such an error in the text of its own.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        told = re.search(r"\(os error (\d+)\)", str(error))
        number = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
        reason = os.strerror(number) if number else str(error)
        fix = _FIXES.get(number or 0, "check the place, or choose another with --out")
        raise StoreError(f"cannot be written ({reason})", where=str(path), fix=fix) from error


@contextmanager
def atomic(path: Path) -> Iterator[Callable[[bytes], None]]:
    """A function that writes bytes to what takes the place of ``path`` if the block ends well, and vanishes if not.

    Raises:
        StoreError: The disk is full or read-only; ``path`` is as it was before. What else the block raises passes.
    """
    with storing(path):
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    file = os.fdopen(descriptor, "wb")

    def write(data: bytes) -> None:
        with storing(path):
            file.write(data)

    try:
        yield write
        with storing(path):
            file.flush()
            os.fsync(file.fileno())
            file.close()
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
            sync_folder(path.parent)
    finally:
        with storing(path):
            Path(temporary).unlink(missing_ok=True)
            file.close()


def atomic_text(path: Path, text: str) -> Path:
    """Write UTF-8 text to ``path``, whole or not at all."""
    with atomic(path) as write:
        write(text.encode("utf-8"))
    return path


@contextmanager
def append_lines(path: Path) -> Iterator[Callable[[Any], None]]:
    """A function that appends a value as one line of JSON.

    Raises:
        StoreError: The disk is full or read-only. What else the block raises passes.
    """
    with storing(path):
        file = path.open("ab")

    def write(value: Any) -> None:
        line = to_json(value).encode() + b"\n"
        with storing(path):
            file.write(line)
            file.flush()

    try:
        yield write
    finally:
        with storing(path):
            file.close()


def file_sha256(path: Path) -> str:
    """The hash of a file's bytes, read in pieces."""
    whole = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            whole.update(chunk)
    return whole.hexdigest()


def files_sha256(paths: Iterable[Path]) -> str:
    """One hash over the names and the bytes of files, in the order given."""
    whole = hashlib.sha256()
    for path in paths:
        whole.update(f"{path.name} {file_sha256(path)}\n".encode())
    return whole.hexdigest()


def folder_bytes(folder: Path) -> int:
    """Size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _umask() -> int:
    """The process's umask; mkstemp ignores it and makes files that only their owner can read."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync_folder(folder: Path) -> None:
    """Make the renaming itself durable, where the system can (Windows cannot open a folder)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
