"""Serialize the schema of a database as one line for the prompt, and locate database files by id."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fulltune.errors import DataError
from fulltune.runtime import paths
from fulltune.tasks.text2sql.execution import request
from fulltune.tasks.text2sql.sandbox import sandbox
from fulltune.tasks.text2sql.snapshot import printable
from fulltune.tasks.text2sql.worker import MAX_SCHEMA

_ENDINGS = (".sqlite", ".db")
_SHOWN = 10
#: Time limit in seconds for reading a schema, or building it from statements.
SECONDS = 5.0


@dataclass(frozen=True)
class Schema:
    """A schema for prompts.

    Attributes:
        line: Tables, columns, types and foreign keys in one line.
        names: Names of tables and columns in one line.
        tables: Names of the tables and views.
        faults: A sentence for each table, view and column that cannot be read.
    """

    line: str
    names: str
    tables: tuple[str, ...]
    faults: tuple[str, ...] = ()


def schema_of_file(path: str | Path) -> Schema:
    """Return the schema of a SQLite file in one line: ``city(name text, state_id int; state_id = state.id) | …``.

    Tables and columns are in the order of their creation, types in lowercase. Foreign keys follow a semicolon, written
    as join conditions. Names that SQL would misread are quoted. ``<``, ``{`` and ``~``, which T5's vocabulary lacks, do
    not occur unless a name contains them. Tables and views that cannot be read (a view on a missing table, a virtual
    table of an unknown module) are omitted from the line and named as faults.

    Raises:
        DataError: The file is missing, is not a SQLite database, or has no readable table.
    """
    answer = request(Path(path), "schema", SECONDS, views=True)
    if "error" not in answer:
        return _schema(answer, str(path))
    # Nested views can multiply without bound; tables cannot.
    tables = _schema(request(Path(path), "schema", SECONDS, views=False), str(path))
    return replace(tables, faults=(*tables.faults, f"all views: {answer['error']}"))


def from_create(sql: str) -> Schema:
    """Return the schema of CREATE statements, which are executed on an empty database in memory.

    They run under the limits of a query, for at most :data:`SECONDS`. Statements that are not about tables and their
    rows are rejected, including all PRAGMAs except ``foreign_keys``.

    Raises:
        DataError: SQLite rejects the statements, they exceed a limit, or they create no table.
    """
    if len(sql) > MAX_SCHEMA:
        raise _no_schema(f"it has {len(sql):,} characters; at most {MAX_SCHEMA:,} are allowed")
    answer = sandbox().ask({"do": "create", "sql": sql}, SECONDS)
    if "error" in answer:
        raise _no_schema(answer["error"])
    return _schema(answer, "")


def _no_schema(why: str) -> DataError:
    return DataError(
        f"the schema cannot be read ({printable(why)})",
        expected="CREATE statements of SQLite",
        fix="correct them in data.schemas, or remove it: schemas are then read from the databases",
    )


def _schema(answer: dict[str, Any], where: str) -> Schema:
    if "error" in answer:
        raise DataError(
            f"its schema cannot be read ({answer['error']})",
            expected=f"a schema that can be read within {SECONDS:g} s",
            fix="replace the file",
            where=printable(where),
        )
    faults = tuple(map(printable, answer["faults"]))
    if answer["line"]:
        return Schema(answer["line"], answer["names"], tuple(answer["tables"]), faults)
    unread = f" that can be read ({'; '.join(faults[:_SHOWN])})" if faults else ""
    raise DataError(
        f"the schema has no table{unread}", expected="at least one", fix="check the database", where=printable(where)
    )


def find_database(folder: str | Path, db_id: str) -> Path:
    """Return the SQLite file of a database: ``<db_id>.sqlite``, ``<db_id>/<db_id>.sqlite``, or the same with ``.db``.

    Raises:
        DataError: There is no such file, or ``db_id`` is not a valid name; the message lists the databases.
    """
    folder = Path(folder)
    if not db_id.isprintable() or not db_id or db_id in (".", "..") or "/" in db_id or "\\" in db_id:
        raise DataError(f"found '{printable(db_id)}'", expected="the name of a database, not a path", field="db_id")
    for ending in _ENDINGS:
        for path in (folder / f"{db_id}{ending}", folder / db_id / f"{db_id}{ending}"):
            if _is_there(path):
                return path
    shown = printable(db_id)
    raise DataError(
        f"there is no database '{shown}'",
        expected=f"{shown}.sqlite or {shown}/{shown}.sqlite" if shown == db_id else "the name of a database",
        fix=_available(folder),
        where=printable(str(folder)),
        field="db_id",
    )


def names_of(files: Iterable[Path]) -> list[str]:
    """Return the sorted names of database files, without the registry of fulltune itself."""
    return sorted({path.stem for path in files if not paths.is_own(path.parent)})


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # the name is too long for the system
        return False


def _available(folder: Path) -> str:
    if not folder.is_dir():
        return "data.databases must name a folder, which this is not"
    files = (path for ending in _ENDINGS for path in (*folder.glob(f"*{ending}"), *folder.glob(f"*/*{ending}")))
    names = list(map(printable, names_of(files)))
    if not names:
        return "the folder has no .sqlite or .db file; check data.databases"
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"the folder has {', '.join(names[:_SHOWN])}{rest}"
