"""Store rows in memory (data frames, datasets, lists of dicts) in a file named by a hash of its content.

A config contains only paths, which other processes can read. So a run that starts from rows in memory can be resumed,
planned and compared like any other run, as long as the file is in the user's cache (``$FULLTUNE_CACHE/rows``).
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import hashlib
import json
import logging
import os
import sqlite3
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from pathlib import Path, PurePath
from typing import Any
from uuid import UUID

from pydantic import BaseModel

from fulltune.errors import ConfigError, Problem, shortened
from fulltune.runtime import paths
from fulltune.runtime.class_labels import class_names, features_of, ids_to_names
from fulltune.runtime.split_names import SPLIT_NAMES

_LOG = logging.getLogger(__name__)

_ACCEPTED = (
    "a path, a list of paths, a list of dicts, a pandas or polars data frame, a pyarrow Table, or a datasets.Dataset"
)


def as_source(value: Any, field: str, read: Collection[str] = ()) -> Any:
    """Return a value that a config can contain: the value itself, or the path of a file with its rows.

    Args:
        value: Value of ``data.train``, ``data.valid`` or ``data.eval``.
        field: Config key, for messages.
        read: Columns that the run may read. Other columns are omitted if their values cannot be stored.

    Raises:
        ConfigError: The value is neither a path nor a finite number of rows, or values of a column in ``read`` cannot
            be stored.
    """
    if value is None or isinstance(value, (str, bytes, Real, os.PathLike)):
        return value
    if isinstance(value, (list, tuple)) and all(isinstance(item, (str, os.PathLike)) for item in value):
        if not value:
            raise ConfigError("an empty list", expected=_ACCEPTED, field=field)
        return value
    return str(_written(_rows(value, field), field, read))


def paths_of(value: Any, field: str) -> tuple[str, ...]:
    """Return the paths that a value of Python names, or the path of a file with its rows.

    Args:
        value: A path, several paths, or rows.
        field: Name of the argument, for messages.

    Raises:
        ConfigError: The value is neither.
    """
    source = None if isinstance(value, (Real, bytes)) else as_source(value, field)
    if source is None:
        raise ConfigError(shortened(value), expected=_ACCEPTED, field=field)
    names = (str(source),) if isinstance(source, (str, os.PathLike)) else tuple(map(str, source))
    if not all(name.strip() for name in names):
        raise ConfigError("an empty path", expected=_ACCEPTED, field=field)
    return names


def is_cached(path: Path) -> bool:
    """Return True if this module wrote the file."""
    return path.suffix == ".jsonl" and path.absolute().parent == (paths.cache_folder() / "rows").absolute()


def with_splits(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a section ``data`` in which a ``datasets.DatasetDict`` is replaced by its splits.

    A dictionary in ``train`` also gives ``valid`` and ``eval``, unless these are set. Without a test split, the
    validation split decides.

    Raises:
        ConfigError: The dictionary has no such split.
    """
    stored = {"train": "train", "valid": "validation", "eval": "test"}
    given = {key: _split(data[key], name, f"data.{key}") for key, name in stored.items() if key in data}
    if type(data.get("train")).__name__ == "DatasetDict":
        parts = {key: _part(data["train"], name) for key, name in stored.items() if data.get(key) is None}
        if "eval" in parts and parts["eval"] is None:
            parts["eval"] = parts.pop("valid", None)
        given |= {key: part for key, part in parts.items() if part is not None}
    return {**data, **given}


def _part(splits: Mapping[str, Any], name: str) -> Any:
    return next((part for key, part in splits.items() if key.lower() in SPLIT_NAMES[name]), None)


def _split(value: Any, name: str, field: str) -> Any:
    if type(value).__name__ != "DatasetDict":
        return value
    part = _part(value, name)
    if part is None:
        problem = f"a DatasetDict without a split named {' or '.join(SPLIT_NAMES[name])}"
        fix = f'choose a split: data["{next(iter(value), "train")}"]'
        raise ConfigError(problem, expected=f"one of its splits: {', '.join(value)}", fix=fix, field=field)
    return part


