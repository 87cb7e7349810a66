"""Rows that a Python program hands over (data frames, data sets, lists of dicts) become a file, named by its content.

What a config names can be read again by another process, so a run that began from rows in memory resumes, is planned
and is compared as any other does, as long as the file is in the user's cache (``$FULLTUNE_CACHE/rows``).
"""

from __future__ import annotations

import datetime
import enum
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path, PurePath
from typing import Any
from uuid import UUID

from fulltune.errors import ConfigError, Problem, shortened
from fulltune.runtime import paths
from fulltune.runtime.class_labels import class_names, features_of, ids_to_names

_LOG = logging.getLogger(__name__)

_ACCEPTED = (
    "a path, a list of paths, a fraction, a list of dicts, a pandas or polars data frame, a pyarrow Table, "
    "or a datasets.Dataset"
)


def as_source(value: Any, field: str, read: Collection[str] = ()) -> Any:
    """Return what a config can hold: the value itself, or the path of a file with the rows that it is.

    Args:
        value: The value of ``data.train``, ``data.valid`` or ``data.eval``.
        field: Its key, for messages.
        read: Columns that the run may read. Others are left out where no file can hold their values.

    Raises:
        ConfigError: Neither a path nor rows that end, or a column in ``read`` has values that no file can hold.
    """
    if value is None or isinstance(value, (str, bytes, int, float, os.PathLike)):
        return value
    if isinstance(value, (list, tuple)) and all(isinstance(item, (str, os.PathLike)) for item in value):
        if not value:
            raise ConfigError("an empty list", expected=_ACCEPTED, field=field)
        return value
    return str(_written(_rows(value, field), field, read))


def check_model_reference(value: Any) -> None:
    """Check that a model is named, not handed over: a run must be able to load it again.

    Raises:
        ConfigError: It is an object.
    """
    if value is None or isinstance(value, (str, bool, int, float, list, dict, os.PathLike)):
        return
    raise ConfigError(
        f"an object of class {type(value).__name__}",
        expected="the name of a model: a hub id, a folder, a run or a version of the registry",
        fix="save model and tokenizer to one folder with save_pretrained(folder), and name the folder",
        field="model",
    )


def _rows(value: Any, field: str) -> Iterable[Mapping[str, Any]]:
    package = type(value).__module__.partition(".")[0]
    kind = type(value).__name__
    if package == "pandas" and kind == "DataFrame":
        frame = value.reset_index() if _names_its_index(value) else value
        _refuse_repeated(list(map(str, frame.columns)), field)
        return _records(frame.astype(object).where(frame.notna(), None).to_dict("records"))
    if package == "polars" and kind in ("DataFrame", "LazyFrame"):
        return _records((value.collect() if kind == "LazyFrame" else value).to_dicts())
    if package == "pyarrow" and kind == "Table":
        _refuse_repeated(value.column_names, field)
        return _of_table(value)
    if package == "datasets" and kind == "Dataset":
        return _of_dataset(value)
    if isinstance(value, (list, tuple)) and all(isinstance(item, Mapping) for item in value):
        for row in value:
            _refuse_repeated(list(map(str, row)), field)
        return _records(value)
    fix = (
        'choose a split: data["train"]' if kind in ("DatasetDict", "IterableDatasetDict") else "make it a list of dicts"
    )
    raise ConfigError(f"an object of class {kind}", expected=_ACCEPTED, fix=fix, field=field)


def _names_its_index(frame: Any) -> bool:
    """Return whether the index of a data frame is a column with a name of its own."""
    return all(isinstance(name, str) and name not in frame.columns for name in frame.index.names)


def _refuse_repeated(names: Sequence[str], field: str) -> None:
    """Check that no two columns have one name, of which only one would be kept.

    Raises:
        ConfigError: They have.
    """
    if len(set(names)) < len(names):
        name = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"two columns are called {name!r}", fix="rename one of them", field=field)


def _records(rows: Iterable[Mapping[Any, Any]]) -> Iterable[Mapping[str, Any]]:
    return ({str(name): value for name, value in row.items()} for row in rows)


def _of_table(table: Any) -> Iterable[Mapping[str, Any]]:
    """Yield the rows of a ``pyarrow.Table``; classes go by the names that ``datasets`` wrote into its schema."""
    names = class_names(features_of(table.schema.metadata or {}, "a pyarrow Table"))
    for row in table.to_pylist():
        yield {name: ids_to_names(value, names[name]) if name in names else value for name, value in row.items()}


def _of_dataset(data: Any) -> Iterable[Mapping[str, Any]]:
    """Yield the rows of a ``datasets.Dataset``; classes go by name, as in its own files."""
    names = class_names(data.features)
    for row in data.with_format(None):
        yield {name: ids_to_names(value, names[name]) if name in names else value for name, value in row.items()}


