"""Parse CSV and TSV files as spreadsheets, databases and people write them."""

from __future__ import annotations

import csv
import io
import itertools
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from fulltune.data.raw import Opened
from fulltune.data.table_rows import Cells, open_table, titles
from fulltune.errors import DataError, Problem
from fulltune.records.run import FileFormat

_LOG = logging.getLogger(__name__)

_LINE_END = re.compile(r"\r\n|\n|\r")

#: First line that declares the delimiter for Excel.
_DECLARED = re.compile(r"\"?sep=([^\w\s\"]|\t)\"?[ \t]*(?:\r\n|\n|\r)", re.IGNORECASE)

#: Usual delimiters, and others that are considered if no usual one occurs in the header.
_USUAL = (",", ";", "\t", "|")
_UNUSUAL = ("\x1f", "\x01", "¦", "§", "~", "^", ":", "#", "/")

#: Number of rows, and of characters, that are parsed to infer the delimiter.
_SAMPLE_ROWS, _SAMPLE = 50, 1 << 17

#: Maximum length in characters of a cell of a file that is read line by line.
_LONGEST_CELL = 1 << 27

#: Column names, as they are written in a header with an unusual delimiter.
_NAME = re.compile(r"[^\W\d][\w .-]{0,40}")


@dataclass(frozen=True)
class _Dialect:
    """Separator and quoting of cells, in the terms of :mod:`csv`."""

    delimiter: str
    skipinitialspace: bool = False
    quotechar: str = '"'
    escapechar: str | None = None
    quoting: Any = csv.QUOTE_MINIMAL

    @property
    def options(self) -> dict[str, Any]:
        return {
            "delimiter": self.delimiter,
            "skipinitialspace": self.skipinitialspace,
            "quotechar": self.quotechar,
            "escapechar": self.escapechar,
            "doublequote": self.escapechar is None,
            "quoting": self.quoting,
        }


def open_csv(
    text: str,
    name: str,
    form: FileFormat,
    wanted: Collection[str] | None = None,
    delimiter: str | None = None,
    usual: str = ",",
) -> Opened:
    """Open the text of a CSV file.

    Args:
        text: The complete text.
        name: Name of the file, for the positions of rows.
        form: The format of the file, without the delimiter.
        wanted: Columns that are read; used to explain a missing header.
        delimiter: Character between cells; None infers it.
        usual: Delimiter if several are equally likely.

    Raises:
        DataError: The header is missing or ambiguous.
    """
    text = text.lstrip("\ufeff").replace("\n\ufeff", "\n")  # concatenated files each begin with a byte-order mark
    dialect, rows, _, assumed = _inferred(text, name, wanted, delimiter, usual)
    form = form.model_copy(update={"delimiter": dialect.delimiter, "assumed": (*form.assumed, *assumed)})
    return open_table(iter(rows), name, form, wanted, trimmed=dialect.skipinitialspace)


def stream_csv(
    sample: str, lines: Iterator[str], name: str, form: FileFormat, delimiter: str | None = None, usual: str = ","
) -> Opened:
    """Open a CSV file that is read line by line; delimiter and quoting are inferred from its beginning.

    Args:
        sample: Complete lines from the beginning of the file.
        lines: All lines, with their ends.
        name, form, delimiter, usual: As in :func:`open_csv`.

    Raises:
        DataError: The header is missing or ambiguous.
    """
    dialect, _, before, assumed = _inferred(_complete_rows(sample.lstrip("\ufeff")), name, None, delimiter, usual)
    form = form.model_copy(update={"delimiter": dialect.delimiter, "assumed": (*form.assumed, *assumed)})
    rows = _parsed(islice(lines, before, None), name, dialect, before, _LONGEST_CELL)
    return open_table(rows, name, form, None, trimmed=dialect.skipinitialspace)


def _complete_rows(sample: str) -> str:
    """Return the lines of a sample up to the last one that no quoted cell continues; all, if quotes are not paired."""
    quotes, end = sample.count('"'), len(sample)
    while quotes % 2 and end:
        start = sample.rfind("\n", 0, end - 1) + 1
        quotes -= sample.count('"', start, end)
        end = start
    return sample[:end] or sample


def _inferred(
    text: str, name: str, wanted: Collection[str] | None, delimiter: str | None, usual: str
) -> tuple[_Dialect, list[Cells], int, list[str]]:
    """Return the dialect of a text, its rows, the number of lines before its header, and what was assumed."""
    declared = _DECLARED.match(text)
    body = text[declared.end() :] if declared else text
    before = 1 if declared else 0
    table = _without_titles(body, wanted or ())
    chosen = delimiter or (declared[1] if declared else _delimiter(table, usual, wanted or ()))
    dialect, rows, assumed = _best(body, name, _dialect(table, chosen), before)
    return dialect, rows, before, assumed


