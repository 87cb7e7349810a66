"""What the base could do and the tuned model still can: a table, and each loss with its interval and the budget."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

from fulltune.records.run import Record, Retention
from fulltune.report import svg
from fulltune.report.display import better, decimals, interval, metric_label, number, share

SIGNS = {"kept": "=", "within budget": "≈", "forgotten": "▼"}


@dataclass(frozen=True)
class Row:
    """One ability; ``kind`` is the page's class of its verdict."""

    name: str
    metric: str
    base: str
    tuned: str
    tuned_interval: str
    n: int
    change: str
    change_interval: str
    budget: str
    verdict: str
    sign: str
    kind: str


def rows(record: Record) -> list[Row]:
    """Abilities in the order they were asked."""
    return [_row(name, found) for name, found in record.retention.items()]


def chart(record: Record) -> Markup:
    """The relative loss of each ability; nothing where no loss is a number."""
    bars = [
        svg.Bar(name, found.change, found.low, found.high, f"{signed(found.change)}, {judged(found)}")
        for name, found in record.retention.items()
    ]
    if not any(math.isfinite(bar.value) for bar in bars):
        return Markup("")
    return svg.forest("Relative loss against the base, with intervals", bars)


def worst(retention: Mapping[str, Retention]) -> tuple[str, Retention] | None:
    """The ability that lost most among those with a budget; one that gives no number comes first."""
    judged = [(name, found) for name, found in retention.items() if math.isfinite(found.budget)]
    return max(judged, key=lambda item: math.inf if math.isnan(item[1].change) else item[1].change, default=None)


def judged(found: Retention) -> str:
    """The verdict; what has no budget is told apart from what keeps to one."""
    return "changed, no budget" if math.isinf(found.budget) and found.verdict == "within budget" else found.verdict


def signed(value: float) -> str:
    """``+31.4%`` or ``−2.0%``."""
    return f"{value:+.1%}".replace("-", "−") if math.isfinite(value) else number(value)


def _row(name: str, found: Retention) -> Row:
    digits = decimals((found.base.value, found.tuned.value))
    return Row(
        name=name,
        metric=f"{metric_label(found.metric)}, {better(found.metric, found.direction)}",
        base=number(found.base.value, digits),
        tuned=number(found.tuned.value, digits),
        tuned_interval=interval(found.tuned.low, found.tuned.high, digits),
        n=found.tuned.n,
        change=signed(found.change),
        change_interval=f"[{signed(found.low)}, {signed(found.high)}]",
        budget="" if math.isinf(found.budget) else f"budget {share(found.budget)}",
        verdict=judged(found),
        sign=SIGNS[found.verdict],
        kind="worse" if found.verdict == "forgotten" else "kept",
    )
