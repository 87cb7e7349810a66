"""Render the comparison of methods: one table, two Pareto plots, and the learning rates that were tried."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from fulltune.metrics import wording
from fulltune.metrics.wording import metric_label
from fulltune.records.methods import MethodComparison, MethodResult, Tried
from fulltune.records.run import Comparison, Score
from fulltune.report import svg
from fulltune.report.display import (
    better,
    compact,
    count,
    decimals,
    difference,
    duration,
    interval,
    moment,
    number,
    p_value,
    percentage,
    signed_percentage,
    size,
    system_label,
)
from fulltune.report.page import asset, environment
from fulltune.report.task import Chart

_SIGNS = {"improved": "▲", "no detectable change": "≈", "worse": "▼", "too few rows": "?", "too few seeds": "?"}


@dataclass(frozen=True)
class Row:
    """A row of the table; ``reason`` replaces the numbers of a method without results."""

    name: str
    kind: str
    score: str = ""
    score_interval: str = ""
    spread: str = ""
    against: str = ""
    against_interval: str = ""
    verdict: str = ""
    sign: str = ""
    trainable: str = ""
    part: str = ""
    memory: str = ""
    optimizer: str = ""
    time: str = ""
    speed: str = ""
    disk: str = ""
    retention: str = ""
    retention_interval: str = ""
    ability: str = ""
    rate: str = ""
    reason: str = ""
    chosen: bool = False


@dataclass(frozen=True)
class Rates:
    """The learning rates of a method: each with its result, the chosen one marked."""

    method: str
    cells: tuple[tuple[str, str, bool], ...]
    note: str


def render(comparison: MethodComparison) -> str:
    """Return ``methods.html``: one self-contained page that works without scripts and loads no other files."""
    template = environment().get_template("methods.html.j2")
    return template.render(
        comparison=comparison,
        css=Markup(asset("report.css")),
        rows=rows(comparison),
        charts=charts(comparison),
        rates=rates(comparison),
        metric=metric_label(comparison.metric),
        better=better(comparison.metric, comparison.direction),
        objective=metric_label(comparison.objective),
        runs=[(result.method, run) for result in comparison.methods for run in result.runs],
        pairs=_pairs(comparison),
    )


def rows(comparison: MethodComparison) -> list[Row]:
    """Return every method in the requested order, then the systems without training."""
    values = [result.score.value for result in comparison.methods if result.score]
    digits = decimals([*values, *(baseline.score.value for baseline in comparison.baselines)])
    lines = [_method(result, comparison, digits) for result in comparison.methods]
    lines += [
        Row(
            name=system_label(baseline.system),
            kind="baseline",
            **_score(baseline.score, digits),
            **_against(baseline.against, comparison.reference, digits),
        )
        for baseline in comparison.baselines
    ]
    return lines


def charts(comparison: MethodComparison) -> list[Chart]:
    """Return the charts of the score over peak memory and over training time."""
    memory = _pareto(comparison, "memory", "Peak memory", lambda result: result.memory_bytes, size)
    time = _pareto(comparison, "time", "Training time", lambda result: result.seconds, duration)
    return [chart for chart in (memory, time) if chart is not None]


def front(points: Sequence[tuple[float, float]], direction: str) -> list[bool]:
    """Return, for each ``(cost, value)``, True if no other is at least as good in both and better in one."""
    sign = 1 if direction == "higher" else -1

    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        cost = b[0] - a[0]
        value = sign * (a[1] - b[1])
        return cost >= 0 and value >= 0 and (cost > 0 or value > 0)

    return [not any(beats(other, point) for other in points) for point in points]


def rates(comparison: MethodComparison) -> list[Rates]:
    """Return the learning rates of each method with a search."""
    return [_rates(result) for result in comparison.methods if result.rates]


def _pareto(
    comparison: MethodComparison,
    name: str,
    title: str,
    cost: Callable[[MethodResult], float],
    format_cost: Callable[[float], str],
) -> Chart | None:
    measured = [result for result in comparison.methods if result.score]
    points = [(cost(result), result.score.value) for result in measured if result.score]
    on_front = front(points, comparison.direction)
    dots = [
        svg.Dot(
            result.method,
            x,
            y,
            result.score.low,
            result.score.high,
            f"{result.method}: {comparison.label} {compact(y)}, {format_cost(x)}",
            strong=result.method == comparison.recommended,
            on_front=is_on_front,
        )
        for result, (x, y), is_on_front in zip(measured, points, on_front, strict=True)
        if result.score
    ]
    title_text = f"{comparison.label} over {name}"
    drawn = svg.scatter(title_text, "; ".join(dot.description for dot in dots), dots, format_cost)
    note = "◆ recommended, ○ others; the line connects the Pareto front; whiskers are intervals"
    label = f"{metric_label(comparison.metric)} over {title.lower()}"
    return Chart(label, f"{better(comparison.metric, comparison.direction)}. {note}.", drawn) if drawn else None


def _method(result: MethodResult, comparison: MethodComparison, digits: int) -> Row:
    if result.score is None:
        return Row(name=result.method, kind=result.status, reason=f"{result.status}: {result.reason}")
    worst = result.worst_retention
    return Row(
        name=result.method,
        kind="measured",
        **_score(result.score, digits),
        spread="" if math.isnan(result.spread) else f"± {number(result.spread, digits)} between seeds",
        **_against(result.against, comparison.reference, digits),
        trainable=count(result.trainable),
        part=percentage(result.trainable / result.total) if result.total else "",
        memory=size(result.memory_bytes),
        optimizer=size(result.optimizer_bytes),
        time=duration(result.seconds),
        speed=count(result.tokens_per_second),
        disk=size(result.disk_bytes),
        retention=signed_percentage(worst[1]) if worst else "",
        retention_interval=_bounds(result.retention_interval.get(worst[0])) if worst else "",
        ability=worst[0] if worst else "",
        rate=f"{result.rate:.3g}" if result.rate is not None else "",
        chosen=result.method == comparison.recommended,
    )


def _bounds(bounds: tuple[float, float] | None) -> str:
    return f"[{signed_percentage(bounds[0])}, {signed_percentage(bounds[1])}]" if bounds else ""


def _score(score: Score, digits: int) -> dict[str, Any]:
    return {"score": number(score.value, digits), "score_interval": interval(score.low, score.high, digits)}


def _against(comparison: Comparison | None, reference: str, digits: int) -> dict[str, Any]:
    if comparison is None:
        return {"against": f"{reference} (reference)"}
    return {
        "against": difference(comparison.delta, digits),
        "against_interval": f"{interval(comparison.low, comparison.high, digits, sign=True)}, {p_value(comparison.p)}",
        "verdict": wording.verdict(comparison),
        "sign": _SIGNS[comparison.verdict],
    }


def _rates(result: MethodResult) -> Rates:
    chosen = _format_rate(result.rate)
    cells = tuple((_rate(trial), _value(trial), _rate(trial) == chosen) for trial in result.rates)
    return Rates(result.method, cells, "at the edge: a better rate may be outside this range" if result.at_edge else "")


def _rate(trial: Tried) -> str:
    return _format_rate(float(str(trial.settings["train.learning_rate"])))


def _format_rate(rate: float | None) -> str:
    return "" if rate is None else f"{rate:.3g}"


def _value(trial: Tried) -> str:
    if trial.state == "whole":
        return compact(trial.value)
    return "failed" if trial.state == "broke" else trial.state


def _pairs(comparison: MethodComparison) -> list[tuple[str, str]]:
    rows = ", ".join(f"{rows:,} {split}" for split, rows in comparison.rows.items())
    return [
        ("Task", comparison.task),
        ("Base model", comparison.model),
        ("Rows", rows),
        ("Steps per training", f"{comparison.steps:,}"),
        ("Seeds", ", ".join(map(str, comparison.seeds))),
        ("Machine", comparison.machine),
        ("Date", moment(comparison.created)),
    ]
