"""Rows of CSV and TSV files, as spreadsheets, databases and people write them."""

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

#: Rows that are compared with the first line to tell whether it is a header.
_LOOK_AHEAD = 100

#: A name of a column has fewer words than this.
_SENTENCE = 6

#: The first line by which Excel is told how cells are separated.
_DECLARED_SEPARATOR = re.compile(r"\"?sep=([^\w\s\"]|\t)\"?[ \t]*(?:\r\n|\n|\r)", re.IGNORECASE)

#: A row's first line and its cells, or what is wrong with it.
_Cells = tuple[str, list[str] | Problem]


def open_csv(text: str, name: str, kind: str, wanted: Collection[str] | None = None) -> Opened:
    """Open the text of a CSV file.

    Args:
        text: The whole file.
        name: Its name, for the places of rows.
        kind: Its suffix, ``.csv`` or ``.tsv``.
        wanted: Columns that are read, which a file without a header lacks.

    Raises:
        DataError: The header is missing or ambiguous.
    """
    text = text.lstrip("\ufeff").replace("\n\ufeff", "\n")  # files that were joined, each with its mark
    declared = _DECLARED_SEPARATOR.match(text)
    separator = declared[1] if declared else _separator(text, "\t" if kind == ".tsv" else ",")
    if separator not in (",", "\t"):
        _LOG.info("%s: cells are separated by %r", name, separator)
    body = text[declared.end() :] if declared else text
    # A space before a quote would make the quote a part of the cell.
    spaced = re.match(rf"(?:[^\"\r\n]|\"[^\"\r\n]*\")*?{re.escape(separator)} ", body) is not None
    rows = _csv_rows(body, name, separator, spaced, 1 if declared else 0)
    place, header = next(rows, (f"{name}:1", []))
    if isinstance(header, Problem):
        raise DataError(header)
    sample = list(islice(rows, _LOOK_AHEAD))
    padded = spaced or any(cell != cell.strip() for cell in header)
    if padded:
        _LOG.info("%s: spaces around cells are no part of them, as in the header", name)
    columns = [column.strip() for column in header]
    while len(columns) > 1 and not columns[-1]:
        columns.pop()  # spreadsheets write the empty columns beside a table
    if sample and _is_rule(sample[0][1]):
        sample.pop(0)
    doubt = _misplaced(columns, sample, wanted or ()) or _in_one_cell(place, columns, wanted or ())
    if doubt is None and _looks_like_a_row(columns, sample):
        doubt = _no_header(place, columns, wanted)
    repeated = sorted({column for column in columns if columns.count(column) > 1})
    if repeated:
        called = repr(repeated[0]) if repeated[0] else "nothing"
        two = Problem(f"two columns are called {called}", where=place, fix="rename one of them")
        raise DataError(doubt or two)
    return Opened(
        tuple(columns),
        (_csv_row(where, cells, columns, padded) for where, cells in chain(sample, rows)),
        doubt,
    )


def _separator(text: str, usual: str) -> str:
    """Return the sign that separates the cells of the header: the most frequent of those in use, outside of quotes."""
    header = re.sub(r'"[^"]*"', "", _LINE_END.split(text.lstrip("\r\n"), maxsplit=1)[0])
    return max((usual, ",", ";", "\t", "|"), key=header.count)


def _looks_like_a_row(header: Sequence[str], sample: Sequence[_Cells]) -> bool:
    """Return whether the first line has values: a number, a sentence, or one that its column has again below."""
    if list(header) in ([str(n) for n in range(len(header))], ["", *(str(n) for n in range(len(header) - 1))]):
        return False  # pandas numbers columns without names
    rows = [cells for _, cells in sample if not isinstance(cells, Problem)]
    return any(
        _is_number(cell)
        or len(cell.split()) >= _SENTENCE
        or (cell and any(len(cells) > place and cells[place].strip() == cell for cells in rows))
        for place, cell in enumerate(header)
    )


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"[-+]?\d+([.,]\d+)?", cell) is not None


