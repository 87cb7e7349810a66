"""Show the figures that a decision needs, at the top of a page: scores, difference, retention, cost."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from fulltune.metrics import wording
from fulltune.metrics.recommendation import unchanged
from fulltune.metrics.wording import metric_label
from fulltune.records.run import Comparison, Record, Score, base_kept, best_baseline
from fulltune.report.display import (
    difference,
    duration,
    interval,
    is_beaten_by,
    number,
    percentage,
    record_decimals,
    signed_percentage,
    size,
    system_label,
)
from fulltune.report.retention import has_budget, verdict_text, worst

#: Meaning of the outcomes of a run, for new readers; a rejected run has its cause instead.
_OUTCOMES = {
    "accepted": "better than every baseline, and no more was forgotten than the budget allows",
    "undecided": "neither accepted nor rejected; a person has to decide",
    "stopped": "training ended early",
}

#: A sign for each outcome, so that color is not its only carrier.
SIGNS = {"accepted": "✓", "undecided": "?", "rejected": "✕", "stopped": "■"}


def meaning(record: Record) -> str:
    """Return what the outcome of a run means; without a budget of forgetting nothing is said about it."""
    if record.outcome == "rejected":
        return "; ".join(_causes(record))
    if record.outcome != "accepted" or has_budget(record):
        return _OUTCOMES[record.outcome]
    return "better than every baseline" + ("; nothing had to be kept" if record.retention else "")


def _causes(record: Record) -> list[str]:
    """Return what a run was rejected for: only the causes that hold."""
    causes = []
    if base_kept(record.guards) is not None:
        causes.append("no step of training was better than the base")
    elif unchanged(record.parameters):
        causes.append("training changed no weight")
    winners = sum(is_beaten_by(record, name) for name in record.scores)
    if winners:  # headline and reasons name them
        causes.append(f"{winners} baselines are better" if winners > 1 else "a baseline is better")
    lost = [name for name, ability in record.retention.items() if ability.verdict == "lost"]
    if lost:
        causes.append(f"more of {wording.listed(lost)} was forgotten than the budget allows")
    tuned = record.scores.get("tuned", {}).get(record.metric)
    if causes or tuned is None:
        return causes or ["the tuned model has no score"]
    return ["its score is not a number" if math.isnan(tuned.value) else "no better than guessing"]


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
