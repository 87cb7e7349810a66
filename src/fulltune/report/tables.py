"""The tables of results, as text: the terminal and notebooks show the same numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from fulltune.metrics import wording
from fulltune.metrics.wording import metric_label
from fulltune.records.run import EvaluationRecord, Record, Score
from fulltune.report.display import (
    count,
    decimals,
    difference,
    in_order,
    interval,
    number,
    record_decimals,
    system_label,
)

if TYPE_CHECKING:
    from fulltune.metrics.run_comparison import RunComparison
    from fulltune.records.learning_curve import LearningCurve
    from fulltune.records.learning_rate import LearningRate
    from fulltune.records.sweep import Sweep

Row = tuple[str, ...]


class Table(NamedTuple):
    """A table; the first column holds names, and headers begin with a lowercase letter."""

    headers: Row
    rows: Sequence[Row]


def systems(record: Record) -> Table:
    """Return every system by the deciding metric, with the paired difference of the tuned model from it."""
    scores = {name: row[record.metric] for name, row in record.scores.items() if record.metric in row}
    digits = record_decimals(record, record.metric)
    rows = [
        (system_label(name), *_score(scores[name], digits), count(scores[name].n), _gain(record, name, digits))
        for name in in_order(scores)
    ]
    return Table(("system", metric_label(record.metric), "interval", "rows", "tuned against it"), rows)


def parts(record: Record, shown: int | None = None) -> Table | None:
    """Return the groups, folders or databases with the smallest gains, the worst first; None if there are none.

    Args:
        record: A record.
        shown: Most rows; by default all that the record has.
    """
    found = record.parts
    if found is None or not found.worst:
        return None
    digits = record_decimals(record, record.metric)
    rows = [
        (
            one.name,
            count(one.n),
            *(number(value, digits) for value in (one.tuned, one.baseline)),
            difference(one.difference, digits),
        )
        for one in found.worst[:shown]
    ]
    return Table((found.by, "rows", "tuned", system_label(found.baseline), "difference"), rows)


def about_parts(record: Record) -> str:
    """Return in how many groups, folders or databases the tuned model is behind, and which have no score."""
    found = record.parts
    if found is None:
        return ""
    than = f"{system_label(found.baseline)} in {metric_label(record.metric)}"
    told = f"By {found.by}, the tuned model is worse than {than} in {found.behind:,} of {found.count:,}"
    return told + (f" ({found.small:,} more have fewer than {found.fewest} rows)" if found.small else "")


def evaluation(record: EvaluationRecord) -> Table:
    """Return every metric of one system, the deciding one first."""
    ranked = sorted(record.scores.items(), key=lambda item: item[0] != record.metric)
    rows = [(metric_label(name), *_score(score, 3), count(score.n)) for name, score in ranked]
    return Table(("metric", "value", "interval", "rows"), rows)


def comparison(compared: RunComparison) -> Table:
    """Return each metric of two runs with its paired difference, from A to B."""
    return Table(("metric", "A", "B", "B − A", "interval", "verdict"), list(_differences(compared)))


def _differences(compared: RunComparison) -> Iterator[Row]:
    for item in compared.differences:
        values = [compared.scores[side][item.metric].value for side in ("a", "b")]
        digits = decimals(values)
        shown = [number(value, digits) for value in values]
        bounds = interval(item.low, item.high, digits, sign=True)
        yield metric_label(item.metric), *shown, difference(item.delta, digits), bounds, wording.verdict(item)


def learning_curve(curve: LearningCurve) -> Table:
    """Return the score by number of training rows."""
    digits = decimals(point.score.value for point in curve.points)
    rows = [(count(point.rows), *_score(point.score, digits)) for point in curve.points]
    return Table(("training rows", metric_label(curve.metric), "interval"), rows)


def learning_rate(result: LearningRate) -> Table:
    """Return the short trainings of a search for a learning rate."""
    digits = decimals(candidate.loss for candidate in result.candidates)
    rows = [
        (f"{one.rate:.1e}", number(one.loss, digits), "advised" if one.rate == result.rate else "")
        for one in result.candidates
    ]
    return Table(("learning rate", "held-out loss", ""), rows)


def sweep(result: Sweep) -> Table:
    """Return the trials of a search, the best first."""
    marks = {result.best: "best", result.default: "the config as it is"}
    sign = -1 if result.direction == "higher" else 1
    ranked = sorted(result.trials, key=lambda trial: (trial.state != "whole", sign * trial.value))
    rows = [
        (
            *_settings(trial.settings.values()),
            number(trial.value, 4),
            "" if trial.state == "whole" else trial.state,
            marks.get(trial.number, ""),
        )
        for trial in ranked
    ]
    fields = (field.rpartition(".")[2] for field in result.space)
    return Table((*fields, metric_label(result.objective), "", ""), rows)


def _score(score: Score, digits: int) -> Row:
    if not score.n and math.isnan(score.value):
        return "–", "–"
    return number(score.value, digits), interval(score.low, score.high, digits)


def _gain(record: Record, system: str, digits: int) -> str:
    against = record.comparison.get(f"tuned vs {system}")
    return f"{difference(against.delta, digits)}, {wording.verdict(against)}" if against else ""


def _settings(values: Iterable[object]) -> Row:
    return tuple(f"{value:.3g}" if isinstance(value, float) else str(value) for value in values)
