"""Parse CSV and TSV files as spreadsheets, databases and people write them."""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Collection, Iterator, Sequence
from itertools import chain, islice

from fulltune.data.columnar import Opened, RawRow
from fulltune.errors import DataError, Problem, shortened

_LOG = logging.getLogger(__name__)

_LINE_END = re.compile(r"\r\n|\n|\r")

#: Number of rows that are compared with the first line to decide whether it is a header.
_LOOK_AHEAD = 100

#: Cells with at least this many words are not column names.
_SENTENCE = 6

#: First line that declares the separator for Excel.
_DECLARED_SEPARATOR = re.compile(r"\"?sep=([^\w\s\"]|\t)\"?[ \t]*(?:\r\n|\n|\r)", re.IGNORECASE)

#: A row's first line and its cells, or its problem.
_Cells = tuple[str, list[str] | Problem]


def open_csv(text: str, name: str, kind: str, wanted: Collection[str] | None = None) -> Opened:
    """Open the text of a CSV file.

    Args:
        text: The complete text.
        name: Name of the file, for the positions of rows.
        kind: Suffix, ``.csv`` or ``.tsv``.
        wanted: Columns that are read; used to explain a missing header.

    Raises:
        DataError: The header is missing or ambiguous.
    """
    text = text.lstrip("\ufeff").replace("\n\ufeff", "\n")  # concatenated files each begin with a byte-order mark
    declared = _DECLARED_SEPARATOR.match(text)
    separator = declared[1] if declared else _separator(text, "\t" if kind == ".tsv" else ",")
    if separator not in (",", "\t"):
        _LOG.info("%s: cells are separated by %r", name, separator)
    body = text[declared.end() :] if declared else text
    # With a space before it, a quote would be read as part of the cell.
    spaced = re.match(rf"(?:[^\"\r\n]|\"[^\"\r\n]*\")*?{re.escape(separator)} ", body) is not None
    rows = _csv_rows(body, name, separator, spaced, 1 if declared else 0)
    place, header = next(rows, (f"{name}:1", []))
    if isinstance(header, Problem):
        raise DataError(header)
    sample = list(islice(rows, _LOOK_AHEAD))
    padded = spaced or any(cell != cell.strip() for cell in header)
    if padded:
        _LOG.info("%s: spaces around cells are removed, as the header has such spaces", name)
    columns = [column.strip() for column in header]
    while len(columns) > 1 and not columns[-1]:
        columns.pop()  # spreadsheets also write empty columns to the right of a table
    if sample and _is_rule(sample[0][1]):
        sample.pop(0)
    doubt = _misplaced(columns, sample, wanted or ()) or _in_one_cell(place, columns, wanted or ())
    if doubt is None and _looks_like_a_row(columns, sample):
        doubt = _no_header(place, columns, wanted)
    repeated = sorted({column for column in columns if columns.count(column) > 1})
    if repeated:
        called = repr(repeated[0]) if repeated[0] else "nothing"
        problem = Problem(f"two columns are called {called}", where=place, fix="rename one of them")
        raise DataError(doubt or problem)
    return Opened(
        tuple(columns),
        (_csv_row(where, cells, columns, padded) for where, cells in chain(sample, rows)),
        doubt,
    )


def _separator(text: str, usual: str) -> str:
    """Return the most frequent separator in the header, outside quotes."""
    header = re.sub(r'"[^"]*"', "", _LINE_END.split(text.lstrip("\r\n"), maxsplit=1)[0])
    return max((usual, ",", ";", "\t", "|"), key=header.count)


def _looks_like_a_row(header: Sequence[str], sample: Sequence[_Cells]) -> bool:
    """Return True if the first line has values: a number, a sentence, or a value that its column repeats below."""
    if list(header) in ([str(n) for n in range(len(header))], ["", *(str(n) for n in range(len(header) - 1))]):
        return False  # pandas numbers unnamed columns
    rows = [cells for _, cells in sample if not isinstance(cells, Problem)]
    for place, cell in enumerate(header):
        below = (cells[place].strip() for cells in rows if len(cells) > place)
        if _is_number(cell) or len(cell.split()) >= _SENTENCE or (cell and cell in below):
            return True
    return False


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"[-+]?\d+([.,]\d+)?", cell) is not None


