"""Open database files without changing them: directly, or as a copy if there is a journal."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from fulltune.errors import DataError

#: Suffixes of SQLite files next to a database that hold changes which are not in the database yet.
_JOURNALS = ("-wal", "-journal")
#: Databases with a journal are copied up to this size, in bytes.
MAX_COPY = 4 << 30
_TRIES = 3

Stamp = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class DatabaseSource:
    """The URI that SQLite opens, and a stamp that changes with the file."""

    uri: str
    stamp: Stamp


def source(path: Path) -> DatabaseSource:
    """Return how to open a database without changing any file.

    A plain file is opened as immutable. SQLite then reads no journal, so a database with a journal (``-wal`` in
    write-ahead mode, ``-journal`` after a crash) is copied with it to a temporary folder of this process.

    Raises:
        DataError: The file does not exist, cannot be read, or is being written.
    """
    if not _is_file(path):
        raise DataError(
            "there is no such database",
            expected="a SQLite file",
            fix="check data.databases and the row's db_id; databases are opened read-only and never created",
            where=printable(str(path)),
        )
    resolved = path.resolve()
    try:
        stamp = _stamp(resolved)
        opened = _copy(resolved, stamp) if len(stamp) > 1 else resolved
    except OSError as error:
        raise DataError(
            f"this cannot be read ({error.strerror})", expected="a SQLite file", where=printable(str(path))
        ) from error
    mode = "mode=rw" if len(stamp) > 1 else "mode=ro&immutable=1"
    return DatabaseSource(f"{opened.as_uri()}?{mode}", stamp)


def printable(text: str, most: int = 200) -> str:
    """Return the text without control characters; a long text loses its middle."""
    shown = text if text.isprintable() else ascii(text)[1:-1]
    return shown if len(shown) <= most else f"{shown[: most // 2]}…{shown[-most // 2 :]}"


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # not a valid file name on this system
        return False


def _stamp(path: Path) -> Stamp:
    """Return name, size and time of the database and of its nonempty journals."""
    journals = [path.with_name(path.name + ending) for ending in _JOURNALS]
    files = [path, *(journal for journal in journals if journal.is_file() and journal.stat().st_size)]
    stats = [(file.name, file.stat()) for file in files]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


@lru_cache(maxsize=256)
def _copy(path: Path, stamp: Stamp) -> Path:
    """Return a copy of the database and its journals, which did not change while they were copied."""
    if sum(size for _, size, _ in stamp) > MAX_COPY:
        raise DataError(
            "this database has a journal and is too large to be copied",
            expected=f"at most {MAX_COPY >> 30} GB, or no {stamp[1][0]}",
            fix="write the journal into it with: sqlite3 FILE 'PRAGMA wal_checkpoint(TRUNCATE)'",
            where=printable(str(path)),
        )
    for _ in range(_TRIES):
        folder = Path(tempfile.mkdtemp(dir=_folder(os.getpid())))
        for name, _, _ in stamp:
            shutil.copyfile(path.with_name(name), folder / name)
        if _stamp(path) == stamp:
            return folder / path.name
        shutil.rmtree(folder)
        stamp = _stamp(path)
    raise DataError(
        "this database is being written to",
        expected="a database that does not change while it is read",
        fix="end the program that writes to it, or copy it with: sqlite3 FILE '.backup COPY'",
        where=printable(str(path)),
    )


@cache
def _folder(pid: int) -> Path:
    """Return a temporary folder of this process, removed at exit."""
    folder = Path(tempfile.mkdtemp(prefix="fulltune-"))

    def remove() -> None:
        if os.getpid() == pid:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder
