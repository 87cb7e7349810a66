"""The part of the page that depends on the task: confusion, classes and calibration, metric bars, queries."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from fulltune.records.run import Record
from fulltune.report import svg
from fulltune.report.display import (
    as_float,
    better,
    compact,
    count,
    duration,
    in_order,
    metric_label,
    number,
    share,
    system_label,
)
from fulltune.report.examples import Survey
from fulltune.report.scores import bar_rows

#: The largest confusion matrix drawn as one, and the pairs listed instead beyond it.
CLASSES, PAIRS = 25, 20


@dataclass(frozen=True)
class Heat:
    """A cell of the confusion matrix: its count and its share of the row, 0 to 1."""

    count: int
    share: float
    right: bool


@dataclass(frozen=True)
class Confusion:
    """Rows are the true classes, columns the predicted ones; beyond :data:`CLASSES` only ``pairs`` is filled."""

    labels: tuple[str, ...]
    rows: tuple[tuple[Heat, ...], ...]
    pairs: tuple[tuple[str, str, int, str], ...]


def confusion(details: Mapping[str, Any]) -> Confusion | None:
    """The matrix, or the most confused pairs when it is a large one.

    ``details["confusion"]`` is ``{"labels": […], "matrix": [[…]]}``, or the bare matrix with ``details["labels"]``.
    """
    found = details.get("confusion")
    if not isinstance(found, Mapping):
        found = {"labels": details.get("labels"), "matrix": found}
    if not found.get("labels") or not found.get("matrix"):
        return None
    labels = tuple(str(label) for label in found["labels"])
    matrix = [[int(cell) for cell in row] for row in found["matrix"]]
    if len(labels) > CLASSES:
        return Confusion(labels, (), _pairs(labels, matrix))
    return Confusion(labels, tuple(_heats(index, row) for index, row in enumerate(matrix)), ())


def _heats(index: int, row: Sequence[int]) -> tuple[Heat, ...]:
    total = sum(row) or 1
    return tuple(Heat(cell, round(cell / total, 3), place == index) for place, cell in enumerate(row))


def _pairs(labels: Sequence[str], matrix: Sequence[Sequence[int]]) -> tuple[tuple[str, str, int, str], ...]:
    wrong = [
        (labels[i], labels[j], cell, share(cell / sum(row)))
        for i, row in enumerate(matrix)
        for j, cell in enumerate(row)
        if i != j and cell
    ]
    return tuple(sorted(wrong, key=lambda pair: -pair[2])[:PAIRS])


@dataclass(frozen=True)
class PerClass:
    label: str
    precision: str
    recall: str
    f1: str
    width: str
    support: str


def per_class(details: Mapping[str, Any]) -> list[PerClass]:
    """Precision, recall and F1 of each class, the most frequent first."""
    rows = [row for row in details.get("per_class") or () if isinstance(row, Mapping)]
    rows.sort(key=lambda row: -as_float(row.get("support", 0)))
    return [_per_class(row) for row in rows]


def _per_class(row: Mapping[str, Any]) -> PerClass:
    precision, recall, f1 = (as_float(row.get(key)) for key in ("precision", "recall", "f1"))
    width = f"{100 * f1:.0f}%" if math.isfinite(f1) else "0%"
    support = number(as_float(row.get("support")), 0)
    return PerClass(str(row.get("label", "")), number(precision), number(recall), number(f1), width, support)


def calibration(details: Mapping[str, Any]) -> Markup:
    """Accuracy by confidence, drawn; nothing when no bin holds a row."""
    bins = [_bin(row) for row in details.get("calibration") or () if isinstance(row, Mapping)]
    return svg.calibration("Accuracy by confidence", bins) if any(item.count for item in bins) else Markup("")


def _bin(row: Mapping[str, Any]) -> svg.Bin:
    low, high, confidence, accuracy = (as_float(row.get(key)) for key in ("low", "high", "confidence", "accuracy"))
    return svg.Bin(low, high, confidence, accuracy, int(row.get("count") or row.get("n") or 0))


def plain_details(details: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Whatever else a task left in its details that is a single number or word."""
    return [
        (metric_label(key), value if isinstance(value, str) else compact(value))
        for key, value in details.items()
        if isinstance(value, str | int | float) and not isinstance(value, bool)
    ] + _memorization(details.get("memorisation"))


def _memorization(found: Any) -> list[tuple[str, str]]:
    """One line: how much the tuned model recites, beside the references and the base."""
    if not isinstance(found, Mapping) or not isinstance(found.get("tuned"), Mapping):
        return []
    tuned = found["tuned"]
    others = [
        f"{name} {share(as_float(found[key].get('share')))}"
        for key, name in (("references", "the references"), ("zero_shot", "zero-shot"))
        if isinstance(found.get(key), Mapping)
    ]
    words = f"{share(as_float(tuned.get('share')))} of {count(tuned.get('runs', 0))} runs of {found.get('words')} words"
    return [("Word for word from train", words + (f" ({', '.join(others)})" if others else ""))]


@dataclass(frozen=True)
class Chart:
    """A chart with the words beside it; ``keys`` are pairs of a curve's class and its name."""

    title: str
    note: str
    svg: Markup
    keys: tuple[tuple[str, str], ...] = ()
    wide: bool = False


def metric_bars(record: Record) -> list[Chart]:
    """One small bar chart a metric, for tasks that have no confusion matrix."""
    charts = []
    for name in record.metrics:
        drawn = svg.bars(f"{metric_label(name)} by system", bar_rows(record.scores, name))
        if drawn:
            charts.append(Chart(metric_label(name), better(name, record.metrics[name].direction), drawn))
    return charts


@dataclass(frozen=True)
class Queries:
    """How the queries of one system ran, and its commonest kinds of error."""

    system: str
    rows: str
    executes: str
    errors: tuple[tuple[str, int], ...]


def queries(found: Survey) -> list[Queries]:
    """Share of queries that execute, by system."""
    return [
        Queries(
            system_label(name),
            f"{found.queries[name]['rows']:,}",
            share(found.queries[name]["executes"] / found.queries[name]["rows"]),
            tuple((key.removeprefix("error: "), n) for key, n in found.queries[name].most_common() if ": " in key)[:4],
        )
        for name in in_order(found.queries)
    ]


def stages(seconds: Mapping[str, float]) -> Markup:
    """Wall time by stage, in the order the stages ran."""
    rows = [
        svg.Bar(name.replace("_", " "), value, math.nan, math.nan, duration(value)) for name, value in seconds.items()
    ]
    return svg.bars("Time by stage", rows) if rows else Markup("")
