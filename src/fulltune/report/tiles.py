"""Show the figures that a decision needs, at the top of a page: scores, difference, retention, cost."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from fulltune.metrics import wording
from fulltune.records.run import Comparison, Record, Score
from fulltune.report.display import (
    difference,
    duration,
    interval,
    metric_label,
    number,
    percentage,
    record_decimals,
    signed_percentage,
    size,
    system_label,
)
from fulltune.report.retention import has_budget, verdict_text, worst

#: What the outcome of a run means, for readers who see it for the first time.
OUTCOMES = {
    "accepted": "better than every baseline, and no more was forgotten than the budget allows",
    "undecided": "neither accepted nor rejected; a person has to decide",
    "rejected": "a baseline is better, too little was learned, or too much was forgotten",
    "stopped": "training ended early",
}

#: A sign for each outcome, so that color is not its only carrier.
SIGNS = {"accepted": "✓", "undecided": "?", "rejected": "✕", "stopped": "■"}


def meaning(record: Record) -> str:
    """Return what the outcome of a run means; without a budget of forgetting nothing is said about it."""
    if record.outcome != "accepted" or has_budget(record):
        return OUTCOMES[record.outcome]
    return "better than every baseline" + ("; what was forgotten has no budget" if record.retention else "")


@dataclass(frozen=True)
class Tile:
    """One figure: its name, its value, and the words below it."""

    name: str
    value: str
    notes: tuple[str, ...]
    css_class: str = ""


def tiles(record: Record) -> list[Tile]:
    """Return the figures that the record has."""
    return list(_tiles(record))


def best_baseline(record: Record) -> str | None:
    """Return the name of the baseline with the best value of the deciding metric."""
    info = record.metrics.get(record.metric)
    sign = -1 if info and info.direction == "lower" else 1
    known = {name: row[record.metric].value for name, row in record.scores.items() if record.metric in row}
    rivals = [name for name, value in known.items() if name != "tuned" and not math.isnan(value)]
    return max(rivals, key=lambda name: sign * known[name], default=None)


def _tiles(record: Record) -> Iterator[Tile]:
    metric = metric_label(record.metric)
    tuned = record.scores.get("tuned", {}).get(record.metric)
    best = best_baseline(record)
    rival = record.scores[best][record.metric] if best else None
    digits = record_decimals(record, record.metric)
    if tuned:
        yield _score(f"{metric}, tuned model", tuned, digits, f"n = {tuned.n:,}")
    if best and rival:
        yield _score(f"{metric}, best baseline", rival, digits, system_label(best))
    comparison = record.comparison.get(f"tuned vs {best}")
    if comparison:
        yield _difference(comparison, digits)
    lost = worst(record.retention)
    if lost:
        name, result = lost
        budget = f"{verdict_text(result)}, budget {percentage(result.budget)}"
        verdict = "worse" if result.verdict == "lost" else ""
        yield Tile("Largest loss of retention", signed_percentage(result.change), (name, budget), verdict)
    used = record.resources
    notes = (f"training {duration(used.train_seconds)}", f"{size(used.peak_rss_bytes)} of memory")
    yield Tile("Time", duration(used.total_seconds), notes)


def _score(name: str, score: Score, digits: int, note: str) -> Tile:
    return Tile(name, number(score.value, digits), (interval(score.low, score.high, digits), note))


def _difference(comparison: Comparison, digits: int) -> Tile:
    span = interval(comparison.low, comparison.high, digits, sign=True)
    verdict = comparison.verdict if comparison.verdict in ("improved", "worse") else ""
    return Tile("Difference", difference(comparison.delta, digits), (span, wording.verdict(comparison)), verdict)
