"""A database's schema as one line for the prompt, and the file of a database by its id."""

from __future__ import annotations

import re
import sqlite3
from collections import defaultdict
from contextlib import closing
from pathlib import Path

from fulltune.errors import DataError
from fulltune.tasks.text2sql.execution import open_readonly

_PLAIN = re.compile(r"[A-Za-z_]\w*\Z", re.ASCII)
_ENDINGS = (".sqlite", ".db")
_SHOWN = 10
# CREATE statements write to the schema table and nothing else; they never read rows, open files or call the system.
_REFUSED = frozenset(
    {
        sqlite3.SQLITE_ATTACH,
        sqlite3.SQLITE_DETACH,
        sqlite3.SQLITE_SELECT,
        sqlite3.SQLITE_RECURSIVE,
        sqlite3.SQLITE_CREATE_VTABLE,
    }
)


def read_schema(path: str | Path) -> str:
    """The schema of a SQLite file in one line: ``city(name text, state_id int; state_id = state.id) | state(id int)``.

    Tables stand in the order in which they were made, columns in theirs, types in lower case; after the semicolon the
    foreign keys, written as the condition of a join. Names that SQL would misread are quoted. ``<``, ``{`` and ``~`` do
    not occur unless a name has them: T5's vocabulary lacks them.

    Raises:
        DataError: The file is missing, is not a SQLite database, or holds no table.
    """
    with closing(open_readonly(Path(path))) as connection:
        return _serialise(connection, str(path))


def from_create(sql: str) -> str:
    """The same line from CREATE statements, which are run on an empty database in memory.

    Raises:
        DataError: SQLite does not take the statements, or they make no table.
    """
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.set_authorizer(lambda action, *_: sqlite3.SQLITE_DENY if action in _REFUSED else sqlite3.SQLITE_OK)
        try:
            connection.executescript(sql)
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
            raise DataError(
                f"the schema cannot be read ({error})",
                expected="CREATE statements of SQLite",
                fix="correct them in data.schemas or leave that out: schemas are then read from the databases",
            ) from None
        connection.set_authorizer(None)
        return _serialise(connection, "")


def find_database(folder: str | Path, db_id: str) -> Path:
    """The SQLite file of a database: ``<db_id>.sqlite``, ``<db_id>/<db_id>.sqlite``, or the same with ``.db``.

    Raises:
        DataError: There is none, or ``db_id`` is a path; the message lists what is there.
    """
    folder = Path(folder)
    if not db_id or db_id in (".", "..") or "/" in db_id or "\\" in db_id:
        raise DataError(f"found {db_id!r}", expected="the name of a database, not a path", field="db_id")
    for ending in _ENDINGS:
        for path in (folder / f"{db_id}{ending}", folder / db_id / f"{db_id}{ending}"):
            if path.is_file():
                return path
    raise DataError(
        f"there is no database {db_id!r}",
        expected=f"{db_id}.sqlite or {db_id}/{db_id}.sqlite",
        fix=_what_is_there(folder),
        where=str(folder),
        field="db_id",
    )


def _what_is_there(folder: Path) -> str:
    if not folder.is_dir():
        return "data.databases must name a folder; this is none"
    files = (path for ending in _ENDINGS for path in (*folder.glob(f"*{ending}"), *folder.glob(f"*/*{ending}")))
    names = sorted({path.stem for path in files})
    if not names:
        return "the folder holds no .sqlite or .db file; check data.databases"
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"the folder has {', '.join(names[:_SHOWN])}{rest}"


def _serialise(connection: sqlite3.Connection, where: str) -> str:
    query = "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY rowid"
    names = [name for (name,) in connection.execute(query) if not name.startswith("sqlite_")]
    if not names:
        raise DataError("the schema has no table", expected="at least one", fix="check the database", where=where)
    return " | ".join(_table(connection, name) for name in names)


def _table(connection: sqlite3.Connection, table: str) -> str:
    # The first two columns of table_info are the position and the name, the third is the declared type.
    info = connection.execute(f"PRAGMA table_info({_quoted(table)})").fetchall()
    columns = ", ".join(f"{_name(connection, name)} {kind.lower()}".rstrip() for _, name, kind, *_ in info)
    keys = ", ".join(_foreign_keys(connection, table))
    return f"{_name(connection, table)}({columns}{'; ' if keys else ''}{keys})"


def _foreign_keys(connection: sqlite3.Connection, table: str) -> list[str]:
    """Each as ``column = table.column``; a key of several columns as several, in the order of its declaration."""
    keys: dict[int, list[str]] = defaultdict(list)
    for key, position, other, column, target, *_ in connection.execute(f"PRAGMA foreign_key_list({_quoted(table)})"):
        target = target or _primary_key(connection, other, position)
        end = f"{_name(connection, other)}.{_name(connection, target)}" if target else _name(connection, other)
        keys[key].append(f"{_name(connection, column)} = {end}")
    # SQLite numbers the keys of a table from the last to the first.
    return [text for key in sorted(keys, reverse=True) for text in keys[key]]


def _primary_key(connection: sqlite3.Connection, table: str, position: int) -> str:
    """What REFERENCES without a column means; empty when the other table is not there."""
    info = connection.execute(f"PRAGMA table_info({_quoted(table)})").fetchall()
    return next((str(name) for _, name, _, _, _, rank in info if rank == position + 1), "")


def _name(connection: sqlite3.Connection, name: str) -> str:
    return name if _PLAIN.match(name) and not _reserved(connection, name) else _quoted(name)


def _reserved(connection: sqlite3.Connection, word: str) -> bool:
    """SQLite knows best which of its keywords can stand as a bare name."""
    try:
        connection.execute(f"SELECT NULL AS {word}")
    except sqlite3.OperationalError:
        return True
    return False


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
