"""Show scores with intervals, and any baselines that beat the tuned model."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fulltune.metrics import known, wording
from fulltune.metrics.wording import metric_label
from fulltune.records.run import BaselineUse, Comparison, Record, Score, best_baseline
from fulltune.report import svg
from fulltune.report.display import (
    better,
    difference,
    in_order,
    interval,
    is_beaten_by,
    is_judged,
    is_rival,
    number,
    p_value,
    record_decimals,
    system_label,
)

Scores = Mapping[str, Mapping[str, Score]]

#: Fewest rows of a score that may be marked as the best of its column.
FEWEST_ROWS = 6

SIGNS = {"improved": "▲", "worse": "▼", "no detectable change": "=", "too few rows": "?", "too few seeds": "?"}


@dataclass(frozen=True)
class Column:
    """A metric as a column: ``rows`` is n if all systems have the same, otherwise None; ``best`` may be NaN."""

    name: str
    label: str
    better: str
    digits: int
    rows: int | None
    best: float
    deciding: bool


@dataclass(frozen=True)
class Cell:
    """A cell of the table of scores."""

    value: str
    interval: str
    n: int
    best: bool


@dataclass(frozen=True)
class Row:
    """A row of the table of scores: one system."""

    system: str
    label: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Table:
    """The table of scores."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    @property
    def n(self) -> int | None:
        """Number of rows that every score of the table was measured on; None if they differ."""
        counts = {column.rows for column in self.columns}
        return counts.pop() if len(counts) == 1 else None


@dataclass(frozen=True)
class Versus:
    """One formatted comparison."""

    against: str
    metric: str
    delta: str
    interval: str
    p: str
    verdict: str
    sign: str


def table(record: Record, scores: Scores) -> Table | None:
    """Return a table of systems by metrics, with the deciding metric first, or None without scores."""
    systems = in_order(scores)
    scores = {system: measured(row) for system, row in scores.items()}
    present = {name for row in scores.values() for name in row}
    known = [name for name in record.metrics if name in present] + sorted(present - set(record.metrics))
    names = sorted(known, key=lambda name: name != record.metric)
    columns = tuple(_column(record, scores, name) for name in names)
    if not columns:
        return None
    return Table(columns, tuple(_row(name, scores[name], columns) for name in systems))


def measured(scores: Mapping[str, Score]) -> dict[str, Score]:
    """Return the scores that were measured on some row: the n-gram model, say, continues no text."""
    return {metric: score for metric, score in scores.items() if score.n or not math.isnan(score.value)}


def beside(record: Record) -> Scores:
    """Return the scores that are shown alongside the deciding ones if evaluation rows also occur in train.

    These are the scores on all rows, or without those rows if they count.
    """
    leaks = record.data.summary.leaks
    return record.scores_all_rows if leaks and not leaks.counted else record.scores_without_leaks


def _direction(record: Record, metric: str) -> str:
    info = record.metrics.get(metric)
    return info.direction if info else "higher"


def _column(record: Record, scores: Scores, name: str) -> Column:
    column = [row[name] for row in scores.values() if name in row]
    counts = {score.n for score in column}
    rivals = [row[name].value for system, row in scores.items() if name in row and is_rival(system, name)]
    values = [value for value in rivals if not math.isnan(value)]
    direction = _direction(record, name)
    best = math.nan
    is_fair = len(counts) == 1 and min(counts) >= FEWEST_ROWS
    if is_fair and len(set(values)) > 1 and is_judged(name):
        best = max(values) if direction == "higher" else min(values)
    return Column(
        name=name,
        label=metric_label(name),
        better=better(name, direction),
        digits=record_decimals(record, name),
        rows=counts.pop() if len(counts) == 1 else None,
        best=best,
        deciding=name == record.metric,
    )


def _row(system: str, scores: Mapping[str, Score], columns: Sequence[Column]) -> Row:
    cells = tuple(_cell(system, scores[column.name], column) if column.name in scores else None for column in columns)
    return Row(system, system_label(system), cells)


def _cell(system: str, score: Score, column: Column) -> Cell:
    span = interval(score.low, score.high, column.digits)
    best = score.value == column.best and is_rival(system, column.name)
    return Cell(number(score.value, column.digits), span, score.n, best)


def bar_rows(record: Record, metric: str) -> list[svg.Bar]:
    """Return one row of a chart per system that has the metric."""
    digits = record_decimals(record, metric)
    systems = [name for name in in_order(record.scores) if metric in measured(record.scores[name])]
    return [_bar(system, record.scores[system][metric], digits) for system in systems]


def _bar(system: str, score: Score, digits: int) -> svg.Bar:
    text = f"{number(score.value, digits)} {interval(score.low, score.high, digits)}"
    return svg.Bar(system_label(system), score.value, score.low, score.high, text, strong=system == "tuned")


