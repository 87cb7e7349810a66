"""Write files atomically: into a temporary file in the same folder, flushed to disk, then renamed."""

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
from contextvars import ContextVar
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
    errno.ENOSPC: "free some space, or {instead}",
    errno.EDQUOT: "your quota is used up: free some space, or {instead}",
    errno.EROFS: "the file system is read-only: {instead}",
    errno.EACCES: "this user may not write there: {instead}",
    errno.EPERM: "this user may not write there: {instead}",
    errno.ENOTDIR: "a part of this path is a file: {instead}",
    errno.ENAMETOOLONG: "the name is too long: {instead}",
}

#: What a user can do if a file cannot be written where it was asked for.
_instead = ContextVar("_instead", default="choose another folder with --out")


@contextmanager
def advising(instead: str) -> Iterator[None]:
    """Name another fix than ``--out`` in errors of what is written in the block; also a decorator.

    Args:
        instead: The fix, such as ``"choose another file with --output"``.
    """
    before = _instead.set(instead)
    try:
        yield
    finally:
        _instead.reset(before)


def to_json(value: Any, indent: int | None = None) -> str:
    """Serialize to strict JSON; non-finite floats become ``"NaN"``, ``"Infinity"`` or ``"-Infinity"``.

    Raises:
        StoreError: The value contains something that JSON cannot represent.
    """
    try:
        return _dump(value, indent=indent, inf_nan_mode="strings").decode()
    except PydanticSerializationError as error:
        raise StoreError(f"a value cannot be written as JSON ({error})", fix="correct the row it comes from") from error


@contextmanager
def store_errors(path: Path) -> Iterator[None]:
    """Turn an operating-system error in the block into a :class:`StoreError` with a fix.

    safetensors reports such an error in the text of its own exception. A path that is not valid UTF-8 is rejected,
    since tokenizers and safetensors cannot write to it.

    Args:
        path: File or folder that is written in the block.

    Raises:
        StoreError: The path is not Unicode, or the block raised an error of the operating system.
    """
    if any("\ud800" <= character <= "\udfff" for character in str(path)):
        fix = _instead.get()
        raise StoreError("a path that is not Unicode text", expected="a name in UTF-8", where=str(path), fix=fix)
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = _error_number(error)
        reason = os.strerror(number) if number else str(error)
        fix = _FIXES.get(number or 0, "check the folder, or {instead}").format(instead=_instead.get())
        raise StoreError(f"cannot be written ({reason})", where=str(path), fix=fix) from error


_NO_RIGHT = "this user has no right to it or to a folder above it: change the rights, or name another path"

#: What to do about a file that the system refuses to open or to look for, by error number.
_REFUSED = {
    errno.EACCES: _NO_RIGHT,
    errno.EPERM: _NO_RIGHT,
    errno.EROFS: "the file system is read-only: name another path",
    errno.EIO: "check the disk, or name another path",
    errno.ESTALE: "mount the folder again",
    errno.EMFILE: "allow more open files: `ulimit -n 1024`",
    errno.ENFILE: "the machine has too many open files: end other programs",
    errno.ENOSPC: "free some space, or name another path",
    errno.EDQUOT: "your quota is used up: free some space, or name another path",
}


