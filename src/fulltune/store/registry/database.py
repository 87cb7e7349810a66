"""Define the registry's SQLite file: its tables, and concurrent access.

In WAL mode readers continue while one process writes; a writer waits up to :data:`PATIENCE` seconds for another. Every
commit is flushed to disk.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from fulltune.errors import StoreError
from fulltune.runtime.files import store_errors, sync_folder

#: Seconds that a writer waits for other writers.
PATIENCE = 60.0

SCHEMA = 2

#: Versions in other formats; not part of schema 1.
_ARTIFACTS = """
CREATE TABLE IF NOT EXISTS artifacts (
    name TEXT NOT NULL, number INTEGER NOT NULL, format TEXT NOT NULL, body TEXT NOT NULL,
    PRIMARY KEY (name, number, format), FOREIGN KEY (name, number) REFERENCES versions
)
"""

_TABLES = f"""
CREATE TABLE versions (
    name TEXT NOT NULL, number INTEGER NOT NULL, sha256 TEXT NOT NULL, source TEXT NOT NULL, body TEXT NOT NULL,
    PRIMARY KEY (name, number), UNIQUE (name, source, sha256)
);
CREATE TABLE aliases (
    name TEXT NOT NULL, alias TEXT NOT NULL, number INTEGER NOT NULL,
    PRIMARY KEY (name, alias), FOREIGN KEY (name, number) REFERENCES versions
);
CREATE TABLE moves (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, alias TEXT NOT NULL,
    before INTEGER, after INTEGER NOT NULL, action TEXT NOT NULL,
    who TEXT NOT NULL, at TEXT NOT NULL, reason TEXT NOT NULL
);
CREATE TABLE collected (
    name TEXT NOT NULL, number INTEGER NOT NULL, at TEXT NOT NULL,
    PRIMARY KEY (name, number), FOREIGN KEY (name, number) REFERENCES versions
);
CREATE TRIGGER versions_stay BEFORE UPDATE ON versions BEGIN SELECT RAISE(ABORT, 'versions never change'); END;
CREATE TRIGGER versions_remain BEFORE DELETE ON versions BEGIN SELECT RAISE(ABORT, 'versions never change'); END;
CREATE TRIGGER moves_stay BEFORE UPDATE ON moves BEGIN SELECT RAISE(ABORT, 'history never changes'); END;
CREATE TRIGGER moves_remain BEFORE DELETE ON moves BEGIN SELECT RAISE(ABORT, 'history never changes'); END;
{_ARTIFACTS};
PRAGMA user_version = {SCHEMA};
"""


def create(path: Path) -> None:
    """Create the file if it does not exist, atomically even if several processes try at once.

    Raises:
        StoreError: The file cannot be written.
    """
    if path.exists():
        return
    with store_errors(path), errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".new-") as folder:
            new = Path(folder) / path.name
            with closing(sqlite3.connect(new, isolation_level=None)) as db:
                # Set the mode before the file is shared: changing it later does not wait for other connections.
                db.execute("PRAGMA journal_mode = WAL")
                db.executescript(_TABLES)
            try:
                os.link(new, path)
            except FileExistsError:
                return
        sync_folder(path.parent)


def connect(path: Path | None) -> sqlite3.Connection:
    """Return a connection to a file of :func:`create`, or to empty tables in memory.

    Raises:
        StoreError: The file was written by a newer fulltune.
    """
    if path is None:
        db = sqlite3.connect(":memory:", isolation_level=None)
        db.executescript(_TABLES)
        return db
    db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True, timeout=PATIENCE, isolation_level=None)
    try:
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("PRAGMA synchronous = FULL")
        if _schema(db) == 1:
            with transaction(db):
                db.execute(_ARTIFACTS)
                db.execute(f"PRAGMA user_version = {SCHEMA}")
        schema = _schema(db)
        if schema != SCHEMA:
            raise StoreError(
                f"the registry has schema {schema}", expected=str(SCHEMA), where=str(path), fix="upgrade fulltune"
            )
    except BaseException:
        db.close()
        raise
    return db


def _schema(db: sqlite3.Connection) -> int:
    (schema,) = db.execute("PRAGMA user_version").fetchone()
    return int(schema)


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Commit all statements of the block or none; other writers wait from its first line on."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


@contextmanager
def errors(path: Path) -> Iterator[None]:
    """Convert exceptions of SQLite to one message."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        fix = "check that the disk has space and the file is intact: `fulltune models verify` reads all of it"
        if "locked" in str(error):
            fix = "another process holds the lock: wait for it, then try again"
        if "readonly" in str(error):
            fix = "this user may not write there: copy the runs folder, and name the copy with --out"
        raise StoreError(f"the registry cannot be used ({error})", where=str(path), fix=fix) from error
