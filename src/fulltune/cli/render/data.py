"""Show the summary of the data in a terminal: truncation, classes, spelling of labels, padding, leaks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.table import Table

from fulltune.data.findings import cut, listed, percent
from fulltune.records.data import ClassRows, DataSummary, Leaks, Truncation
from fulltune.report.display import percentage
from fulltune.runtime.terminal import wrapping_table

#: Number of classes that a table shows: the most and the least frequent ones.
SHOWN = 12


def facts(summary: DataSummary) -> dict[str, str]:
    """Return one fact per line, by its name; only what the data has."""
    return dict(_facts(summary))


def _facts(summary: DataSummary) -> Iterator[tuple[str, str]]:
    if summary.truncation:
        yield "truncated", _truncated(summary.truncation, summary.max_length)
    if summary.classes:
        yield "classes", _range(summary.classes)
    if summary.labels and summary.labels.distinct < summary.labels.written:
        shown = listed([_variants(labels) for labels in summary.labels.spellings])
        merged = f"{summary.labels.distinct} if case, spaces and punctuation are ignored"
        yield "labels", f"{summary.labels.written} as written, {merged}: {shown}"
    if summary.padding:
        used, random = percentage(summary.padding["used"]), percentage(summary.padding["random"])
        yield "padding", f"{used} of the inputs, {random} in random batches"
    if summary.leaks:
        yield "leaks", leaked(summary.leaks)


def _truncated(splits: Mapping[str, Truncation], max_length: int | None) -> str:
    parts = [
        f"{percent(cut.rows, cut.of)} of {split} rows ({cut.rows:,} of {cut.of:,})" for split, cut in splits.items()
    ]
    limit = f" to data.max_length: {max_length}" if max_length else " to the model's window"
    return " and ".join(parts) + limit


def _range(classes: tuple[ClassRows, ...]) -> str:
    most, least = classes[0], classes[-1]
    span = f"from {most.train:,} rows of train ({_named(most.label)}) to {least.train:,} ({_named(least.label)})"
    return f"{len(classes)}, {span}"


def _named(label: str) -> str:
    return cut(repr(label), 40)


def _variants(labels: Mapping[str, int]) -> str:
    return " = ".join(f"{_named(label)} ({rows:,})" for label, rows in labels.items())


def leaked(leaks: Leaks) -> str:
    """Return how many evaluation rows also occur in train, and whether they count."""
    rows = f"{leaks.rows:,} of {leaks.of:,} eval rows ({percent(leaks.rows, leaks.of)}) also occur in train"
    rule = "they count, as data.allow_leaks asks" if leaks.counted else "left out of the deciding scores"
    return f"{rows}: {rule}"


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
        table.add_row(_named(row.label), *_counts(row, splits))
    if len(rest) > len(tail):
        table.add_row(f"… {len(rest) - len(tail)} more", *([""] * len(splits)))
    for row in tail:
        table.add_row(_named(row.label), *_counts(row, splits))
    return [table]


def _counts(row: ClassRows, splits: list[str]) -> list[str]:
    return [f"{getattr(row, split):,}" for split in splits]
