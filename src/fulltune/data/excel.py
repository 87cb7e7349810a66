"""Open Excel workbooks (.xlsx, .xlsm) as tables of text, as Excel would save them as CSV."""

from __future__ import annotations

import datetime
import io
import warnings
import zipfile
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from fulltune.data.file_text import memory_limit, too_large
from fulltune.data.formats import by_name
from fulltune.data.raw import Opened
from fulltune.data.table_rows import Cells, filled, open_table
from fulltune.errors import DataError, did_you_mean
from fulltune.records.run import FileFormat
from fulltune.runtime import extras
from fulltune.runtime.split_names import SPLIT_NAMES

#: Values of cells whose formula failed; they are read as empty.
_ERRORS = ("#DIV/0!", "#N/A", "#NAME?", "#NULL!", "#NUM!", "#REF!", "#VALUE!", "#GETTING_DATA")

#: Rows of several cells from which a sheet is a table.
_FEWEST_ROWS = 8


def open_excel(path: Path, part: str, split: str, wanted: Collection[str] | None) -> Opened:
    """Open a sheet of a workbook.

    Args:
        path: The workbook.
        part: Name of the sheet; by default the one named after the split, otherwise the first one with a table, or
            with cells.
        split: The split to read.
        wanted: Columns that are read; used to explain a missing header.

    Raises:
        DataError: The workbook is damaged or encrypted, or has no such sheet, or no cells.
        MissingDependencyError: openpyxl is not installed.
    """
    book = _workbook(path)
    try:
        sheet, assumed = _sheet(book, path, part, split)
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - openpyxl parses sheets when they are read
        raise _damaged(path, error) from None
    form = FileFormat(file=path.name, format="excel", part=sheet.title, assumed=assumed)
    return open_table(_readable(_rows(sheet, path.name), path), path.name, form, wanted)


def _workbook(path: Path) -> Any:
    try:
        import openpyxl
    except ImportError:
        what = "an Excel workbook"
        if by_name(path) != "excel":
            what = f"this is an Excel workbook, although its name ends in {path.suffix or 'no suffix'}, and it"
        raise extras.missing(
            what, ["openpyxl"], "excel", where=str(path), instead="save the sheet as CSV UTF-8"
        ) from None
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > memory_limit():
                raise too_large(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about parts of the workbook that are not read, such as validations
            # A file object, because openpyxl rejects other suffixes; in memory, so that no file stays open.
            return openpyxl.load_workbook(io.BytesIO(path.read_bytes()), read_only=True, data_only=True)
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - openpyxl raises many types for damaged workbooks
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> DataError:
    reason = str(error).partition("\n")[0] or type(error).__name__
    fix = "open it in a spreadsheet program, and save it as .xlsx (without a password) or as CSV UTF-8"
    return DataError(f"not a readable Excel workbook ({reason})", where=str(path), fix=fix)


def _sheet(book: Any, path: Path, part: str, split: str) -> tuple[Any, tuple[str, ...]]:
    """Return the sheet to read, and what is assumed by that.

    Raises:
        DataError: There is no such sheet, or all are empty.
    """
    sheets = {sheet.title: sheet for sheet in book.worksheets}
    if part:
        if part not in sheets:
            fix = did_you_mean(part, sheets) or "choose one of these"
            expected = f"one of {', '.join(sheets)}"
            raise DataError(f"no sheet {part!r}", expected=expected, where=str(path), fix=fix)
        return sheets[part], ()
    filled = [title for title, sheet in sheets.items() if next(_rows(sheet, ""), None) is not None]
    if not filled:
        raise DataError("no rows: all sheets are empty", expected="at least one", where=str(path), fix="check the file")
    names = SPLIT_NAMES.get(split, (split,))
    of_split = [title for title in filled if title.strip().lower() in names]
    chosen = (of_split or [title for title in filled if _is_table(sheets[title])] or filled)[0]
    if of_split or len(filled) == 1:
        return sheets[chosen], ()
    return sheets[chosen], (
        f"of {len(filled)} sheets with cells {chosen!r} is read; write {path.name}#NAME for another",
    )


def _is_table(sheet: Any) -> bool:
    """Return True for a sheet with rows of several cells, which notes about a workbook are not."""
    wide = (cells for _, cells in _rows(sheet, "") if isinstance(cells, list) and len(filled(cells)) > 1)
    return len(list(islice(wide, _FEWEST_ROWS))) == _FEWEST_ROWS


def _rows(sheet: Any, name: str) -> Iterator[Cells]:
    """Yield the texts of the cells of each row that is not blank, and its number; all rows have the header's cells."""
    sheet.reset_dimensions()  # some programs write wrong ones
    width = 0
    for number, cells in enumerate(sheet.iter_rows(values_only=True), start=1):
        texts = [_text(cell) for cell in cells]
        while texts and not texts[-1].strip():
            texts.pop()
        if texts:
            width = max(width, len(texts))
            yield f"{name}:{number}", texts + [""] * (width - len(texts))


def _readable(rows: Iterator[Cells], path: Path) -> Iterator[Cells]:
    """Yield rows that are parsed lazily.

    Raises:
        DataError: A part of the workbook is damaged.
    """
    try:
        yield from rows
    except Exception as error:  # noqa: BLE001 - openpyxl raises many types for damaged sheets
        raise _damaged(path, error) from None


def _text(value: Any) -> str:
    """Return a value as Excel writes it to CSV, with dates in ISO format."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat(" ") if isinstance(value, datetime.datetime) else value.isoformat()
    text = str(value).replace("_x000D_\n", "\n")
    return "" if text in _ERRORS else text
