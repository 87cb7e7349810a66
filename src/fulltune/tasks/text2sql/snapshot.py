"""Open a database file without touching it: as it is, or as a copy where a journal is next to it."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from fulltune.errors import DataError

#: Files of SQLite beside a database that hold changes which the database itself does not have yet.
_JOURNALS = ("-wal", "-journal")
#: Databases with a journal are copied up to this size, in bytes.
MAX_COPY = 4 << 30
_TRIES = 3

Stamp = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Source:
    """What SQLite opens, and what changes when the file does."""

    uri: str
    stamp: Stamp


def source(path: Path) -> Source:
    """Return how to open a database so that neither it nor anything beside it is changed.

    A plain file is opened as immutable. SQLite then reads no journal, so a database that has one (``-wal`` of a
    database in write-ahead mode, ``-journal`` after a crash) is copied with it to a temporary folder of this process.

    Raises:
        DataError: There is no such file, it cannot be read, or it is being written to.
    """
    if not _is_file(path):
        raise DataError(
            "there is no such database",
            expected="a SQLite file",
            fix="check data.databases and the row's db_id; databases are opened read-only and never made",
            where=printable(str(path)),
        )
    whole = path.resolve()
    try:
        stamp = _stamp(whole)
        opened = _copy(whole, stamp) if len(stamp) > 1 else whole
    except OSError as error:
        raise DataError(
            f"this cannot be read ({error.strerror})", expected="a SQLite file", where=printable(str(path))
        ) from error
    mode = "mode=rw" if len(stamp) > 1 else "mode=ro&immutable=1"
    return Source(f"{opened.as_uri()}?{mode}", stamp)


def printable(text: str, most: int = 200) -> str:
    """Return the text without control characters, cut in the middle when it is long."""
    shown = text if text.isprintable() else ascii(text)[1:-1]
    return shown if len(shown) <= most else f"{shown[: most // 2]}…{shown[-most // 2 :]}"


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that the system does not take
        return False


def _stamp(path: Path) -> Stamp:
    """Name, size and time of the database and of the journals beside it that hold anything."""
    journals = [path.with_name(path.name + ending) for ending in _JOURNALS]
    files = [path, *(journal for journal in journals if journal.is_file() and journal.stat().st_size)]
    facts = [(file.name, file.stat()) for file in files]
    return tuple((name, found.st_size, found.st_mtime_ns) for name, found in facts)


@lru_cache(maxsize=256)
def _copy(path: Path, stamp: Stamp) -> Path:
    """A copy of the database and its journals, made between two looks that see the same."""
    if sum(size for _, size, _ in stamp) > MAX_COPY:
        raise DataError(
            "this database has a journal beside it and is too large to be copied",
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
        expected="one that stays as it is while it is read",
        fix="end the program that writes to it, or copy it with: sqlite3 FILE '.backup COPY'",
        where=printable(str(path)),
    )


@cache
def _folder(pid: int) -> Path:
    """A temporary folder of this process, removed at its exit."""
    folder = Path(tempfile.mkdtemp(prefix="fulltune-"))

    def remove() -> None:
        if os.getpid() == pid:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder
