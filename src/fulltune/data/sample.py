"""Draw the rows that ``data.limit`` and ``data.eval_limit`` allow."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass, replace

from fulltune.data.load import Row, Table


@dataclass(frozen=True)
class _Unit:
    """Rows that stay together: their numbers, what they are stratified by, and a seeded hash of their content."""

    rows: tuple[int, ...]
    stratum: tuple[str, str]
    lot: str


def sampled(table: Table, limit: int | None, seed: int = 0) -> Table:
    """Return a table with at most ``limit`` of the rows, in their order; the first rows of a file are no fair sample.

    Each label and each folder is drawn at the rate of its rows (systematic sampling). Rows of one group stay together:
    whole groups are drawn, at least one. The draw depends on the rows and the seed, not on the order of the rows.

    Args:
        table: All rows.
        limit: Largest number of rows; None for all.
        seed: Seed of the draw.
    """
    if limit is None or len(table) <= limit:
        return table
    units = _units(table, seed)
    by_lot = sorted(units, key=lambda unit: unit.lot)
    chosen = set[int]()
    due = 0.0
    for unit in sorted(by_lot, key=lambda unit: unit.stratum):
        size = len(unit.rows)
        due += limit / len(table) * size
        if 2 * due >= size and len(chosen) + size <= limit:
            chosen.update(unit.rows)
            due -= size
    for unit in by_lot:  # rounding leaves room for a few
        if chosen.isdisjoint(unit.rows) and len(chosen) + len(unit.rows) <= limit:
            chosen.update(unit.rows)
    chosen = chosen or set(min(by_lot, key=lambda unit: len(unit.rows)).rows)
    rows = tuple(row for number, row in enumerate(table) if number in chosen)
    return replace(table, rows=rows, drawn_from=len(table))


def _units(table: Table, seed: int) -> list[_Unit]:
    members = defaultdict[object, list[int]](list)
    for number, row in enumerate(table):
        members[row.fields.get("group", number)].append(number)
    return [_unit(table, numbers, seed) for numbers in members.values()]


def _unit(table: Table, numbers: list[int], seed: int) -> _Unit:
    rows = [table[number] for number in numbers]
    return _Unit(tuple(numbers), _stratum(rows[0]), min(_lot(row, seed) for row in rows))


def _stratum(row: Row) -> tuple[str, str]:
    label = row.fields.get("label", row.fields.get("labels", ""))
    return str(label), row.folder


def _lot(row: Row, seed: int) -> str:
    content = json.dumps([seed, dict(row.fields)], sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
