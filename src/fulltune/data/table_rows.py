"""Convert the cells of a table (CSV or a sheet) to rows with named columns."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import chain, islice

from fulltune.data.raw import Item, Opened, RawRow
from fulltune.errors import DataError, Problem, shortened
from fulltune.records.run import FileFormat

#: Number of rows that are compared with the first line to decide whether it is a header.
_LOOK_AHEAD = 100

#: Rows above the column names that may be a title.
_TITLES = 5

#: Cells with at least this many words are not column names.
_SENTENCE = 6

#: Position of a row, and its cells or its problem.
Cells = tuple[str, list[str] | Problem]


def open_table(
    rows: Iterator[Cells], name: str, form: FileFormat, wanted: Collection[str] | None, *, trimmed: bool = False
) -> Opened:
    """Open a table whose first row has the column names.

    Args:
        rows: The rows that are not blank.
        name: Name of the file.
        form: The format of the file.
        wanted: Columns that are read; used to explain a missing header.
        trimmed: Remove spaces around cells.

    Raises:
        DataError: The header is missing or ambiguous.
    """
    sample = list(islice(rows, _LOOK_AHEAD))
    above = titles([cells if isinstance(cells, list) else [] for _, cells in sample], wanted or ())
    place, header = sample[above] if sample else (f"{name}:1", [])
    if isinstance(header, Problem):
        raise DataError(header)
    columns = [column.strip() for column in header]
    assumed = list(form.assumed)
    if above:
        shown = ", ".join(shortened(filled(cells)[0], 30) for _, cells in sample[:above] if isinstance(cells, list))
        assumed.append(f"a title is above the column names: {shown} {'is' if above == 1 else 'are'} not read")
    sample = sample[above + 1 :]
    if trimmed or any(cell != cell.strip() for cell in header):
        trimmed = True
        assumed.append("the header has spaces around names: spaces around cells are removed")
    while len(columns) > 1 and not columns[-1]:
        columns.pop()  # spreadsheets also write empty columns to the right of a table
    if sample and _is_rule(sample[0][1]):
        sample.pop(0)
    if _are_numbered(columns, sample):
        columns.insert(0, "")
        assumed.append("the rows have one cell more than the header: the first one is the row's number, as R writes it")
    doubt = _misplaced(columns, sample, wanted or ()) or _in_one_cell(place, columns, wanted or ())
    if doubt is None and _looks_like_a_row(columns, sample):
        doubt = _no_header(place, columns, wanted)
    _check_unique(columns, place, wanted, doubt)
    form = form.model_copy(update={"assumed": tuple(assumed)})
    items: Iterator[Item] = (_row(where, cells, columns, trimmed) for where, cells in chain(sample, rows))
    return Opened(tuple(dict.fromkeys(columns)), chain([form], items), doubt)


def titles(rows: Sequence[list[str]], wanted: Collection[str] = ()) -> int:
    """Return how many of the first rows are a title above the column names.

    A title is alone in its row. What follows is a table: names in several cells, and most rows with as many. Prose in a
    single column has commas too, so that a title without empty cells beside it must not look like a column name.
    """
    for above, header in enumerate(rows[: _TITLES + 1]):
        names, below = filled(header), rows[above + 1 :]
        if len(names) > 1:
            wide = sum(len(filled(cells)) > 1 for cells in below)
            is_table = below and len(names) == len(_without_end(header)) and wide > 0.9 * len(below)
            is_header = all(map(_is_name, names))
            return above if is_table and is_header else 0
        if not names or set(names) & set(wanted) or not (len(header) > 1 or " " in names[0].strip()):
            return 0
    return 0


def _is_name(cell: str) -> bool:
    """Return True if a cell can be a column name; the comma of a sentence is followed by a space."""
    return not (cell[0].isspace() or _is_number(cell) or len(cell.split()) >= _SENTENCE)


def filled(cells: Sequence[str]) -> list[str]:
    """Return the cells that are not blank."""
    return [cell for cell in cells if cell.strip()]


def _without_end(cells: Sequence[str]) -> list[str]:
    """Return the cells up to the last one that is not blank."""
    last = max((place for place, cell in enumerate(cells) if cell.strip()), default=-1)
    return list(cells[: last + 1])


def _check_unique(columns: Sequence[str], place: str, wanted: Collection[str] | None, doubt: Problem | None) -> None:
    """Check that no two columns have the same name, except for columns that are not read.

    Raises:
        DataError: Columns that are read have the same name.
    """
    counts = Counter(columns)
    repeated = sorted(column for column in set(wanted or ()) if counts[column] > 1)
    if repeated:
        called = repr(repeated[0]) if repeated[0] else "nothing"
        problem = Problem(f"two columns are called {called}", where=place, fix="rename one of them")
        raise DataError(doubt or problem)


def _are_numbered(columns: Sequence[str], sample: Sequence[Cells]) -> bool:
    """Return True if each row begins with its number, and has one cell more than the header."""
    rows = [cells for _, cells in sample if not isinstance(cells, Problem)]
    if not rows or "" in columns or any(len(cells) != len(columns) + 1 for cells in rows):
        return False
    numbers = [cells[0] for cells in rows]
    return numbers in ([str(first + number) for number in range(len(rows))] for first in (0, 1))


def _looks_like_a_row(header: Sequence[str], sample: Sequence[Cells]) -> bool:
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


def _misplaced(header: Sequence[str], sample: Sequence[Cells], wanted: Collection[str]) -> Problem | None:
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
    fix = "set data.delimiter to the character between the cells"
    problem = f"the first line is a single cell ({shortened(header[0], 60)})"
    return Problem(problem, "cells separated by a comma, semicolon, tab or |", fix, place)


def _no_header(place: str, cells: Sequence[str], wanted: Collection[str] | None) -> Problem:
    shown = ", ".join(shortened(cell, 30) for cell in cells[:4])
    names = list(wanted or ()) if len(wanted or ()) == len(cells) else []
    fix = f"add {','.join(names)} as the first line (in the order of the cells)" if names else "add a header"
    return Problem(f"the first line is a row ({shown})", "the column names in the first line", fix, place)


def _row(where: str, cells: list[str] | Problem, columns: list[str], trimmed: bool) -> RawRow | Problem:
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
    row = dict[str, str]()
    for column, cell in zip(columns, cells, strict=True):
        row.setdefault(column, cell.strip() if trimmed else cell)
    return where, row
