"""Show retention: a table of abilities, and a chart of each loss with its interval and the budget."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

from fulltune.metrics.wording import metric_label
from fulltune.records.run import Record, Retention
from fulltune.report import svg
from fulltune.report.display import better, decimals, interval, number, percentage, signed_percentage

#: Said of a run whose abilities have no budget.
FREE = "nothing had to be kept (guards.forgetting.keep); only reported"

SIGNS = {"kept": "=", "lost": "▼", "cannot tell": "?", "no budget": "·"}


@dataclass(frozen=True)
class Row:
    """One ability; ``css_class`` is that of its verdict."""

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
    css_class: str


def rows(record: Record) -> list[Row]:
    """Return the abilities in the order in which they were scored."""
    return [_row(name, result) for name, result in record.retention.items()]


def chart(record: Record) -> Markup:
    """Return a chart of the relative loss of each ability with its budget; empty if no loss is finite."""
    bars = [
        svg.Bar(
            name,
            result.change,
            result.low,
            result.high,
            f"{signed_percentage(result.change)}, {verdict_text(result)}",
            limit=result.budget if math.isfinite(result.budget) else math.nan,
        )
        for name, result in record.retention.items()
    ]
    if not any(math.isfinite(bar.value) for bar in bars):
        return Markup("")
    return svg.forest("Relative loss against the base, with intervals", bars, tick=_tick, zero=True)


def has_budget(record: Record) -> bool:
    """Return True if the chart shows a budget."""
    return any(math.isfinite(result.budget) for result in record.retention.values())


def _tick(loss: float) -> str:
    return f"{100 * loss:g}%".replace("-", "−")


def worst(retention: Mapping[str, Retention]) -> tuple[str, Retention] | None:
    """Return the ability with a budget that lost most; an ability without a finite value comes first."""
    budgeted = [(name, result) for name, result in retention.items() if math.isfinite(result.budget)]
    return max(budgeted, key=lambda item: math.inf if math.isnan(item[1].change) else item[1].change, default=None)


def verdict_text(result: Retention) -> str:
    """Return the verdict in words: ``kept``, ``lost``, ``cannot tell with 40 rows``, ``only reported``."""
    words = {"cannot tell": f"cannot tell with {result.base.n} rows", "no budget": "only reported"}
    return words.get(result.verdict, result.verdict)


def _row(name: str, result: Retention) -> Row:
    digits = decimals((result.base.value, result.tuned.value))
    return Row(
        name=name,
        metric=f"{metric_label(result.metric)}, {better(result.metric, result.direction)}",
        base=number(result.base.value, digits),
        tuned=number(result.tuned.value, digits),
        tuned_interval=interval(result.tuned.low, result.tuned.high, digits),
        n=result.tuned.n,
        change=signed_percentage(result.change),
        change_interval=f"[{signed_percentage(result.low)}, {signed_percentage(result.high)}]",
        budget=result.reason if math.isinf(result.budget) else f"budget {percentage(result.budget)}",
        verdict=verdict_text(result),
        sign=SIGNS[result.verdict],
        css_class="worse" if result.verdict == "lost" else "kept",
    )