def check_model_reference(value: Any) -> None:
    """Check that a model is given by name or path: a run must be able to load it again.

    Raises:
        ConfigError: The value is an object.
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
    """Return the rows of a supported object.

    Raises:
        ConfigError: The type is not supported, or two columns have the same name.
    """
    package = type(value).__module__.partition(".")[0]
    type_name = type(value).__name__
    if package == "pandas" and type_name == "DataFrame":
        frame = value.reset_index() if _has_named_index(value) else value
        _check_unique(list(map(str, frame.columns)), field)
        return _records(frame.astype(object).where(frame.notna(), None).to_dict("records"))
    if package == "polars" and type_name in ("DataFrame", "LazyFrame"):
        return _records((value.collect() if type_name == "LazyFrame" else value).to_dicts())
    if package == "pyarrow" and type_name == "Table":
        _check_unique(value.column_names, field)
        return _of_table(value)
    if package == "datasets" and type_name == "Dataset":
        return _of_dataset(value)
    if isinstance(value, (list, tuple)):
        value = [_as_mapping(item) for item in value]
        if value and all(isinstance(item, (list, tuple)) for item in value):
            fix = 'write each row as a dict, such as dict(zip(["text", "label"], row))'
            raise ConfigError("rows without names of columns", expected=_ACCEPTED, fix=fix, field=field)
    if isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
        _check_items(value, field)
    if isinstance(value, (list, tuple)) and all(isinstance(item, Mapping) for item in value):
        for row in value:
            _check_unique(list(map(str, row)), field)
        return _records(value)
    fix = (
        'choose a split: data["train"]'
        if type_name in ("DatasetDict", "IterableDatasetDict")
        else "make it a list of dicts"
    )
    raise ConfigError(f"an object of class {type_name}", expected=_ACCEPTED, fix=fix, field=field)


def _as_mapping(item: Any) -> Any:
    """Return a row with named values as a mapping: a named tuple, a dataclass, a model of pydantic, a row of sqlite3.

    Any other item is returned as it is.
    """
    if isinstance(item, (Mapping, type)):
        return item
    if isinstance(item, tuple) and hasattr(item, "_asdict"):
        return item._asdict()
    if dataclasses.is_dataclass(item):
        return {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
    if isinstance(item, BaseModel):
        return item.model_dump()
    return dict(item) if isinstance(item, sqlite3.Row) else item


def _check_items(items: Sequence[Any], field: str) -> None:
    """Check that all items of a list of rows are rows.

    Raises:
        ConfigError: Some are not; lists all of them.
    """
    problems = [
        Problem(
            f"a value of type {type(item).__name__} ({shortened(item, 40)})",
            "a dict of values by column, as the other rows are",
            "write it as a dict, or remove it",
            f"row {number} of {field}",
        )
        for number, item in enumerate(items, start=1)
        if not isinstance(item, Mapping)
    ]
    if problems:
        raise ConfigError(problems)


def _has_named_index(frame: Any) -> bool:
    """Return whether every level of a data frame's index has a name that is not also a column."""
    return all(isinstance(name, str) and name not in frame.columns for name in frame.index.names)


def _check_unique(names: Sequence[str], field: str) -> None:
    """Check that column names are unique: of two columns with the same name, only one would be stored.

    Raises:
        ConfigError: Two columns have the same name.
    """
    if len(set(names)) < len(names):
        name = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"two columns are named {name!r}", fix="rename one of them", field=field)


def _records(rows: Iterable[Mapping[Any, Any]]) -> Iterable[Mapping[str, Any]]:
    return ({str(name): value for name, value in row.items()} for row in rows)


def _of_table(table: Any) -> Iterable[Mapping[str, Any]]:
    """Yield the rows of a ``pyarrow.Table``, with class ids replaced by the names that ``datasets`` stored in it."""
    names = class_names(features_of(table.schema.metadata or {}, "a pyarrow Table"))
    for row in table.to_pylist():
        yield {name: ids_to_names(value, names[name]) if name in names else value for name, value in row.items()}


def _of_dataset(data: Any) -> Iterable[Mapping[str, Any]]:
    """Yield the rows of a ``datasets.Dataset``, with class ids replaced by names, as in its files."""
    names = class_names(data.features)
    for row in data.with_format(None):
        yield {name: ids_to_names(value, names[name]) if name in names else value for name, value in row.items()}