def _is_rule(cells: list[str] | Problem) -> bool:
    """Return True if a row is the line below the header of a table, as in Markdown or the output of databases."""
    return not isinstance(cells, Problem) and re.fullmatch(r"[-+:=| ]*--[-+:=| ]*", "".join(cells)) is not None


def _misplaced(header: Sequence[str], sample: Sequence[_Cells], wanted: Collection[str]) -> Problem | None:
    """Return a problem if other lines, such as a title, precede the column names."""
    names = set(wanted)
    if len(names) < 2 or names & set(header):
        return None
    for where, cells in sample:
        if not isinstance(cells, Problem) and len(names & {cell.strip() for cell in cells}) >= 2:
            problem = f"the column names are not in the first line but at {where}"
            return Problem(problem, "the names in the first line", "remove the lines before them", where)
    return None


def _in_one_cell(place: str, header: Sequence[str], wanted: Collection[str]) -> Problem | None:
    """Return a problem if the header has no known separator."""
    if len(header) > 1 or len(wanted) < 2 or not set(wanted) <= set(re.findall(r"\w+", header[0] if header else "")):
        return None
    fix = "replace the separator, or declare it in a first line such as `sep=:`"
    problem = f"the first line is a single cell ({shortened(header[0], 60)})"
    return Problem(problem, "cells separated by a comma, semicolon, tab or |", fix, place)


def _no_header(place: str, cells: Sequence[str], wanted: Collection[str] | None) -> Problem:
    shown = ", ".join(shortened(cell, 30) for cell in cells[:4])
    names = list(wanted or ()) if len(wanted or ()) == len(cells) else []
    fix = f"add {','.join(names)} as the first line (in the order of the cells)" if names else "add a header"
    return Problem(f"the first line is a row ({shown})", "the column names in the first line", fix, place)


def _csv_rows(text: str, name: str, separator: str, spaced: bool, before: int) -> Iterator[_Cells]:
    """Yield the cells of each row that is not blank, with the position of its first line.

    Parsing is strict, so that an unclosed quote does not hide the rest of the file.

    Args:
        text: Text of the file after the ``before`` first lines.
        name: Name of the file.
        separator: Character between cells.
        spaced: Spaces follow the separators.
        before: Number of lines that were removed.

    Raises:
        DataError: Quotes are escaped with backslashes, so that the ends of cells are ambiguous.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=spaced)
    while True:
        line = before + reader.line_num + 1
        where = f"{name}:{line}"
        # The limit is global in the csv module; documents are longer than its default of 128 KiB.
        limit = csv.field_size_limit(max(len(text), 131072))
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if '\\"' in text:
                raise DataError(_backslashes(text, name, before)) from None
            yield where, _not_csv(error, where)
            continue
        finally:
            csv.field_size_limit(limit)
        if cells:
            yield where, cells


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


def _csv_row(where: str, cells: list[str] | Problem, columns: list[str], padded: bool) -> RawRow | Problem:
    if isinstance(cells, Problem):
        return cells
    while len(cells) > len(columns) and not cells[-1].strip():
        cells.pop()
    if len(cells) > 1 and [cell.strip() for cell in cells] == columns:
        problem = "the header is repeated, as in concatenated files"
        return Problem(problem, "a row", "remove the line", where)
    if len(cells) != len(columns):
        fix = "quote cells that hold a separator or a line break"
        return Problem(f"{len(cells)} cell{'s' * (len(cells) != 1)}", f"{len(columns)} (as the header has)", fix, where)
    return where, dict(zip(columns, map(str.strip, cells) if padded else cells, strict=True))
