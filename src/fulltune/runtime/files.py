"""Files that are whole or not there: written beside their place, flushed to the disk, then renamed over it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import psutil
from pydantic_core import PydanticSerializationError
from pydantic_core import to_json as _dump
from safetensors import SafetensorError

from fulltune.errors import StoreError
from fulltune.runtime import paths

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

    safetensors tells such an error in the text of its own. A path whose bytes are no text is refused: tokenizers and
    safetensors cannot write to it.
    """
    if any("\ud800" <= character <= "\udfff" for character in str(path)):
        fix = "choose another place with --out"
        raise StoreError("a path that is not Unicode text", expected="a name in UTF-8", where=str(path), fix=fix)
    try:
        yield
    except (OSError, SafetensorError) as error:
        told = re.search(r"\(os error (\d+)\)", str(error))
        number = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
        reason = os.strerror(number) if number else str(error)
        fix = _FIXES.get(number or 0, "check the place, or choose another with --out")
        raise StoreError(f"cannot be written ({reason})", where=str(path), fix=fix) from error


#: What an unfinished file's name says of its process: the machine and the number of the process.
_OWNER = re.compile(r"\.(?P<machine>[0-9a-f]{8})-(?P<process>\d+)-[0-9a-f]{8}\.part")


def unfinished_path(path: Path) -> Path:
    """Return a name beside ``path`` that nobody else has, for a file or folder until it is complete."""
    return path.with_name(f".{path.name[:100]}.{_machine()}-{os.getpid()}-{secrets.token_hex(4)}.part")


def remove_abandoned(path: Path) -> None:
    """Remove what processes of this machine that are gone had begun to write in place of ``path``."""
    prefix = f".{path.name[:100]}."
    for name in paths.names_in(path.parent):
        owner = _OWNER.fullmatch(name, len(prefix) - 1) if name.startswith(prefix) else None
        if owner and owner["machine"] == _machine() and not psutil.pid_exists(int(owner["process"])):
            remove(path.with_name(name))


def remove_all_unfinished(folder: Path) -> None:
    """Remove every unfinished file and folder below ``folder``. Only for who alone may write there."""
    for path in list(folder.rglob(".*.part")):
        remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder, where it is still there and may be removed."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


@cache
def _machine() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


@contextmanager
def atomic(path: Path) -> Iterator[Callable[[bytes], None]]:
    """A function that writes bytes to what takes the place of ``path`` if the block ends well, and vanishes if not.

    Raises:
        StoreError: The disk is full or read-only; ``path`` is as it was before. What else the block raises passes.
    """
    temporary = unfinished_path(path)
    with storing(path):
        remove_abandoned(path)
        file = temporary.open("xb")

    def write(data: bytes) -> None:
        with storing(path):
            file.write(data)

    try:
        yield write
        with storing(path):
            file.flush()
            os.fsync(file.fileno())
            file.close()
            os.replace(temporary, path)
            sync_folder(path.parent)
    finally:
        with storing(path):
            temporary.unlink(missing_ok=True)
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


def sync_folder(folder: Path) -> None:
    """Make the renaming itself durable, where the system can (Windows cannot open a folder)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
