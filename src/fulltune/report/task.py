"""Sections that depend on the task: confusion matrix, classes, calibration, metric bars, queries."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from fulltune.metrics.wording import metric_label
from fulltune.records.run import Record
from fulltune.report import svg
from fulltune.report.display import (
    as_float,
    better,
    compact,
    count,
    duration,
    in_order,
    number,
    percentage,
    system_label,
    visible,
)
from fulltune.report.examples import Survey
from fulltune.report.labels import width
from fulltune.report.scores import bar_rows
from fulltune.runtime.alphabetical import alphabetical

#: Largest number of classes with a confusion matrix, and number of confused pairs that are listed beyond it.
CLASSES, PAIRS = 25, 20
#: Fractions above which white text on a light page, and black text on a dark one, has the better contrast.
FULL, BRIGHT = 0.88, 0.76
#: Widest name at the head of a column, in pixels: it is turned by 90 degrees.
_COLUMN_HEAD = 150


@dataclass(frozen=True)
class Heat:
    """A cell of the confusion matrix: its count of the rows of a class, and the fraction, 0 to 1."""

    count: int
    rows: int
    fraction: float
    right: bool

    @property
    def shade(self) -> str:
        """The CSS classes for its text: on a strong shade, white on a light page and black on a dark one."""
        return " full" * (self.fraction > FULL) + " bright" * (self.fraction > BRIGHT)


@dataclass(frozen=True)
class Confusion:
    """A confusion matrix: true classes by predicted ones; above :data:`CLASSES` only ``pairs`` is set.

    If a name is long, columns have numbers as their heads (``numbered``).
    """

    labels: tuple[str, ...]
    rows: tuple[tuple[Heat, ...], ...]
    pairs: tuple[tuple[str, str, int, str], ...]

    @property
    def numbered(self) -> bool:
        return any(width(label) > _COLUMN_HEAD for label in self.labels)


def confusion(details: Mapping[str, Any]) -> Confusion | None:
    """Return the matrix, or the most confused pairs of a large matrix.

    ``details["confusion"]`` is ``{"labels": […], "matrix": [[…]]}``, or the bare matrix with ``details["labels"]``.
    """
    stored = details.get("confusion")
    if not isinstance(stored, Mapping):
        stored = {"labels": details.get("labels"), "matrix": stored}
    if not stored.get("labels") or not stored.get("matrix"):
        return None
    names = [str(label) for label in stored["labels"]]
    order = _reading_order(names)
    labels = tuple(visible(names[place]) for place in order)
    matrix = [[int(stored["matrix"][row][column]) for column in order] for row in order]
    if len(labels) > CLASSES:
        return Confusion(labels, (), _pairs(labels, matrix))
    return Confusion(labels, tuple(_heats(index, row) for index, row in enumerate(matrix)), ())


def _reading_order(names: Sequence[str]) -> list[int]:
    """Return the places of names in the order of a page.

    Ids of labels follow code points unless the user or the model has ordered them: that order is kept.
    """
    places = range(len(names))
    is_by_code = list(names) == sorted(names)
    return sorted(places, key=lambda place: alphabetical(names[place])) if is_by_code else list(places)


def _heats(index: int, row: Sequence[int]) -> tuple[Heat, ...]:
    total = sum(row)
    return tuple(Heat(cell, total, round(cell / max(total, 1), 3), place == index) for place, cell in enumerate(row))


def _pairs(labels: Sequence[str], matrix: Sequence[Sequence[int]]) -> tuple[tuple[str, str, int, str], ...]:
    wrong = []
    for i, row in enumerate(matrix):
        for j, cell in enumerate(row):
            if i != j and cell:
                wrong.append((labels[i], labels[j], cell, percentage(cell / sum(row))))
    return tuple(sorted(wrong, key=lambda pair: -pair[2])[:PAIRS])


@dataclass(frozen=True)
class PerClass:
    """Scores of one class."""

    label: str
    precision: str
    recall: str
    f1: str
    width: str
    support: str


def per_class(details: Mapping[str, Any]) -> list[PerClass]:
    """Return precision, recall and F1 of each class, most frequent first."""
    rows = [row for row in details.get("per_class") or () if isinstance(row, Mapping)]
    rows.sort(key=lambda row: (-as_float(row.get("support", 0)), alphabetical(str(row.get("label", "")))))
    return [_per_class(row) for row in rows]


def _per_class(row: Mapping[str, Any]) -> PerClass:
    precision, recall, f1 = (as_float(row.get(key)) for key in ("precision", "recall", "f1"))
    width = f"{100 * f1:.0f}%" if math.isfinite(f1) else "0%"
    support = number(as_float(row.get("support")), 0)
    return PerClass(visible(str(row.get("label", ""))), number(precision), number(recall), number(f1), width, support)


def calibration(details: Mapping[str, Any]) -> Markup:
    """Return a reliability diagram; empty if no bin has rows."""
    bins = [_bin(row) for row in details.get("calibration") or () if isinstance(row, Mapping)]
    return svg.calibration("Accuracy by confidence", bins) if any(item.count for item in bins) else Markup("")


def _bin(row: Mapping[str, Any]) -> svg.Bin:
    low, high, confidence, accuracy = (as_float(row.get(key)) for key in ("low", "high", "confidence", "accuracy"))
    return svg.Bin(low, high, confidence, accuracy, int(row.get("count") or row.get("n") or 0))


def plain_details(details: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the other details of a task that are single numbers or words."""
    plain = [
        (metric_label(key), value if isinstance(value, str) else compact(value))
        for key, value in details.items()
        if isinstance(value, str | int | float) and not isinstance(value, bool)
    ]
    return plain + _memorization(details.get("memorization"))


