"""Define what reading a source yields: raw rows, problems, and how each file was read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fulltune.errors import Problem
from fulltune.records.run import FileFormat

#: Position of a row (file and line), and its values by column.
RawRow = tuple[str, Mapping[str, Any]]

#: The items that a source yields. The format of a file precedes its rows.
Item = RawRow | Problem | FileFormat


@dataclass(frozen=True)
class Opened:
    """A source that can be read once.

    Attributes:
        columns: All column names, or None if only the rows know them (JSON).
        rows: The format of each file, and its rows; a row that cannot be parsed is replaced by its problem.
        doubt: Possible reason for missing columns: a file without a header, or of another kind.
    """

    columns: tuple[str, ...] | None
    rows: Iterator[Item]
    doubt: Problem | None = None


@dataclass(frozen=True)
class Options:
    """Statements of the user about the files of a source.

    Attributes:
        encoding: Codec of text files, or ``auto``.
        delimiter: Character between the cells of CSV files, or None to infer it.
        stream_from: Size in bytes from which JSON Lines and CSV files are read line by line, in constant memory; what
            is inferred about such a file is inferred from its beginning. None reads every file at once.
    """

    encoding: str = "auto"
    delimiter: str | None = None
    stream_from: int | None = None
