"""Show what the model gets to see of the data: truncation, classes, spelling of labels, padding, leaks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fulltune.data.findings import percent, shorten
from fulltune.errors import abridged
from fulltune.records.data import ClassRows, DataSummary, Leaks, Truncation
from fulltune.records.run import Record
from fulltune.report.display import percentage, visible

#: Fraction of truncated rows from which the page marks them.
_NOTABLE = 0.05


def details(summary: DataSummary) -> dict[str, str]:
    """Return one fact per line, by its name; only what the data has."""
    return dict(_details(summary))


def _details(summary: DataSummary) -> Iterator[tuple[str, str]]:
    if summary.truncation:
        yield "truncated", _truncated(summary.truncation, _limit(summary))
    if summary.classes:
        yield "classes", _range(summary.classes)
    if _is_divided(summary) and summary.labels:
        shown = abridged([_variants(labels) for labels in summary.labels.spellings])
        merged = f"{summary.labels.distinct} if case, spaces and punctuation are ignored"
        yield "labels", f"{summary.labels.written} as written, {merged}: {shown}"
    if summary.labels and summary.labels.merged:
        each = (f"{_variants(rows)}, as {quoted_label(name)}" for name, rows in summary.labels.merged.items())
        yield "merged labels", abridged(list(each))
    if summary.padding:
        used, random = percentage(summary.padding["used"]), percentage(summary.padding["random"])
        yield "padding", f"{used} of the inputs, {random} in random batches"
    if summary.leaks:
        yield "leaks", leaked(summary.leaks)


def notable(summary: DataSummary) -> set[str]:
    """Return the names of the details that need attention."""
    is_cut = any(part.fraction >= _NOTABLE for part in summary.truncation.values())
    marks = {"truncated": is_cut, "labels": _is_divided(summary), "leaks": summary.leaks is not None}
    return {name for name, is_marked in marks.items() if is_marked}


def _is_divided(summary: DataSummary) -> bool:
    """Return True if classes are probably divided by the spelling of their labels."""
    return summary.labels is not None and summary.labels.distinct < summary.labels.written


def _limit(summary: DataSummary) -> str:
    """Return what limits the length of rows: the config, or the model."""
    if summary.positions is not None:
        return f"the {summary.positions:,} positions of the model, which are fewer than data.max_length"
    return f"data.max_length: {summary.max_length}" if summary.max_length else "the model's window"


def _truncated(splits: Mapping[str, Truncation], limit: str) -> str:
    parts = [
        f"{percent(part.rows, part.of)} of {split} rows ({part.rows:,} of {part.of:,})"
        for split, part in splits.items()
    ]
    return f"{' and '.join(parts)} to {limit}"


def _range(classes: tuple[ClassRows, ...]) -> str:
    most, least = classes[0], classes[-1]
    first, last = (
        f"{one.train:,}{of} ({quoted_label(one.label)})" for one, of in ((most, " rows of train"), (least, ""))
    )
    return f"{len(classes)}, from {first} to {last}"


def quoted_label(label: str) -> str:
    """Return a label in quotes, shortened if it is long."""
    return shorten(repr(label), 40)


def _variants(labels: Mapping[str, int]) -> str:
    return " = ".join(f"{quoted_label(label)} ({rows:,})" for label, rows in labels.items())


def leaked(leaks: Leaks) -> str:
    """Return how many evaluation rows also occur in train, and whether they count."""
    rows = f"{leaks.rows:,} of {leaks.of:,} eval rows ({percent(leaks.rows, leaks.of)}) also occur in train"
    rule = "they count, as data.allow_leaks asks" if leaks.counted else "left out of the deciding scores"
    return f"{rows}: {rule}"


@dataclass(frozen=True)
class Split:
    """A split of the data, as the page shows it."""

    name: str
    source: str
    rows: str
    lengths: str
    truncated: str
    sha256: str


def splits(record: Record) -> list[Split]:
    """Return the splits of the data."""
    data = record.data
    summary = data.summary
    known = (("train", data.train), ("valid", data.valid), ("eval", data.eval))
    return [
        Split(
            name={"valid": "validation", "eval": "evaluation"}.get(name, name),
            source=split.source,
            rows=f"{split.rows:,}" + (f" of {split.drawn_from:,}" if split.drawn_from else ""),
            lengths=_lengths(summary, name),
            truncated=percentage(summary.truncation[name].fraction) if name in summary.truncation else "",
            sha256=split.sha256,
        )
        for name, split in known
        if split
    ]


def _lengths(summary: DataSummary, split: str) -> str:
    lengths = summary.lengths.get(split)
    return f"{lengths.median:,} / {lengths.p95:,} / {lengths.max:,}" if lengths else ""


@dataclass(frozen=True)
class ClassCounts:
    """Rows of one class by split, with the width of its bar."""

    label: str
    rows: tuple[str, ...]
    width: str


@dataclass(frozen=True)
class ClassTable:
    """Rows of every class by split, most frequent in train first."""

    splits: tuple[str, ...]
    rows: tuple[ClassCounts, ...]


def classes(summary: DataSummary) -> ClassTable | None:
    """Return the rows of every class, or None for tasks without classes."""
    if not summary.classes:
        return None
    shown = tuple(split for split in ("train", "valid", "eval") if any(getattr(row, split) for row in summary.classes))
    most = max(row.train for row in summary.classes) or 1
    return ClassTable(shown, tuple(_class_counts(row, shown, most) for row in summary.classes))


def _class_counts(row: ClassRows, splits: tuple[str, ...], most: int) -> ClassCounts:
    counts = tuple(f"{getattr(row, split):,}" for split in splits)
    return ClassCounts(visible(row.label), counts, f"{100 * row.train / most:.0f}%")
