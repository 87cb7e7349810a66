"""Open Parquet and Arrow files, folders written by ``datasets``' ``save_to_disk``, and data sets of the hub.

Only :func:`open_hub` opens sockets, and it is only called for a hub id.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from fulltune.data.raw import Opened, RawRow
from fulltune.errors import DataError, Problem, did_you_mean
from fulltune.records.run import FileFormat
from fulltune.runtime.class_labels import class_names, features_of, ids_to_names
from fulltune.runtime.validation import read_failure

#: Exceptions of ``datasets`` for incomplete files.
_DAMAGED = (LookupError, TypeError, AttributeError)


def open_parquet(path: Path, wanted: Collection[str] | None) -> Opened:
    """Open a Parquet file, read in batches; rows are numbered from 1.

    Raises:
        DataError: The file is not a Parquet file, or is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        reason = "its end is missing" if "footer" in str(error) else read_failure(error)
        raise DataError(f"not a readable Parquet file ({reason})", where=str(path), fix="write it again") from None
    names = tuple(file.schema_arrow.names)
    _check_unique(names, wanted, path)
    return _of_batches(file.schema_arrow, file.iter_batches(columns=_chosen(names, wanted)), path, "parquet", wanted)


def open_arrow(path: Path, wanted: Collection[str] | None) -> Opened:
    """Open an Arrow file in the file format (Feather) or the streaming format, memory-mapped.

    Raises:
        DataError: The file is not an Arrow file, or is damaged.
    """
    import pyarrow as pa

    try:
        source = pa.memory_map(str(path))
        try:
            reader = pa.ipc.open_file(source)
            batches: Iterable[Any] = (reader.get_batch(number) for number in range(reader.num_record_batches))
        except pa.ArrowInvalid:
            source.seek(0)
            batches = reader = pa.ipc.open_stream(source)
    except (pa.ArrowException, OSError) as error:
        problem = f"not a readable Arrow file ({read_failure(error)})"
        raise DataError(problem, where=str(path), fix="write it again, or write it as Parquet") from None
    names = tuple(reader.schema.names)
    _check_unique(names, wanted, path)
    chosen = _chosen(names, wanted)
    return _of_batches(reader.schema, (batch.select(chosen) for batch in batches), path, "arrow", wanted)


def _check_unique(names: tuple[str, ...], wanted: Collection[str] | None, path: Path) -> None:
    """Check that columns that are read have different names.

    Raises:
        DataError: Two of them have the same name.
    """
    repeated = [name for name in _chosen(names, wanted) if names.count(name) > 1]
    if repeated and wanted is not None:
        raise DataError(f"two columns are called {repeated[0]!r}", where=str(path), fix="rename one of them")


def _of_batches(
    schema: Any, batches: Iterable[Any], path: Path, file_format: str, wanted: Collection[str] | None
) -> Opened:
    rows = _readable(_rows(batches, path), path)
    classes = _classes(features_of(schema.metadata or {}, path.name), wanted)
    form = FileFormat(file=path.name, format=file_format)
    return Opened(tuple(dict.fromkeys(schema.names)), chain([form], _named(rows, classes, path.name)))