def _written(rows: Iterable[Mapping[str, Any]], field: str, read: Collection[str]) -> Path:
    """Write rows as JSON Lines, without the columns that JSON cannot hold and that are not in ``read``."""
    plain = [{name: _plain(value) for name, value in row.items()} for row in rows]
    if not plain:
        raise ConfigError("no rows", expected="at least one", field=field)
    left_out = _unwritable(plain)
    problems = [_problem(name, number, other, field) for name, (number, other) in left_out.items() if name in read]
    if problems:
        raise ConfigError(problems)
    if left_out:
        columns = ", ".join(f"{name} ({other.kind})" for name, (_, other) in sorted(left_out.items()))
        _LOG.warning("%s: columns left out, their values are no text, number or list: %s", field, columns)
    lines = [json.dumps({name: value for name, value in row.items() if name not in left_out}) for row in plain]
    data = ("\n".join(lines) + "\n").encode()
    path = paths.cache_folder() / "rows" / f"{hashlib.sha256(data).hexdigest()[:32]}.jsonl"
    if not path.exists():
        _write(path, data)
        _LOG.info("%s: %d rows written to %s", field, len(plain), path)
    return path


def _unwritable(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, _Other]]:
    """Return the columns with values that JSON cannot hold: the number of the first such row, and what it holds."""
    found = dict[str, tuple[int, _Other]]()
    for number, row in enumerate(rows, start=1):
        for name, value in row.items():
            if isinstance(value, _Other):
                found.setdefault(name, (number, value))
    return found


def _problem(column: str, row: int, other: _Other, field: str) -> Problem:
    found = f"a value of type {other.kind} in row {row} ({other.shown})"
    fix = f"write the column as text before: rows[{column!r}] = [str(value) for value in rows[{column!r}]]"
    if other.kind in ("bytes", "bytearray", "memoryview"):
        fix = f'decode it before: rows[{column!r}] = [value.decode("utf-8") for value in rows[{column!r}]]'
    return Problem(found, "text, a number, or a list of these", fix, f"{field}, column {column!r}")


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            file.write(data)
        os.replace(file.name, path)
    except OSError as error:
        raise ConfigError(
            f"rows in memory cannot be written ({error.strerror})",
            where=str(path.parent),
            fix=f"set {paths.CACHE_VARIABLE} to a folder that this user may write to",
        ) from error


@dataclass(frozen=True)
class _Other:
    """A value that JSON does not hold: the name of its type, and how it prints."""

    kind: str
    shown: str

    @classmethod
    def of(cls, value: Any) -> _Other:
        return cls(type(value).__name__, shortened(value, 40))


#: How deep values of a row may be nested, and bits of a number that JSON readers take.
_DEEPEST, _LONGEST_NUMBER = 40, 10_000


def _plain(value: Any, depth: int = 0) -> Any:
    """Return a value as JSON holds it; an :class:`_Other` if JSON holds no such value, or a part is one."""
    if hasattr(value, "tolist") and hasattr(value, "dtype"):  # numpy
        value = _of_numpy(value)
    if isinstance(value, enum.Enum):
        value = value.value if isinstance(value.value, str) or isinstance(value, int) else value.name
    if isinstance(value, int) and value.bit_length() > _LONGEST_NUMBER:
        return _Other("int, of too many digits", shortened(value))
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if depth > _DEEPEST:
        return _Other(f"{type(value).__name__}, nested too deeply", "…")
    if isinstance(value, Mapping):
        parts = {str(name): _plain(part, depth + 1) for name, part in value.items()}
        return next((part for part in parts.values() if isinstance(part, _Other)), parts)
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [_plain(item, depth + 1) for item in value]
        other = next((item for item in items if isinstance(item, _Other)), None)
        # The order of a set of texts differs from process to process.
        return other or (sorted(items, key=repr) if isinstance(value, (set, frozenset)) else items)
    return str(value) if _has_one_text(value) else _Other.of(value)


def _of_numpy(value: Any) -> Any:
    """Return a NumPy value or a tensor as Python has it; times of nanoseconds, which Python does not have, as text."""
    if getattr(value.dtype, "kind", "O") not in "mM":
        return value.tolist()
    return value.astype(str).tolist() if value.ndim else str(value)


def _has_one_text(value: Any) -> bool:
    """Return whether a value prints in one way that everyone expects: dates, decimals, paths, UUIDs, intervals."""
    if isinstance(value, (datetime.date, datetime.time, datetime.timedelta, Decimal, PurePath, UUID)):
        return True
    return type(value).__module__.partition(".")[0] == "pandas" and type(value).__name__ in ("Interval", "Period")