def _without_titles(text: str, wanted: Collection[str]) -> str:
    """Return a text from its column names on: lines above them have no delimiter to infer one from."""
    head = text.lstrip("\r\n")[:_SAMPLE]
    for sign in _USUAL:
        above = titles(_sample(head, sign), wanted)
        for _ in range(above):
            text = _LINE_END.split(text.lstrip("\r\n"), maxsplit=1)[-1]
        if above:
            return text
    return text


def is_table(text: str, wanted: Collection[str] = ()) -> bool:
    """Return True if text is a table: a header of at least two names, and rows with as many cells.

    With a delimiter that prose has too (not a tab), the header must contain the wanted columns.
    """
    text = text.lstrip("\ufeff\r\n")
    delimiter = _delimiter(text, ",", ())
    header, *rows = _sample(text, delimiter) or [[]]
    names = [cell.strip() for cell in header]
    if len(names) < 2 or not rows or any(len(row) != len(names) for row in rows) or not all(map(_is_name, names)):
        return False
    return delimiter in ("\t", "\x1f", "\x01") or (len(wanted) > 1 and set(wanted) <= set(names))


def _is_name(cell: str) -> bool:
    return _NAME.fullmatch(cell) is not None


def _dialect(text: str, delimiter: str) -> _Dialect:
    """Return the dialect by the header: with a space before it, a quote would be read as part of the cell."""
    quote = "'" if re.match(rf"'[^'\r\n]*'({re.escape(delimiter)} ?'[^'\r\n]*')*\s*(\r|\n|$)", text) else '"'
    header = _header(text)
    spaced = re.match(rf"(?:[^\"]|\"[^\"]*\")*?{re.escape(delimiter)} ", header) is not None
    return _Dialect(delimiter, spaced, quote)


def _header(text: str) -> str:
    return _LINE_END.split(text.lstrip("\r\n")[:_SAMPLE], maxsplit=1)[0]


def _delimiter(text: str, usual: str, wanted: Collection[str]) -> str:
    """Return the delimiter: the one that gives the header several cells and the first rows as many."""
    header = re.sub(r'"[^"]*"', "", _header(text))
    present = [sign for sign in dict.fromkeys((usual, *_USUAL)) if sign in header]
    if present:
        return max(present, key=lambda sign: (round(_consistency(text, sign), 1), header.count(sign)))
    for sign in _UNUSUAL:
        cells = [cell.strip() for cell in header.split(sign)]
        if len(cells) > 1 and (set(wanted) <= set(cells) if len(wanted) > 1 else all(map(_is_name, cells))):
            rows = _sample(text, sign)
            if all(len(row) == len(rows[0]) for row in rows):
                return sign
    return usual


def _consistency(text: str, delimiter: str) -> float:
    """Return the fraction of the first rows that have as many cells as the header."""
    rows = _sample(text, delimiter)
    return sum(len(row) == len(rows[0]) for row in rows[1:]) / max(1, len(rows) - 1) if rows else 0.0


def _sample(text: str, delimiter: str) -> list[list[str]]:
    """Return the cells of the first rows; trailing empty cells are ignored."""
    part = text.lstrip("\r\n")[:_SAMPLE]
    if len(part) == _SAMPLE:
        part = part[: part.rfind("\n") + 1] or part
    try:
        rows = list(islice(csv.reader(io.StringIO(part, newline=""), delimiter=delimiter), _SAMPLE_ROWS))
    except csv.Error:
        rows = [line.split(delimiter) for line in _LINE_END.split(part)[:_SAMPLE_ROWS]]
    return [_without_empty_end(row) for row in rows if row]


def _without_empty_end(cells: Sequence[str]) -> list[str]:
    cells = list(cells)
    while len(cells) > 1 and not cells[-1].strip():
        cells.pop()
    return cells