@contextmanager
def refused_paths() -> Iterator[None]:
    """Turn what rights or the state of the machine refuse in the block into a :class:`StoreError` that names the path.

    Any look for a file can fail so, also ``Path.exists``, if a folder above it may not be searched.

    Raises:
        StoreError: The system refused a path. Other errors of the operating system pass as they are.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) and _is_folder_gone():
            raise StoreError(
                "the current folder was deleted or moved", expected="a folder", fix="change to another one: `cd`"
            ) from error
        fix = _REFUSED.get(error.errno or 0)
        if fix is None or not isinstance(error.filename, (str, bytes)):
            raise
        reason = error.strerror or type(error).__name__
        raise StoreError(f"cannot be used ({reason})", where=os.fsdecode(error.filename), fix=fix) from error


def _is_folder_gone() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def check_name(path: Path) -> None:
    """Check that the system accepts the name of a file or folder, whether it exists or not.

    Raises:
        StoreError: The name is too long, or links in it form a circle.
    """
    with store_errors(path):
        try:
            path.stat()
        except OSError as error:
            if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
                raise


def check_writable(folder: Path) -> None:
    """Check that a folder can be written, or made, without writing anything.

    Raises:
        StoreError: It cannot.
    """
    with store_errors(folder):
        existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
        if existing.is_symlink() and not existing.exists():
            fix = "create what it points to, or choose another folder with --out"
            link = f"a broken link to {os.readlink(existing)!r}"
            raise StoreError(link, expected="a folder", where=str(existing), fix=fix)
        if not existing.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(existing, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _error_number(error: OSError | SafetensorError) -> int | None:
    """Return the error number of the operating system; None if it is unknown."""
    if isinstance(error, OSError):
        return error.errno
    match = re.search(r"\(os error (\d+)\)", str(error))
    return int(match[1]) if match else None


#: Suffix of an unfinished file: hash of the machine's name, process id, random number.
_OWNER = re.compile(r"\.(?P<machine>[0-9a-f]{8})-(?P<process>\d+)-[0-9a-f]{8}\.part")


def unfinished_path(path: Path) -> Path:
    """Return a unique path in the folder of ``path``, for a file or folder that is not yet complete."""
    return path.with_name(f".{path.name[:100]}.{_machine()}-{os.getpid()}-{secrets.token_hex(4)}.part")


def remove_abandoned(path: Path) -> None:
    """Remove unfinished files for ``path`` that were left by ended processes of this machine."""
    prefix = f".{path.name[:100]}."
    for name in paths.names_in(path.parent):
        owner = _OWNER.fullmatch(name, len(prefix) - 1) if name.startswith(prefix) else None
        if owner and owner["machine"] == _machine() and not psutil.pid_exists(int(owner["process"])):
            remove(path.with_name(name))


def remove_all_unfinished(folder: Path) -> None:
    """Remove every unfinished file and folder below ``folder``. The caller must be its only writer."""
    for path in list(folder.rglob(".*.part")):
        remove(path)


def remove(path: Path) -> None:
    """Remove a file or folder; errors are ignored."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


@cache
def _machine() -> str:
    """Return a short hash of this machine's name."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


@contextmanager
def atomic(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Yield a function that writes bytes to a temporary file, which replaces ``path`` if the block succeeds.

    Raises:
        StoreError: The disk is full or read-only; ``path`` is unchanged. Other errors of the block pass through.
    """
    temporary = unfinished_path(path)
    with store_errors(path):
        remove_abandoned(path)
        file = temporary.open("xb")

    def write(data: bytes) -> None:
        with store_errors(path):
            file.write(data)

    try:
        yield write
        with store_errors(path):
            file.flush()
            os.fsync(file.fileno())
            file.close()
            os.replace(temporary, path)
            sync_folder(path.parent)
    finally:
        with store_errors(path):
            temporary.unlink(missing_ok=True)
            file.close()


def atomic_text(path: Path, text: str) -> Path:
    """Write UTF-8 text to ``path`` atomically, and return the path."""
    with atomic(path) as write:
        write(text.encode("utf-8"))
    return path


@contextmanager
def append_lines(path: Path) -> Iterator[Callable[[Any], None]]:
    """Yield a function that appends a value as one line of JSON.

    Raises:
        StoreError: The disk is full or read-only. Other errors of the block pass through.
    """
    with store_errors(path):
        file = path.open("ab")

    def write(value: Any) -> None:
        line = to_json(value).encode() + b"\n"
        with store_errors(path):
            file.write(line)
            file.flush()

    try:
        yield write
    finally:
        with store_errors(path):
            file.close()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 hash of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def files_sha256(paths: Iterable[Path]) -> str:
    """Return one SHA-256 hash over the names and contents of files, in the given order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def folder_bytes(folder: Path) -> int:
    """Return the total size of all files below a folder in bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def sync_folder(folder: Path) -> None:
    """Flush a folder to disk, so that renames in it are durable."""
    if os.name == "nt":  # Windows cannot open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