def _written(rows: Iterable[Mapping[str, Any]], field: str, read: Collection[str]) -> Path:
    """Write rows as JSON Lines, without columns that JSON cannot represent and that are not in ``read``."""
    plain = [{name: _plain(value) for name, value in row.items()} for row in rows]
    if not plain:
        raise ConfigError("no rows", expected="at least one", field=field)
    omitted = _unserializable_columns(plain)
    problems = [_problem(name, number, value, field) for name, (number, value) in omitted.items() if name in read]
    if problems:
        raise ConfigError(problems)
    if omitted:
        columns = ", ".join(f"{name} ({value.kind})" for name, (_, value) in sorted(omitted.items()))
        _LOG.warning("%s: columns omitted, their values are not text, numbers or lists: %s", field, columns)
    lines = [json.dumps({name: value for name, value in row.items() if name not in omitted}) for row in plain]
    data = ("\n".join(lines) + "\n").encode()
    path = paths.cache_folder() / "rows" / f"{hashlib.sha256(data).hexdigest()[:32]}.jsonl"
    if not path.exists():
        _write(path, data)
        _LOG.info("%s: %d rows written to %s", field, len(plain), path)
    return path


def _unserializable_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, _Unserializable]]:
    """Return the columns with values that JSON cannot represent: number and value of the first such row."""
    columns = dict[str, tuple[int, _Unserializable]]()
    for number, row in enumerate(rows, start=1):
        for name, value in row.items():
            if isinstance(value, _Unserializable):
                columns.setdefault(name, (number, value))
    return columns


def _problem(column: str, row: int, value: _Unserializable, field: str) -> Problem:
    """Return the problem of a required column that cannot be stored."""
    message = f"a value of type {value.kind} in row {row} ({value.shown})"
    fix = f"convert the column to text first: rows[{column!r}] = [str(value) for value in rows[{column!r}]]"
    if value.kind in ("bytes", "bytearray", "memoryview"):
        fix = f'decode it first: rows[{column!r}] = [value.decode("utf-8") for value in rows[{column!r}]]'
    return Problem(message, "text, a number, or a list of these", fix, f"{field}, column {column!r}")


def _write(path: Path, data: bytes) -> None:
    """Write a file of the cache atomically."""
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
class _Unserializable:
    """A value that JSON cannot represent: the name of its type, and its shortened text."""

    kind: str
    shown: str

    @classmethod
    def of(cls, value: Any) -> _Unserializable:
        return cls(type(value).__name__, shortened(value, 40))


#: Maximum nesting of a row's values.
_MAX_DEPTH = 40

#: Maximum bits of an integer, so that JSON readers accept it.
_MAX_BITS = 10_000


def _plain(value: Any, depth: int = 0) -> Any:
    """Convert a value to plain JSON types; an :class:`_Unserializable` if the value or a part of it has none."""
    if hasattr(value, "tolist") and hasattr(value, "dtype"):  # numpy
        value = _of_numpy(value)
    if isinstance(value, enum.Enum):
        value = value.value if isinstance(value.value, str) or isinstance(value, int) else value.name
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        return _Unserializable("int with too many digits", shortened(value))
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if depth > _MAX_DEPTH:
        return _Unserializable(f"{type(value).__name__}, nested too deeply", "…")
    if isinstance(value, Mapping):
        return _plain_mapping(value, depth)
    if isinstance(value, (list, tuple, set, frozenset)):
        return _plain_items(value, depth)
    return str(value) if _has_canonical_text(value) else _Unserializable.of(value)


def _plain_mapping(value: Mapping[Any, Any], depth: int) -> Any:
    parts = {str(name): _plain(part, depth + 1) for name, part in value.items()}
    return next((part for part in parts.values() if isinstance(part, _Unserializable)), parts)


def _plain_items(value: Iterable[Any], depth: int) -> Any:
    items = [_plain(item, depth + 1) for item in value]
    for item in items:
        if isinstance(item, _Unserializable):
            return item
    # The iteration order of a set of strings differs between processes.
    return sorted(items, key=repr) if isinstance(value, (set, frozenset)) else items


def _of_numpy(value: Any) -> Any:
    """Convert a NumPy value or a tensor to Python types; times become text, since Python has no nanoseconds."""
    if getattr(value.dtype, "kind", "O") not in "mM":
        return value.tolist()
    return value.astype(str).tolist() if value.ndim else str(value)


def _has_canonical_text(value: Any) -> bool:
    """Return whether a value has one usual text form: dates, decimals, paths, UUIDs, pandas intervals and periods."""
    if isinstance(value, (datetime.date, datetime.time, datetime.timedelta, Decimal, PurePath, UUID)):
        return True
    return type(value).__module__.partition(".")[0] == "pandas" and type(value).__name__ in ("Interval", "Period")