def _best(text: str, name: str, dialect: _Dialect, before: int) -> tuple[_Dialect, list[Cells], list[str]]:
    """Return the rows in the dialect, or in another way of quoting if only that gives a table without a problem.

    Raises:
        DataError: Quotes are escaped with backslashes, and rows are ambiguous even so.
    """
    rows = list(_rows(text, name, dialect, before))
    if '"' not in text or dialect.quotechar != '"':
        return dialect, rows, []
    escaped = '\\"' in text
    if escaped and not _is_clean(rows):
        other = replace(dialect, escapechar="\\")
        again = list(_rows(text, name, other, before))
        if _is_clean(again):
            return other, again, ['quotes are escaped as \\": read so']
    if not _is_clean(rows) or _joins_rows(rows, dialect):
        other = replace(dialect, quoting=csv.QUOTE_NONE)
        again = list(_rows(text, name, other, before))
        if _is_clean(again) and _width(again) > 1 and _has_loose_quotes(again):
            return other, again, ["quotes do not enclose cells: they are read as characters"]
    if escaped and any(isinstance(cells, Problem) for _, cells in rows):
        raise DataError(_backslashes(text, name, before))
    return dialect, rows, []


def _is_clean(rows: Sequence[Cells]) -> bool:
    """Return True if all rows have as many cells as the first one."""
    widths = {0 if isinstance(cells, Problem) else len(_without_empty_end(cells)) for _, cells in rows}
    return len(widths) == 1 and 0 not in widths


def _width(rows: Sequence[Cells]) -> int:
    first = rows[0][1]
    return 0 if isinstance(first, Problem) else len(first)


def _has_loose_quotes(rows: Sequence[Cells]) -> bool:
    """Return True if more cells begin or end with a quote than do both: then quotes do not enclose cells."""
    cells = [cell for _, row in rows if not isinstance(row, Problem) for cell in row]
    loose = sum(cell.startswith('"') != cell.endswith('"') for cell in cells)
    return loose > sum(len(cell) > 1 and cell.startswith('"') and cell.endswith('"') for cell in cells)


def _joins_rows(rows: Sequence[Cells], dialect: _Dialect) -> bool:
    """Return True if a quoted cell has lines with tabs: rows that begin with a quote, in a file that quotes nothing."""
    cells = (cell for _, row in rows if not isinstance(row, Problem) for cell in row)
    return dialect.delimiter == "\t" and any("\t" in cell and "\n" in cell for cell in cells)


def _rows(text: str, name: str, dialect: _Dialect, before: int) -> Iterator[Cells]:
    """Yield the cells of each row of a text after its ``before`` first lines."""
    return _parsed(io.StringIO(text, newline=""), name, dialect, before, len(text))


def _parsed(lines: Iterable[str], name: str, dialect: _Dialect, before: int, longest: int) -> Iterator[Cells]:
    """Yield the cells of each row that is not blank, with its position.

    Parsing is strict, so that an unclosed quote does not hide the rest of the file.

    Args:
        lines: Lines of the file after the ``before`` first ones.
        name: Name of the file.
        dialect: The separator and the quotes of cells.
        before: Number of lines that were removed.
        longest: Maximum length of a cell in characters.
    """
    reader = csv.reader(lines, strict=True, **dialect.options)
    for row in itertools.count(1):
        where = _place(name, row, before + reader.line_num + 1)
        # The limit is global in the csv module; documents are longer than its default of 128 KiB.
        limit = csv.field_size_limit(max(longest, 131072))
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield where, _not_csv(error, where)
            continue
        finally:
            csv.field_size_limit(limit)
        if any(map(str.strip, cells)):  # spreadsheets write rows of empty cells below a table
            yield where, cells


def _place(name: str, row: int, line: int) -> str:
    """Return the position of a row: its number as spreadsheets count, from the header, and its first line.

    The two differ after cells of several lines, and after a line that declares the delimiter.
    """
    return f"{name}:{line}" if row == line else f"{name} row {row} (line {line})"


def _backslashes(text: str, name: str, before: int) -> Problem:
    line = before + text.count("\n", 0, text.index('\\"')) + 1
    fix = 'write "" for a quote inside quotes, e.g. pd.read_csv(path, escapechar="\\\\").to_csv(other, index=False)'
    return Problem('not valid CSV: quotes are escaped as \\"', "doubled quotes", fix, f"{name}:{line}")


def _not_csv(error: csv.Error, where: str) -> Problem:
    message = str(error)
    if "expected after" in message:
        problem, fix = "text or a space after a closing quote", "write two quotes for one inside a cell"
    elif "unexpected end" in message:
        problem, fix = "a quote that is never closed", "close it, or write two quotes for one inside a cell"
    elif "NUL" in message:
        problem, fix = "a NUL byte", "remove it"
    else:
        problem, fix = message, "correct the row"
    return Problem(f"not valid CSV: {problem}", "quotes that are closed, and doubled inside cells", fix, where)
