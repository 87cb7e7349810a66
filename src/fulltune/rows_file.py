"""Rows that a Python program hands over (data frames, data sets, lists of dicts) become a file, named by its content.

What a config names can be read again by another process, so a run that began from rows in memory resumes, is planned
and is compared as any other does, as long as the file is in the user's cache (``$FULLTUNE_CACHE/rows``).
"""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from fulltune import paths
from fulltune.class_labels import class_names, features_of, named
from fulltune.errors import ConfigError

_LOG = logging.getLogger(__name__)

_ACCEPTED = (
    "a path, a list of paths, a fraction, a list of dicts, a pandas or polars data frame, a pyarrow Table, "
    "or a datasets.Dataset"
)


def as_source(value: Any, field: str) -> Any:
    """Return what a config can hold: the value itself, or the path of a file with the rows that it is.

    Args:
        value: The value of ``data.train``, ``data.valid`` or ``data.eval``.
        field: Its key, for messages.

    Raises:
        ConfigError: Neither a path nor rows that end.
    """
    if value is None or isinstance(value, (str, bytes, int, float, os.PathLike)):
        return value
    if isinstance(value, (list, tuple)) and all(isinstance(item, (str, os.PathLike)) for item in value):
        if not value:
            raise ConfigError("an empty list", expected=_ACCEPTED, field=field)
        return value
    return str(_written(_rows(value, field), field))


def refuse_model_object(value: Any) -> None:
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
        return _records(value.astype(object).where(value.notna(), None).to_dict("records"))
    if package == "polars" and kind in ("DataFrame", "LazyFrame"):
        return _records((value.collect() if kind == "LazyFrame" else value).to_dicts())
    if package == "pyarrow" and kind == "Table":
        return _of_table(value)
    if package == "datasets" and kind == "Dataset":
        return _of_dataset(value)
    if isinstance(value, (list, tuple)) and all(isinstance(item, Mapping) for item in value):
        return _records(value)
    fix = (
        'choose a split: data["train"]' if kind in ("DatasetDict", "IterableDatasetDict") else "make it a list of dicts"
    )
    raise ConfigError(f"an object of class {kind}", expected=_ACCEPTED, fix=fix, field=field)


def _records(rows: Iterable[Mapping[Any, Any]]) -> Iterable[Mapping[str, Any]]:
    return ({str(name): value for name, value in row.items()} for row in rows)


def _of_table(table: Any) -> Iterable[Mapping[str, Any]]:
    """Yield the rows of a ``pyarrow.Table``; classes go by the names that ``datasets`` wrote into its schema."""
    names = class_names(features_of(table.schema.metadata or {}, "a pyarrow Table"))
    for row in table.to_pylist():
        yield {name: named(value, names[name]) if name in names else value for name, value in row.items()}


def _of_dataset(data: Any) -> Iterable[Mapping[str, Any]]:
    """Yield the rows of a ``datasets.Dataset``; classes go by name, as in its own files."""
    names = class_names(data.features)
    for row in data.with_format(None):
        yield {name: named(value, names[name]) if name in names else value for name, value in row.items()}


def _written(rows: Iterable[Mapping[str, Any]], field: str) -> Path:
    """Write rows as JSON Lines; a column with values that are no JSON is left out, and logged."""
    plain = [{name: _plain(value) for name, value in row.items()} for row in rows]
    if not plain:
        raise ConfigError("no rows", expected="at least one", field=field)
    left_out = sorted({name for row in plain for name, value in row.items() if value is _OTHER})
    if left_out:
        _LOG.warning("%s: columns left out, their values are no text, number or list: %s", field, ", ".join(left_out))
    lines = [json.dumps({name: value for name, value in row.items() if name not in left_out}) for row in plain]
    data = ("\n".join(lines) + "\n").encode()
    path = paths.cache_folder() / "rows" / f"{hashlib.sha256(data).hexdigest()[:32]}.jsonl"
    if not path.exists():
        _write(path, data)
        _LOG.info("%s: %d rows written to %s", field, len(plain), path)
    return path


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


_OTHER = object()


def _plain(value: Any) -> Any:
    """Return a value as JSON holds it; :data:`_OTHER` if JSON holds no such value, or a list has one."""
    if hasattr(value, "tolist") and hasattr(value, "dtype"):  # numpy
        value = value.tolist()
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, (datetime.date, datetime.time, Decimal)):
        return str(value)
    if isinstance(value, Mapping):
        parts = {str(name): _plain(part) for name, part in value.items()}
        return _OTHER if any(part is _OTHER for part in parts.values()) else parts
    if isinstance(value, (list, tuple)):
        items = [_plain(item) for item in value]
        return _OTHER if any(item is _OTHER for item in items) else items
    return _OTHER
