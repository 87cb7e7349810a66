"""Parquet files, folders written by ``datasets``' ``save_to_disk``, and data sets of the hub.

Only :func:`open_hub` can open a socket, and it is called for a hub id alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fulltune.errors import DataError, Problem, did_you_mean

#: Where a row stands, and its values by column.
RawRow = tuple[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Opened:
    """A source ready to be read once.

    Attributes:
        columns: All column names, or None where only the rows tell (JSON).
        rows: The rows, and a problem in place of each that does not parse.
    """

    columns: tuple[str, ...] | None
    rows: Iterator[RawRow | Problem]


def open_parquet(path: Path, wanted: Collection[str] | None) -> Opened:
    """A Parquet file, read in batches; rows are numbered from 1.

    Raises:
        DataError: Not a Parquet file, or a damaged one.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"not a readable Parquet file ({error})", where=str(path), fix="write it again") from None
    names = tuple(file.schema_arrow.names)
    batches = file.iter_batches(columns=_chosen(names, wanted))
    return Opened(names, _numbered((row for batch in batches for row in batch.to_pylist()), path.name))


def is_datasets_folder(path: Path) -> bool:
    """Whether ``save_to_disk`` wrote it: one data set, or a dictionary of splits."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def open_datasets_folder(path: Path, named_split: str, split: str, wanted: Collection[str] | None) -> Opened:
    """A folder written by ``save_to_disk``.

    Raises:
        DataError: It is damaged, or has no such split.
    """
    from datasets import DatasetDict, load_from_disk

    try:
        data = load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise DataError(
            f"the `datasets` folder cannot be read ({error})", where=str(path), fix="save it again"
        ) from None
    if isinstance(data, DatasetDict):
        chosen = named_split or split
        if chosen not in data:
            raise _no_split(chosen, list(data), str(path))
        return _opened(data[chosen], f"{path.name}#{chosen}", wanted)
    if named_split:
        raise DataError("one data set without splits", where=str(path), fix=f"write it without #{named_split}")
    return _opened(data, path.name, wanted)


def open_hub(name: str, split: str, wanted: Collection[str] | None) -> Opened:
    """A data set of the hub, by ``datasets.load_dataset``; code that comes with it is never run.

    Raises:
        DataError: There is no such data set or split, or the hub cannot be reached.
    """
    from datasets import get_dataset_split_names, load_dataset
    from huggingface_hub.errors import HfHubHTTPError

    try:
        splits = get_dataset_split_names(name)
        if split not in splits:
            raise _no_split(split, splits, name)
        return _opened(load_dataset(name, split=split), f"{name}#{split}", wanted)
    except (OSError, ValueError, RuntimeError, HfHubHTTPError) as error:
        raise DataError(
            f"the hub's data set cannot be loaded ({error})",
            where=name,
            fix="check the name and the connection; for a local file, check the path",
        ) from error


def _no_split(split: str, splits: list[str], where: str) -> DataError:
    hint = did_you_mean(split, splits) or f"choose one: {where}#{splits[0]}"
    return DataError(f"no split {split!r}", expected=f"one of {', '.join(splits)}", where=where, fix=hint)


def _opened(data: Any, name: str, wanted: Collection[str] | None) -> Opened:
    """A ``datasets.Dataset``; class labels come out by name, not by number."""
    names = tuple(data.column_names)
    kept = data.select_columns(_chosen(names, wanted))
    decoders = {column: decode for column in kept.column_names if (decode := _label_names(kept.features[column]))}

    def rows() -> Iterator[Mapping[str, Any]]:
        for row in kept:
            yield row | {column: decode(row[column]) for column, decode in decoders.items()}

    return Opened(names, _numbered(rows(), name))


def _label_names(feature: Any) -> Any:
    """What turns this feature's numbers into label names (-1 says that there is none), or None for another feature."""
    from datasets import ClassLabel

    inner = getattr(feature, "feature", feature)
    if not isinstance(inner, ClassLabel):
        return None

    def name(number: int | None) -> str | None:
        return None if number is None or number < 0 else str(inner.int2str(number))

    if inner is feature:
        return name
    return lambda numbers: None if numbers is None else [name(number) for number in numbers]


def _chosen(names: tuple[str, ...], wanted: Collection[str] | None) -> list[str]:
    return [name for name in names if wanted is None or name in wanted]


def _numbered(rows: Iterator[Mapping[str, Any]], name: str) -> Iterator[RawRow]:
    for number, row in enumerate(rows, start=1):
        yield f"{name}:{number}", row
