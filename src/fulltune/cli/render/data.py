"""Show the classes of the data in a terminal."""

from __future__ import annotations

from rich.table import Table

from fulltune.records.data import ClassRows, DataSummary
from fulltune.report.dataset import quoted_label
from fulltune.runtime.terminal import wrapping_table

#: Number of classes that a table shows: the most and the least frequent ones.
SHOWN = 12


def classes(summary: DataSummary) -> list[Table]:
    """Return a table with the rows of each class, without those in the middle if there are many; or nothing."""
    if not summary.classes:
        return []
    splits = [split for split in ("train", "valid", "eval") if any(getattr(row, split) for row in summary.classes)]
    table = wrapping_table("class", *splits)
    head = summary.classes if len(summary.classes) <= SHOWN else summary.classes[: SHOWN // 2]
    rest = summary.classes[len(head) :]
    tail = rest[-(SHOWN // 2) :] if rest else ()
    for row in head:
        table.add_row(quoted_label(row.label), *_counts(row, splits))
    if len(rest) > len(tail):
        table.add_row(f"… {len(rest) - len(tail)} more", *([""] * len(splits)))
    for row in tail:
        table.add_row(quoted_label(row.label), *_counts(row, splits))
    return [table]


def _counts(row: ClassRows, splits: list[str]) -> list[str]:
    return [f"{getattr(row, split):,}" for split in splits]