def _memorization(stored: Any) -> list[tuple[str, str]]:
    """Return one line: the rate of verbatim copies from train by the tuned model, the references and the base."""
    if not isinstance(stored, Mapping) or not isinstance(stored.get("tuned"), Mapping):
        return []
    tuned = stored["tuned"]
    others = [
        f"{name} {percentage(as_float(stored[key].get('share')))}"
        for key, name in (("references", "references"), ("zero_shot", "zero-shot"))
        if isinstance(stored.get(key), Mapping)
    ]
    rate = percentage(as_float(tuned.get("share")))
    text = f"{rate} of {count(tuned.get('runs', 0))} sequences of {stored.get('words')} words"
    return [("Verbatim from train", text + (f" ({', '.join(others)})" if others else ""))]


@dataclass(frozen=True)
class Chart:
    """A chart with its caption; ``keys`` are pairs of a curve's CSS class and its name."""

    title: str
    note: str
    svg: Markup
    keys: tuple[tuple[str, str], ...] = ()
    wide: bool = False


def metric_bars(record: Record) -> list[Chart]:
    """Return one small bar chart per metric, for tasks without a confusion matrix."""
    charts = []
    for name in record.metrics:
        drawn = svg.bars(f"{metric_label(name)} by system", bar_rows(record, name))
        if drawn:
            charts.append(Chart(metric_label(name), better(name, record.metrics[name].direction), drawn))
    return charts


@dataclass(frozen=True)
class Queries:
    """Execution of the queries of one system, those with unknown values, and its most common kinds of errors."""

    system: str
    rows: str
    executes: str
    doubtful: int
    errors: tuple[tuple[str, int], ...]


def queries(survey: Survey) -> list[Queries]:
    """Return the fraction of queries that execute, by system."""
    return [_queries(name, survey.queries[name]) for name in in_order(survey.queries)]


def _queries(name: str, counts: Counter[str]) -> Queries:
    errors = tuple((key.removeprefix("error: "), n) for key, n in counts.most_common() if ": " in key)
    executes = percentage(counts["executes"] / counts["rows"])
    doubtful = counts["doubtful"]
    return Queries(system_label(name), f"{counts['rows']:,}", executes, doubtful, errors[:4])


def stages(seconds: Mapping[str, float]) -> Markup:
    """Return a chart of the wall time by stage, in the order of the stages."""
    rows = [
        svg.Bar(name.replace("_", " "), value, math.nan, math.nan, duration(value)) for name, value in seconds.items()
    ]
    return svg.bars("Time by stage", rows) if rows else Markup("")