def _is_rule(cells: list[str] | Problem) -> bool:
    """Return whether a row is the line below the header of a table in Markdown, or as databases print it."""
    return not isinstance(cells, Problem) and re.fullmatch(r"[-+:=| ]*--[-+:=| ]*", "".join(cells)) is not None


def _misplaced(header: Sequence[str], sample: Sequence[_Cells], wanted: Collection[str]) -> Problem | None:
    """Return a problem if the names of the columns come after other lines, such as a title."""
    names = set(wanted)
    if len(names) < 2 or names & set(header):
        return None
    for where, cells in sample:
        if not isinstance(cells, Problem) and len(names & {cell.strip() for cell in cells}) >= 2:
            found = f"the names of the columns are not in the first line but at {where}"
            return Problem(found, "the names in the first line", "remove the lines before them", where)
    return None


def _in_one_cell(place: str, header: Sequence[str], wanted: Collection[str]) -> Problem | None:
    """Return a problem if the header is not separated by any sign that is known here."""
    if len(header) > 1 or len(wanted) < 2 or not set(wanted) <= set(re.findall(r"\w+", header[0] if header else "")):
        return None
    fix = "replace what separates the cells, or name it in a first line such as `sep=:`"
    found = f"the first line is a single cell ({shortened(header[0], 60)})"
    return Problem(found, "cells separated by a comma, semicolon, tab or |", fix, place)


def _no_header(place: str, cells: Sequence[str], wanted: Collection[str] | None) -> Problem:
    shown = ", ".join(shortened(cell, 30) for cell in cells[:4])
    names = list(wanted or ()) if len(wanted or ()) == len(cells) else []
    fix = f"add {','.join(names)} as the first line (in the order of the cells)" if names else "add such a line"
    return Problem(f"the first line is a row ({shown})", "the names of the columns in the first line", fix, place)


def _csv_rows(text: str, name: str, separator: str, spaced: bool, before: int) -> Iterator[_Cells]:
    """Yield the cells of each row that is not blank, with its first line.

    ``spaced``: spaces follow the separators; ``before`` lines were cut off. Strict: an open quote must not swallow the
    rest.

    Raises:
        DataError: Quotes are escaped with backslashes, so that the ends of cells are a matter of guessing.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=spaced)
    while True:
        line = before + reader.line_num + 1
        where = f"{name}:{line}"
        # The limit is the module's own; documents are longer than its default of 128 KiB.
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
    return Problem('not valid CSV: quotes are escaped as \\"', "quotes that are doubled", fix, f"{name}:{line}")


def _not_csv(error: csv.Error, where: str) -> Problem:
    message = str(error)
    if "expected after" in message:
        found, fix = "text or a space after a closing quote", "write two quotes for one inside a cell"
    elif "unexpected end" in message:
        found, fix = "a quote that is never closed", "close it, or write two quotes for one inside a cell"
    elif "NUL" in message:
        found, fix = "a NUL byte", "remove it"
    else:
        found, fix = message, "correct the row"
    return Problem(f"not valid CSV: {found}", "quotes that are closed and doubled inside", fix, where)


def _csv_row(where: str, cells: list[str] | Problem, columns: list[str], padded: bool) -> RawRow | Problem:
    if isinstance(cells, Problem):
        return cells
    while len(cells) > len(columns) and not cells[-1].strip():
        cells.pop()
    if len(cells) > 1 and [cell.strip() for cell in cells] == columns:
        found = "the names of the columns again, as where files were joined"
        return Problem(found, "a row", "remove the line", where)
    if len(cells) != len(columns):
        fix = "quote cells that hold a separator or a line break"
        return Problem(f"{len(cells)} cell{'s' * (len(cells) != 1)}", f"{len(columns)} (as the header has)", fix, where)
    return where, dict(zip(columns, map(str.strip, cells) if padded else cells, strict=True))