def forest(record: Record) -> Markup:
    """Return a chart of the deciding metric with intervals for every system."""
    title = f"{metric_label(record.metric)} by system, with intervals"
    return svg.forest(title, bar_rows(record, record.metric))


def comparisons(record: Record) -> list[Versus]:
    """Return the comparisons of the tuned model with each baseline, in the order of the report."""
    order = in_order(name.removeprefix("tuned vs ") for name in record.comparison)
    pairs = sorted(record.comparison.items(), key=lambda item: order.index(item[0].removeprefix("tuned vs ")))
    return [_versus(record, pair, comparison) for pair, comparison in pairs]


def how_compared(record: Record) -> str:
    """Return how differences are tested, and what these rows can detect; empty without a comparison.

    What they can detect depends on how much the answers of both systems differ, and is that of the best baseline.
    """
    if not record.comparison:
        return ""
    names = [pair.removeprefix("tuned vs ") for pair in record.comparison]
    name = best_baseline(record, names) or names[0]
    best = record.comparison[f"tuned vs {name}"]
    lines = ["A difference whose interval includes 0 may be due to chance."]
    if best.test:
        lines.append(f"Test: {best.test}.")
    metrics = known(record.details.get("labels", ()), bool(record.details.get("multi_label", False)))
    if record.metric in metrics:
        metric = metrics[record.metric]
        if best.min_effect:
            lines.append(f"A difference below {wording.amount(best.min_effect, metric)} does not count.")
        lines.append(wording.detectable(best, metric, against=wording.system(name)))
    return " ".join(filter(None, lines))


def _versus(record: Record, pair: str, item: Comparison) -> Versus:
    digits = record_decimals(record, item.metric)
    return Versus(
        against=system_label(pair.removeprefix("tuned vs ")),
        metric=metric_label(item.metric),
        delta=difference(item.delta, digits),
        interval=interval(item.low, item.high, digits, sign=True),
        p=p_value(item.p),
        verdict=wording.verdict(item),
        sign=SIGNS[item.verdict],
    )


def baseline_uses(record: Record) -> list[str]:
    """Return a line per baseline: its time, what it chose on train, and which rows it read if not all of them."""
    return [
        f"{system_label(name)}: " + "; ".join(_parts(record.baselines[name])) for name in in_order(record.baselines)
    ]


def _parts(use: BaselineUse) -> Iterator[str]:
    yield f"{use.seconds:.1f} s" + (", from the cache" if use.is_cached else "")
    yield from filter(None, (use.setting, use.sampled))


def beaten(record: Record) -> str:
    """Return the sentence that comes first if baselines score better than the tuned model, otherwise an empty string.

    Only baselines whose paired test shows it are said to beat the tuned model. The sentence is also empty if the
    headline names the first of them, and headline or reasons name the others; what cannot be told from the tuned model
    is then left to the table of comparisons.
    """
    ahead = [name for name in in_order(record.scores) if name != "tuned" and _is_ahead(record, name)]
    if not ahead:
        return ""
    winners = [name for name in ahead if is_beaten_by(record, name)]
    told = winners or ahead
    headline = _plain(record.headline)
    mentioned = headline + _plain(" ".join(record.reasons))
    if any(_plain(name) in headline for name in told) and all(_plain(name) in mentioned for name in told):
        return ""
    digits = record_decimals(record, record.metric)
    tuned = f"the tuned model ({number(record.scores['tuned'][record.metric].value, digits)})"
    alike = [name for name in ahead if name not in winners]
    label = metric_label(record.metric)
    if not winners:
        return f"{_listed(record, alike, digits)} cannot be told from {tuned} on {label}."
    verb = "beat" if len(winners) > 1 else "beats"
    rest = f"; {_listed(record, alike, digits)} cannot be told from it" if alike else ""
    return f"{_listed(record, winners, digits)} {verb} {tuned} on {label}{rest}."


def _listed(record: Record, names: Sequence[str], digits: int) -> str:
    values = (number(record.scores[name][record.metric].value, digits) for name in names)
    return wording.listed([f"{system_label(name)} ({value})" for name, value in zip(names, values, strict=True)])


def _plain(words: str) -> str:
    return re.sub(r"[-_ ]", "", words.lower())


def _is_ahead(record: Record, system: str) -> bool:
    """Return True if a baseline is better by its comparison, or otherwise by its plain value.

    One that is certainly better, but by less than counts, is not ahead.
    """
    comparison = record.comparison.get(f"tuned vs {system}")
    if comparison is not None and wording.verdict(comparison) == "below min_effect":
        return False
    if not (_has(record, system) and _has(record, "tuned")):
        return False
    gain = record.scores[system][record.metric].value - record.scores["tuned"][record.metric].value
    return is_beaten_by(record, system) or (gain > 0 if _direction(record, record.metric) == "higher" else gain < 0)


def _has(record: Record, system: str) -> bool:
    return record.metric in record.scores.get(system, {})
