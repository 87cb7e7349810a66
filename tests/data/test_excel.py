"""Excel workbooks are read as Excel would save their sheets as CSV."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path
from typing import Any

import pytest

from fulltune.config import DataConfig
from fulltune.data.load import Column, Table, available_columns, load_table
from fulltune.data.read import read_rows
from fulltune.errors import DataError, MissingDependencyError

COLUMNS = (Column("text", str), Column("label", str))


def book(path: Path, **sheets: list[list[Any]]) -> Path:
    openpyxl = pytest.importorskip("openpyxl", reason="the extra `excel` is not installed")
    workbook = openpyxl.Workbook()
    workbook.remove(workbook.active)
    for title, rows in sheets.items():
        sheet = workbook.create_sheet(title)
        for row in rows:
            sheet.append(row)
    workbook.save(path)
    return path


def load(source: Path | str, split: str = "train") -> Table:
    return load_table(str(source), COLUMNS, DataConfig(train="x"), split=split)


def fields(table: Table) -> list[dict[str, Any]]:
    return [dict(row.fields) for row in table]


def test_cells_are_the_text_that_excel_writes_to_csv(tmp_path: Path) -> None:
    day = datetime.datetime(2024, 2, 29)
    header = ["text", "label", "whole", "real", "day", "time", "truth", "failed", None]
    values = ["two\nlines", 3, 4.0, 2.5, day, day.replace(hour=13), True, "#REF!", None]
    path = book(tmp_path / "a.xlsx", Sheet=[header, values, [None] * 9, ["short"]])
    rows = read_rows(str(path))
    assert rows.columns == ("text", "label", "whole", "real", "day", "time", "truth", "failed")
    assert list(rows.rows[0].values()) == [
        *("two\nlines", "3", "4", "2.5", "2024-02-29", "2024-02-29 13:00:00", "TRUE", "")
    ]
    assert rows.rows[1] == dict.fromkeys(rows.columns, "") | {"text": "short"}
    assert rows.places == ("a.xlsx:2", "a.xlsx:4")
    assert available_columns(str(path)) == rows.columns


def test_the_sheet_of_the_split_or_the_named_or_the_first_one_is_read(tmp_path: Path) -> None:
    header = ["text", "label"]
    path = book(tmp_path / "a.xlsx", Train=[header, ["x", "y"]], Test=[header, ["z", "y"]], Empty=[])
    assert fields(load(path)) == [{"text": "x", "label": "y"}]
    assert fields(load(path, "test")) == [{"text": "z", "label": "y"}]
    assert load(f"{path}#Test").files[0].part == "Test"
    with pytest.raises(DataError, match=r"no sheet 'test'; expected one of Train, Test, Empty\. Did you mean 'Test'"):
        load(f"{path}#test")
    other = book(tmp_path / "b.xlsx", Notes=[header, ["x", "y"]], More=[header, ["z", "y"]])
    assert "of 2 sheets with cells 'Notes' is read" in load(other).files[0].assumed[0]
    with pytest.raises(DataError, match="all sheets are empty"):
        load(book(tmp_path / "c.xlsx", Sheet=[[]]))


def test_a_sheet_of_notes_is_not_read_in_place_of_a_table(tmp_path: Path) -> None:
    table = [["text", "label"], *([f"clause {i}", "a"] for i in range(9))]
    path = book(tmp_path / "a.xlsx", Info=[["How to use"], [], ["Author", "Ann"]], Clauses=table)
    assert load(path).files[0].part == "Clauses"


def test_a_title_above_the_column_names_is_skipped(tmp_path: Path) -> None:
    path = book(tmp_path / "a.xlsx", Sheet=[["Clauses of 2024"], [], ["text", "label"], ["x", "y"], ["z", "y"]])
    table = load(path)
    assert fields(table) == [{"text": "x", "label": "y"}, {"text": "z", "label": "y"}]
    assert [row.id for row in table] == ["a.xlsx:4", "a.xlsx:5"]
    assert table.files[0].assumed == ("a title is above the column names: 'Clauses of 2024' is not read",)
    assert read_rows(str(path)).columns == ("text", "label")


def test_a_workbook_named_csv_is_read_and_noted(tmp_path: Path) -> None:
    path = book(tmp_path / "a.xlsx", Sheet=[["text", "label"], ["x", "y"]]).rename(tmp_path / "a.csv")
    table = load(path)
    assert fields(table) == [{"text": "x", "label": "y"}]
    assert table.files[0].assumed == ("its name ends in .csv, but its content is Excel: read as such",)


def test_a_damaged_workbook_is_one_clear_error(tmp_path: Path) -> None:
    path = book(tmp_path / "a.xlsx", Sheet=[["text", "label"], ["x", "y"]])
    data = path.read_bytes()
    at = data.index(b"xl/worksheets") + 40
    path.write_bytes(data[:at] + b"\0" * 60 + data[at + 60 :])
    with pytest.raises(DataError, match="not a readable Excel workbook"):
        load(path)


def test_without_openpyxl_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = book(tmp_path / "a.xlsx", Sheet=[["text", "label"], ["x", "y"]])
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(MissingDependencyError, match=r"\[excel\]'`, or save the sheet as CSV"):
        load(path)
    lying = path.rename(tmp_path / "a.csv")
    with pytest.raises(MissingDependencyError, match=r"is an Excel workbook, although its name ends in \.csv, and it"):
        load(lying)
