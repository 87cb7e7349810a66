"""Convert raw rows to checked rows: columns mapped to roles, values of the right type, all bad rows reported."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any, overload

from fulltune.config import DataConfig, DataSource
from fulltune.data import chats
from fulltune.data.columns import roles
from fulltune.data.columns.profile import Profile, holds
from fulltune.data.columns.sampled import columns_of
from fulltune.data.findings import shorten
from fulltune.data.folders import DOCUMENT_COLUMNS
from fulltune.data.label_values import LabelReader, kind_of_label, with_whole_numbers
from fulltune.data.raw import Opened, Options
from fulltune.data.read import open_source, place_of, source_name
from fulltune.data.values import clean, clean_number
from fulltune.errors import DataError, Problem, abridged, closest
from fulltune.records.run import FileFormat, SplitInfo
from fulltune.runtime.config_file import as_value
from fulltune.runtime.split_names import SPLIT_NAMES

#: Number of JSON rows whose keys are read to list the columns.
_LOOK_AHEAD = 1000

#: Expected content of the column with a role, for messages.
_HELD = {
    **dict.fromkeys(("text", "prompt", "completion", "source", "target", "question"), "texts"),
    **dict.fromkeys(("label", "labels"), "labels, which are few repeated values"),
    "sql": "SQL queries",
}

#: Number of rows that are read to suggest a column in place of a missing one.
_DESCRIBED = 2000


@dataclass(frozen=True)
class Column:
    """A column that the task reads: its role, the type of its values, whether it is required and may be empty."""

    role: str
    type: type
    required: bool = True
    may_be_empty: bool = False


@dataclass(frozen=True)
class Row:
    """One valid row.

    Attributes:
        id: The value of the id column, by default ``where``.
        where: File and line (``tales.jsonl:12``), or file and index in formats without lines; in CSV files with cells
            of several lines the number of the row and its line (``clauses.csv row 504 (line 856)``).
        fields: Values by role (``text``, ``label``, ``labels``, ``source``, ``target``, …), not by column name.
        folder: The folder of a text document, unless a role reads it.
    """

    id: str
    where: str
    fields: Mapping[str, Any]
    folder: str = ""


@dataclass(frozen=True)
class Table(Sequence[Row]):
    """One split.

    Attributes:
        source: Name of the source.
        rows: Valid rows in the order of the source.
        problems: Problems of the bad rows.
        label_kind: Type of the labels: ``"text"``, ``"a number"``, or ``""`` without labels.
        files: The formats of the files; those read in the same way are listed once, by the first of them.
        line_ends: Number of rows with a text whose line ends were replaced by LF.
        drawn_from: Number of rows of which these are a sample (:mod:`fulltune.data.sample`), 0 if they are all.
        merged: Labels of several spellings that ``data.merge_labels`` merged: name → spelling → ids of its rows.
    """

    source: str
    rows: tuple[Row, ...]
    problems: tuple[Problem, ...] = ()
    label_kind: str = ""
    files: tuple[FileFormat, ...] = ()
    line_ends: int = 0
    drawn_from: int = 0
    merged: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)

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
        """Hash of the canonical JSON of the rows' fields: equal data gives equal hashes, wherever it is stored."""
        digest = hashlib.sha256()
        for row in self.rows:
            line = json.dumps(dict(row.fields), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
            digest.update(line.encode() + b"\n")
        return digest.hexdigest()

    @property
    def bad_places(self) -> tuple[str, ...]:
        """Positions of the rows that cannot be used."""
        return tuple(dict.fromkeys(problem.where for problem in self.problems))

    @property
    def info(self) -> SplitInfo:
        skipped = len(self.bad_places)
        return SplitInfo(
            source=self.source,
            rows=len(self),
            drawn_from=self.drawn_from,
            sha256=self.sha256,
            skipped=skipped,
            files=self.files,
        )

    def complete(self, data: DataConfig | None = None) -> Table:
        """Return the table itself, after checking that all rows can be used, unless ``data`` says to skip others.

        Raises:
            DataError: Rows cannot be used; lists the problems of all.
        """
        if self.problems and (data is None or data.bad_rows == "refuse"):
            raise DataError(self.problems)
        return self


def available_columns(source: DataSource, split: str = "train", data: DataConfig | None = None) -> tuple[str, ...]:
    """Return the column names of the data in their order, before any mapping.

    Args:
        source: A file, folder or hub id, or several of them, as in the config.
        split: Split to read if the source has several and names none.
        data: States how the files are to be read.

    Raises:
        DataError: The source does not exist or cannot be read.
    """
    return listed_columns(open_source(source, split, options=_options(data)))


def listed_columns(opened: Opened) -> tuple[str, ...]:
    """Return the column names of an opened source; those of JSON are the keys of its first rows.

    Raises:
        DataError: None of the first rows can be read; lists their problems.
    """
    if opened.columns is not None:
        return opened.columns
    names, problems = dict[str, None](), list[Problem]()
    for item in islice(opened.rows, _LOOK_AHEAD):
        if isinstance(item, tuple):
            names.update(dict.fromkeys(item[1]))
        elif isinstance(item, Problem):
            problems.append(item)
    if problems and not names:
        raise DataError(problems)
    return tuple(names)


def _options(data: DataConfig | None) -> Options:
    return Options() if data is None else Options(data.encoding, data.delimiter)


def load_table(
    source: DataSource,
    columns: Sequence[Column],
    data: DataConfig,
    *,
    split: str = "train",
    may_be_empty: bool = False,
) -> Table:
    """Read one split. If the data has the column ``data.split``, only the rows that it marks are read.

    Args:
        source: A file, folder or hub id, or several of them, as in the config.
        columns: Columns that the task reads.
        data: Maps each role to the name of its column.
        split: ``train``, ``validation`` or ``test``, if the source has several and names none.
        may_be_empty: Return a table without rows if no row belongs to the split.

    Returns:
        The valid rows. The bad ones are in ``problems``; the audit raises them together.

    Raises:
        DataError: The source or a column is missing, or no row is valid (with the problems of all rows).
    """
    extra = _extra(data, is_marked=split == "train" or source == data.train)
    readers = [_Reader.of(column, data) for column in [*columns, *extra]]
    _refuse_shared(readers)
    options = _options(data)
    opened = open_source(source, split, [reader.name for reader in readers], options)
    loading = _Loading(readers, opened, split)
    loading.read()
    named = source_name(source)
    place = place_of(source, split)
    _check_columns(readers, loading.names, opened.doubt, place, lambda: columns_of(source, split, _DESCRIBED, options))
    loading.refuse_vectors(place)
    kind = loading.refuse_mixed_types()
    loading.write_numbers()
    if not loading.rows and not (may_be_empty and loading.others):
        raise DataError(loading.problems or [_no_rows(data, split, loading.others, place)])
    return Table(
        named,
        tuple(loading.rows),
        tuple(loading.problems),
        kind,
        merged_formats(loading.files),
        line_ends=loading.line_ends,
    )


def merged_formats(files: Sequence[FileFormat]) -> tuple[FileFormat, ...]:
    """Return the first of the files that were read in the same way; what was assumed of it counts the others."""
    alike = defaultdict[str, list[FileFormat]](list)
    for form in files:
        own = {"evidence": "", "is_doubtful": False} | ({} if form.is_unread else {"file": ""})
        common = tuple(sentence.replace(form.evidence, "") for sentence in form.assumed)
        alike[form.model_copy(update={**own, "assumed": common}).model_dump_json()].append(form)
    return tuple(_counted(forms) for forms in alike.values())


def _counted(forms: Sequence[FileFormat]) -> FileFormat:
    """Return the first of the files, or the first whose encoding is in doubt."""
    shown = next((form for form in forms if form.is_doubtful), forms[0])
    more = len(forms) - 1
    if not more:
        return shown
    others = f"; {more:,} more {'file is' if more == 1 else 'files are'} read in the same way"
    return shown.model_copy(update={"assumed": tuple(f"{sentence}{others}" for sentence in shown.assumed)})


def _refuse_shared(readers: Sequence[_Reader]) -> None:
    """Check that labels and text are not read from the same column, which would put the answer into the question.

    Raises:
        DataError: They are read from the same column.
    """
    texts = {reader.name for reader in readers if reader.column.role == "text"}
    for reader in readers:
        if reader.labels is not None and reader.name in texts:
            field = f"data.{reader.column.role}"
            problem = f"text and {reader.column.role} are one column, {reader.name!r}"
            raise DataError(problem, expected="a separate column for each", fix="name another column", field=field)


def _no_rows(data: DataConfig, split: str, others: int, source: str) -> Problem:
    if not others:
        return Problem("no rows", "at least one", "check the file", where=source)
    problem = f"none of {others} rows is marked as {split} in the column {data.split!r}"
    fix = f"mark rows with {' or '.join(SPLIT_NAMES[split])}, or remove data.split"
    return Problem(problem, "at least one", fix, source, "data.split")


def _extra(data: DataConfig, is_marked: bool) -> list[Column]:
    """Return the id, group and split columns that the config names; the last one only if the source ``is_marked``."""
    columns = [Column(role, str) for role in ("id", "group") if getattr(data, role)]
    return columns + ([Column("split", str, required=is_marked)] if data.split else [])


@dataclass(frozen=True)
class _Reader:
    """A column to read, its name in the data, and the parser of its labels if it has labels."""

    column: Column
    name: str
    labels: LabelReader | None = None

    @classmethod
    def of(cls, column: Column, data: DataConfig) -> _Reader:
        name = data.column(column.role)
        if column.role not in ("label", "labels"):
            return cls(column, name)
        names = None if data.label_names is None else tuple(data.label_names)
        several = column.type is list
        return cls(
            column,
            name,
            LabelReader(name, several, names, data.label_separator, column.may_be_empty, data.merge_labels),
        )

    def read(self, value: Any, where: str) -> Any:
        """Return the value as the role needs it, or a :class:`Problem` with its position."""
        if self.labels is not None:
            read: Any = self.labels.read(value)
        elif self.column.role == chats.MESSAGES:
            read = chats.trained(value)
        elif self.column.type in (int, float):
            read = clean_number(value, self.column.type)
        else:
            read = clean(value, self.column.role, may_be_empty=self.column.may_be_empty)
        return replace(read, where=where, field=self.name) if isinstance(read, Problem) else read


def _kind(value: Any) -> type | None:
    """Return ``dict`` for an object or a list of objects, None for no value, and the type of any other value."""
    if isinstance(value, list) and value:
        return _kind(value[0])
    return None if value is None else type(value)


class _Loading:
    """State of reading one source: valid rows, problems, and column names."""

    def __init__(self, readers: Sequence[_Reader], opened: Opened, split: str) -> None:
        self.rows: list[Row] = []
        self.problems: list[Problem] = []
        self.files: list[FileFormat] = []
        self.names: dict[str, type | None] = dict.fromkeys(opened.columns or ())
        #: Number of rows of other splits.
        self.others = 0
        self.line_ends = 0
        self._readers = readers
        #: Rows are text documents whose folder no role reads.
        self._has_folders = opened.columns == DOCUMENT_COLUMNS and all(one.name != "folder" for one in readers)
        self._split = split
        self._marks = next((reader.name for reader in readers if reader.column.role == "split"), None)
        self._labels = next((reader for reader in readers if reader.labels is not None), None)
        self._source = opened.rows
        self._ids: dict[str, str] = {}
        self._kinds: list[str] = []
        self._lists: list[tuple[str, list[Any]]] = []

    def read(self) -> None:
        for item in self._source:
            if isinstance(item, FileFormat):
                self.files.append(item)
            elif isinstance(item, Problem):
                self.problems.append(item)
            else:
                self.names |= {name: _kind(value) for name, value in item[1].items() if self.names.get(name) is None}
                if self._is_of_split(*item):
                    self._add(item[0], self._parsed(*item))

    def _is_of_split(self, where: str, raw: Mapping[str, Any]) -> bool:
        """Return True if a row belongs to the split; a mark that means no split is a problem of train."""
        if self._marks is None or self._marks not in raw:
            return True
        mark = str(raw[self._marks] or "").strip()
        split = next((name for name, names in SPLIT_NAMES.items() if mark.lower() in names), None)
        if split is None and self._split == "train":
            problem = f"{mark!r} marks no split" if mark else "nothing marks the split"
            expected = "train, validation (valid, val, dev) or test (eval)"
            self.problems.append(Problem(problem, expected, "correct the row", where, self._marks))
        self.others += split != self._split
        return split == self._split

    def _parsed(self, where: str, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the row with its list of labels parsed, and store that list for checks of the column."""
        if self._labels is None or self._labels.labels is None:
            return raw
        value = self._labels.labels.parsed(raw.get(self._labels.name))
        if self._labels.labels.several and isinstance(value, list):
            self._lists.append((where, value))
        return {**raw, self._labels.name: value}

    def _add(self, where: str, raw: Mapping[str, Any]) -> None:
        wanted = [reader for reader in self._readers if reader.column.required or reader.name in raw]
        wanted = [reader for reader in wanted if reader.column.role != "split"]
        values = {reader.column.role: reader.read(raw.get(reader.name), where) for reader in wanted}
        problems = [value for value in values.values() if isinstance(value, Problem)]
        if not problems:
            values |= values.pop(chats.MESSAGES, {})
            identity = values.pop("id", where)
            first = self._ids.setdefault(identity, where)
            if first is where:
                self.line_ends += any("\r" in str(raw.get(reader.name)) for reader in wanted if not reader.labels)
                folder = str(raw["folder"]) if self._has_folders else ""
                self.rows.append(Row(identity, where, values, folder))
                self._kinds.append(kind_of_label(raw.get(self._labels.name)) if self._labels else "")
                return
            problems = [
                Problem(f"id {identity!r} again (first at {first})", "an id once", "make it unique", where, "id")
            ]
        self.problems += problems

    def refuse_vectors(self, source: str) -> None:
        """Check that the lists of labels are not 0/1 vectors, whose positions would be lost silently.

        Raises:
            DataError: They are 0/1 vectors.
        """
        reader = self._labels and self._labels.labels
        problem = reader and (reader.vectors(self._lists) or reader.wrong_separator(self._lists))
        if problem:
            raise DataError(replace(problem, where=source))

    def refuse_mixed_types(self) -> str:
        """Move rows whose labels are not of the usual type (text or numbers) to the problems, and return that type.

        Otherwise 1 and "1" would silently become one label. With ``data.label_names`` both are well defined.
        """
        kinds = Counter(kind for kind in self._kinds if kind)
        usual = kinds.most_common(1)[0][0] if kinds else ""
        if len(kinds) < 2 or self._labels is None or self._named:
            return usual
        kept = []
        for row, kind in zip(self.rows, self._kinds, strict=True):
            if kind in ("", usual):
                kept.append(row)
                continue
            problem = f"a label written as {kind}"
            expected = f"{usual}, as in most rows"
            self.problems.append(
                Problem(problem, expected, "write all labels in one way", row.where, self._labels.name)
            )
        self.rows = kept
        return usual

    def write_numbers(self) -> None:
        """Write whole numbers as labels in one way: in CSV, 1.0 is text, in JSON it is a number.

        Raises:
            DataError: The labels are real numbers.
        """
        if self._labels is None or self._named:
            return
        role = self._labels.column.role
        each = [row.fields.get(role, ()) for row in self.rows]
        flat = [label for value in each for label in ([value] if isinstance(value, str) else value)]
        written = iter(with_whole_numbers(flat, f"data.{role}"))
        values = [next(written) if isinstance(value, str) else [next(written) for _ in value] for value in each]
        self.rows = [
            row if row.fields.get(role, ()) == value else replace(row, fields={**row.fields, role: value})
            for row, value in zip(self.rows, values, strict=True)
        ]

    @property
    def _named(self) -> bool:
        return self._labels is not None and self._labels.labels is not None and self._labels.labels.names is not None


def _check_columns(
    readers: Sequence[_Reader],
    names: Mapping[str, type | None],
    doubt: Problem | None,
    place: str,
    describe: Callable[[], tuple[Profile, ...]],
) -> None:
    """Check that each column occurs in some row; a column that no row has is one problem, not one per row.

    Args:
        readers: The columns to read.
        names: Names of all columns.
        doubt: Possible reason for missing columns.
        place: Name of the source, for messages.
        describe: Returns what the columns hold.

    Raises:
        DataError: Columns are missing.
    """
    if not names:
        return
    missing = [reader for reader in readers if reader.column.required and reader.name not in names]
    if missing and doubt is not None:
        columns = ", ".join(f"`{shorten(reader.name)}`" for reader in missing)
        raise DataError(replace(doubt, found=f"{doubt.found}, so there is no column {columns}"))
    if missing:
        used = {reader.name for reader in readers}
        free = [column for column in describe() if column.name not in used]
        problems = [_missing(reader, list(names), free, place) for reader in missing]
        wanted = [reader.column.role for reader in readers if reader.column.required]
        talks = [column.name for column in free if column.kind == "messages"]
        objects = [column.name for column in free if column.kind == "object"]
        hint = f"; {', '.join(objects)} holds objects: write their texts to separate columns" if objects else ""
        if talks and wanted in (["text"], ["source", "target"]):
            hint += f"; {talks[0]} holds chats: to read them set data.messages: {as_value(talks[0])}"
        elif talks:
            hint += f"; {talks[0]} holds chats, which causal-lm and seq2seq read"
        if wanted == ["text"] and len(free) > 1:
            hint += "; for prompts with answers set data.prompt and data.completion"
        raise DataError([replace(problem, fix=problem.fix + hint) for problem in problems])


def _missing(reader: _Reader, names: Sequence[str], free: Sequence[Profile], source: str) -> Problem:
    """Return the problem of a missing column.

    Args:
        reader: Reader of the column.
        names: Names of all columns.
        free: The columns that no role reads.
        source: Name of the source.
    """
    role = reader.column.role
    close = closest(reader.name, [column.name for column in free])
    example = next((column for column in free if column.name == close), roles.likely(role, free))
    fix = f"add the column: no other one holds {_HELD.get(role, 'such values')}"
    if example is not None:
        key = "labels" if role in ("label", "labels") and example.kind == "labels" else role
        fix = f"set the name of the column in the config, e.g. `{DataConfig.column_key(key)}: {as_value(example.name)}`"
        fix += f" ({holds(example)})"
    if role in ("id", "group", "split"):
        fix += f", or remove data.{role} from the config"
    binary = [column.name for column in free if column.is_numeric and column.distinct == 2]
    if role == "label" and not close and len(binary) > 1:
        fix += '; one 0/1 column per label must become a column `labels` with lists of names: ["a", "b"]'
    listed = abridged([shorten(name) for name in names], 30)
    return Problem(f"no column {reader.name!r}", f"one of {listed}", fix, source, DataConfig.column_key(role))