def _rows(batches: Iterable[Any], path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of Arrow batches.

    Raises:
        DataError: A batch has text that is not UTF-8; lists its rows and columns.
    """
    before = 0
    for batch in batches:
        try:
            rows = batch.to_pylist()
        except UnicodeDecodeError:
            raise DataError(list(_undecodable(batch, before, path.name))) from None
        yield from rows
        before += batch.num_rows


def _undecodable(batch: Any, before: int, name: str) -> Iterator[Problem]:
    for column in batch.schema.names:
        for number, value in enumerate(batch.column(column), start=before + 1):
            try:
                value.as_py()
            except UnicodeDecodeError as error:
                problem = f"text that is not UTF-8 (byte 0x{error.object[error.start]:02X} at {error.start})"
                yield Problem(problem, "UTF-8", "write the column again, as text", f"{name}:{number}", column)


def _readable(rows: Iterable[Mapping[str, Any]], path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield rows that are read from disk lazily.

    Raises:
        DataError: A part of the file is damaged.
    """
    import pyarrow as pa

    number = 0
    try:
        for number, row in enumerate(rows, start=1):  # noqa: B007
            yield row
    except (pa.ArrowException, OSError) as error:
        place = f"after row {number}" if number else "in its first rows"
        problem = f"the file is damaged {place} ({str(error).strip().partition(chr(10))[0].rstrip('.')})"
        raise DataError(problem, where=str(path), fix="write or download it again") from None


def is_datasets_folder(path: Path) -> bool:
    """Return True if ``save_to_disk`` wrote the folder: one data set, or a dictionary of splits."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def open_datasets_folder(path: Path, named_split: str, split: str, wanted: Collection[str] | None) -> Opened:
    """Open a folder written by ``save_to_disk``.

    Raises:
        DataError: The folder is damaged, or has no such split.
    """
    import pyarrow as pa
    from datasets import DatasetDict, load_from_disk

    try:
        data = load_from_disk(str(path))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, pa.ArrowException) as error:
        reason = "its description is damaged" if isinstance(error, _DAMAGED) else read_failure(error)
        raise DataError(
            f"the `datasets` folder cannot be read ({reason})", where=str(path), fix="save it again"
        ) from None
    if isinstance(data, DatasetDict):
        chosen = named_split or split
        if chosen not in data:
            raise _no_split(chosen, list(data), str(path))
        return _opened(data[chosen], path.name, wanted, "datasets", chosen)
    if named_split:
        raise DataError("the data set has no splits", where=str(path), fix=f"write it without #{named_split}")
    return _opened(data, path.name, wanted, "datasets")


def open_hub(name: str, split: str, wanted: Collection[str] | None) -> Opened:
    """Open a data set of the hub by ``datasets.load_dataset``; code in the data set is never executed.

    Raises:
        DataError: There is no such data set or split, or the hub cannot be reached.
    """
    from datasets import get_dataset_split_names, load_dataset
    from huggingface_hub.errors import HfHubHTTPError

    try:
        splits = get_dataset_split_names(name)
        if split not in splits:
            raise _no_split(split, splits, name)
        return _opened(load_dataset(name, split=split), name, wanted, "hub", split)
    except (OSError, ValueError, RuntimeError, HfHubHTTPError) as error:
        raise DataError(
            f"the data set cannot be loaded from the hub ({error})",
            where=name,
            fix="check the name and the connection; for a local file, check the path",
        ) from error


def _no_split(split: str, splits: list[str], where: str) -> DataError:
    hint = did_you_mean(split, splits) or f"choose one: {where}#{splits[0]}"
    return DataError(f"no split {split!r}", expected=f"one of {', '.join(splits)}", where=where, fix=hint)


def _opened(data: Any, name: str, wanted: Collection[str] | None, file_format: str, part: str = "") -> Opened:
    """Convert a ``datasets.Dataset``."""
    names = tuple(data.column_names)
    kept = data.select_columns(_chosen(names, wanted))
    place = f"{name}#{part}" if part else name
    form = FileFormat(file=name, format=file_format, part=part)
    return Opened(names, chain([form], _named(_readable(kept, Path(place)), _classes(kept.features, wanted), place)))


def _classes(features: Mapping[str, Any], wanted: Collection[str] | None) -> dict[str, tuple[str, ...]]:
    return {column: names for column, names in class_names(features).items() if wanted is None or column in wanted}


def _named(
    rows: Iterable[Mapping[str, Any]], classes: Mapping[str, tuple[str, ...]], name: str
) -> Iterator[RawRow | Problem]:
    """Yield numbered rows in which class numbers are replaced by class names."""
    for where, row in _numbered(rows, name):
        unknown = next(((c, n) for c, names in classes.items() for n in _unknown(row.get(c), len(names))), None)
        if unknown is None:
            yield where, {**row, **{column: ids_to_names(row.get(column), names) for column, names in classes.items()}}
            continue
        column, number = unknown
        expected = f"a number from 0 to {len(classes[column]) - 1}: the column has {len(classes[column])} class names"
        if number == -1:
            fix = "remove the rows without a label, or choose another split: test splits of the hub often have none"
            yield Problem("class number -1, which stands for no label", expected, fix, where, column)
            continue
        yield Problem(f"class number {number}", expected, "correct the row", where, column)


def _unknown(value: Any, classes: int) -> list[int]:
    """Return the numbers in a value or list that are not valid class numbers."""
    numbers = value if isinstance(value, list) else [value]
    return [number for number in numbers if isinstance(number, int) and not 0 <= number < classes]


def _chosen(names: tuple[str, ...], wanted: Collection[str] | None) -> list[str]:
    return [name for name in names if wanted is None or name in wanted]


def _numbered(rows: Iterable[Mapping[str, Any]], name: str) -> Iterator[RawRow]:
    for number, row in enumerate(rows, start=1):
        yield f"{name}:{number}", row
