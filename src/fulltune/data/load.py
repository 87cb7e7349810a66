"""Raw rows to checked ones: columns mapped to roles, values of the right type, every bad row told with its place."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, overload

from fulltune.config import DataConfig
from fulltune.data.columnar import Opened
from fulltune.data.read import open_source
from fulltune.data.values import clean, kind_of_name
from fulltune.errors import DataError, Problem, did_you_mean
from fulltune.records import SplitInfo

#: JSON rows whose keys are looked at to tell the columns.
_LOOK_AHEAD = 1000


@dataclass(frozen=True)
class Column:
    """A column that the task reads: its role, the type of its values, whether it must be there and may be empty."""

    role: str
    type: type
    required: bool = True
    may_be_empty: bool = False


@dataclass(frozen=True)
class Row:
    """One good row.

    Attributes:
        id: The value of the id column, else ``where``.
        where: The file and line (``tales.jsonl:12``), or the file and index or row number where a format has no lines.
        fields: Values by role (``text``, ``label``, ``labels``, ``source``, ``target``, …), not by column name.
    """

    id: str
    where: str
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Table(Sequence[Row]):
    """The good rows of one split, in the order of the source, and the problems of the bad ones."""

    source: str
    rows: tuple[Row, ...]
    problems: tuple[Problem, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Row, ...]: ...
    def __getitem__(self, index: int | slice) -> Row | tuple[Row, ...]:
        return self.rows[index]

    @cached_property
    def sha256(self) -> str:
        """Of the canonical JSON of the rows' fields: the same data gives the same hash, wherever it lies."""
        digest = hashlib.sha256()
        for row in self.rows:
            line = json.dumps(dict(row.fields), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
            digest.update(line.encode() + b"\n")
        return digest.hexdigest()

    @property
    def info(self) -> SplitInfo:
        return SplitInfo(source=self.source, rows=len(self), sha256=self.sha256)


def available_columns(source: str, split: str = "train") -> tuple[str, ...]:
    """The column names that the data has, before any mapping, in their order.

    Raises:
        DataError: The source is not there or cannot be read at all.
    """
    opened = open_source(source, split)
    if opened.columns is not None:
        return opened.columns
    names: dict[str, None] = {}
    for item in islice(opened.rows, _LOOK_AHEAD):
        if not isinstance(item, Problem):
            names.update(dict.fromkeys(item[1]))
    return tuple(names)


def load_table(
    source: str, columns: Sequence[Column], data: DataConfig, *, limit: int | None = None, split: str = "train"
) -> Table:
    """Read one split.

    Args:
        source: A file, folder or hub id, as in the config.
        columns: What the task reads.
        data: Maps each role to the name of its column.
        limit: Take the first so many good rows.
        split: Of a `datasets` folder or hub id, where the source names none.

    Returns:
        The good rows; the bad ones are in ``problems``, to be raised together by the audit.

    Raises:
        DataError: The source or a column is missing, or no row is good (then with every row's problem).
    """
    readers = _readers(columns, data)
    opened = open_source(source, split, wanted=[name for _, name in readers])
    loading = _Loading(readers, opened)
    loading.read(limit)
    _check_columns(readers, loading.names, source)
    loading.refuse_mixed_types()
    if not loading.rows:
        raise DataError(loading.problems or [Problem("no rows", "at least one", "check the file", where=source)])
    return Table(source, tuple(loading.rows), tuple(loading.problems))


def _readers(columns: Sequence[Column], data: DataConfig) -> list[tuple[Column, str]]:
    """Each column to read with its name in the data; the id and group columns too, when the config names them."""
    extra = [Column(role, str) for role in ("id", "group") if getattr(data, role)]
    return [(column, str(getattr(data, column.role))) for column in [*columns, *extra]]


class _Loading:
    """The rows of one source as they are read: good ones, problems, and the column names seen."""

    def __init__(self, readers: Sequence[tuple[Column, str]], opened: Opened) -> None:
        self.rows: list[Row] = []
        self.problems: list[Problem] = []
        self.names: dict[str, None] = dict.fromkeys(opened.columns or ())
        self._readers = readers
        self._source = opened.rows
        self._ids: dict[str, str] = {}
        self._kinds: list[str] = []

    def read(self, limit: int | None) -> None:
        for item in self._source:
            if isinstance(item, Problem):
                self.problems.append(item)
            else:
                self.names.update(dict.fromkeys(item[1]))
                self._add(*item)
            if len(self.rows) == limit:
                return

    def _add(self, where: str, raw: Mapping[str, Any]) -> None:
        values = {column.role: self._value(column, name, raw, where) for column, name in self._readers_of(raw)}
        problems = [value for value in values.values() if isinstance(value, Problem)]
        if not problems:
            identity = values.pop("id", where)
            first = self._ids.setdefault(identity, where)
            if first is where:
                self.rows.append(Row(identity, where, values))
                self._kinds.append(self._kind(raw))
                return
            problems = [
                Problem(f"id {identity!r} again (first at {first})", "an id once", "make it unique", where, "id")
            ]
        self.problems += problems

    def _readers_of(self, raw: Mapping[str, Any]) -> Iterator[tuple[Column, str]]:
        return ((column, name) for column, name in self._readers if column.required or name in raw)

    @staticmethod
    def _value(column: Column, name: str, raw: Mapping[str, Any], where: str) -> Any:
        value = clean(raw.get(name), column.role, column.type, may_be_empty=column.may_be_empty)
        if isinstance(value, Problem):
            return Problem(value.found, value.expected, value.fix, where, name)
        return value

    def _kind(self, raw: Mapping[str, Any]) -> str:
        """Whether this row's label is written as text or as a number, or ``""`` when there is none."""
        names = [name for column, name in self._readers if column.role in ("label", "labels")]
        return kind_of_name(raw.get(names[0])) if names else ""

    def refuse_mixed_types(self) -> None:
        """1 and "1" would become one label without a word: rows that are not of the column's usual type are bad."""
        kinds = Counter(kind for kind in self._kinds if kind)
        if len(kinds) < 2:
            return
        usual = kinds.most_common(1)[0][0]
        name = next(name for column, name in self._readers if column.role in ("label", "labels"))
        kept = []
        for row, kind in zip(self.rows, self._kinds, strict=True):
            if kind in ("", usual):
                kept.append(row)
                continue
            found, expected = f"a label written as {kind}", f"{usual}, as in most rows"
            self.problems.append(Problem(found, expected, "write all labels in one way", row.where, name))
        self.rows = kept


def _check_columns(readers: Sequence[tuple[Column, str]], names: Mapping[str, None], source: str) -> None:
    """A column that no row has is one problem, not one a row."""
    if not names:
        return
    missing = [(column.role, name) for column, name in readers if column.required and name not in names]
    if missing:
        raise DataError([_missing(role, name, list(names), source) for role, name in missing])


def _missing(role: str, name: str, names: Sequence[str], source: str) -> Problem:
    hint = did_you_mean(name, names)
    example = hint.removeprefix("did you mean '").removesuffix("'?") if hint else names[0]
    fix = f"set the name of the column in the config, e.g. `data.{role}: {example}`"
    return Problem(f"no column {name!r}", f"one of {', '.join(names)}", fix, source, f"data.{role}")
