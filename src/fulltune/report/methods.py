"""The page of a comparison of methods: one table, two Pareto plots, the rates that were tried."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from fulltune.records.methods import MethodComparison, MethodResult, Tried
from fulltune.records.run import Comparison, Score
from fulltune.report import svg
from fulltune.report.display import (
    better,
    compact,
    count,
    decimals,
    delta,
    duration,
    interval,
    metric_label,
    number,
    p_value,
    share,
    size,
    system_label,
)
from fulltune.report.page import asset, environment
from fulltune.report.retention import signed
from fulltune.report.task import Chart

_SIGNS = {"improved": "▲", "no detectable change": "≈", "worse": "▼"}


@dataclass(frozen=True)
class Row:
    """A line of the table; ``reason`` stands in place of numbers."""

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
    ability: str = ""
    rate: str = ""
    reason: str = ""
    chosen: bool = False


@dataclass(frozen=True)
class Rates:
    """A method's rates: each with the value that it reached, the chosen one marked."""

    method: str
    cells: tuple[tuple[str, str, bool], ...]
    note: str


def render(found: MethodComparison) -> str:
    """``methods.html``: one self-contained page, readable without script; nothing is fetched from elsewhere."""
    return (
        environment()
        .get_template("methods.html.j2")
        .render(
            found=found,
            css=Markup(asset("report.css")),
            rows=rows(found),
            charts=charts(found),
            rates=rates(found),
            metric=metric_label(found.metric),
            better=better(found.metric, found.direction),
            objective=metric_label(found.objective),
            runs=[(result.method, run) for result in found.methods for run in result.runs],
            facts=_facts(found),
        )
    )


def rows(found: MethodComparison) -> list[Row]:
    """Every method in the order asked for, then what trains nothing."""
    values = [result.score.value for result in found.methods if result.score]
    digits = decimals([*values, *(one.score.value for one in found.baselines)])
    lines = [_method(result, found, digits) for result in found.methods]
    lines += [
        Row(
            name=system_label(one.system),
            kind="baseline",
            **_score(one.score, digits),
            **_against(one.against, found.reference, digits),
        )
        for one in found.baselines
    ]
    return lines


def charts(found: MethodComparison) -> list[Chart]:
    """Score over peak memory, and over time of training."""
    return [
        chart
        for chart in (
            _pareto(found, "memory", "Peak memory", lambda result: result.memory_bytes, size),
            _pareto(found, "time", "Time of training", lambda result: result.seconds, duration),
        )
        if chart is not None
    ]


def front(points: Sequence[tuple[float, float]], direction: str) -> list[bool]:
    """For each ``(cost, value)`` whether no other is at least as good in both and better in one."""
    sign = 1 if direction == "higher" else -1

    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        cost, value = b[0] - a[0], sign * (a[1] - b[1])
        return cost >= 0 and value >= 0 and (cost > 0 or value > 0)

    return [not any(beats(other, point) for other in points) for point in points]


def rates(found: MethodComparison) -> list[Rates]:
    """The search of each method; none where one rate was taken untried."""
    return [_rates(result) for result in found.methods if result.rates]


def _pareto(
    found: MethodComparison,
    name: str,
    title: str,
    cost: Callable[[MethodResult], float],
    written: Callable[[float], str],
) -> Chart | None:
    measured = [result for result in found.methods if result.score]
    points = [(cost(result), result.score.value) for result in measured if result.score]
    ahead = front(points, found.direction)
    dots = [
        svg.Dot(
            result.method,
            x,
            y,
            result.score.low,
            result.score.high,
            f"{result.method}: {found.label} {compact(y)}, {written(x)}",
            strong=result.method == found.recommended,
            on_front=is_ahead,
        )
        for result, (x, y), is_ahead in zip(measured, points, ahead, strict=True)
        if result.score
    ]
    drawn = svg.scatter(f"{found.label} over {name}", "; ".join(dot.told for dot in dots), dots, written)
    note = "◆ recommended, ○ others; the line joins those that no other beats in both; whiskers are intervals"
    label = f"{metric_label(found.metric)} over {title.lower()}"
    return Chart(label, f"{better(found.metric, found.direction)}. {note}.", drawn) if drawn else None


def _method(result: MethodResult, found: MethodComparison, digits: int) -> Row:
    if result.score is None:
        return Row(name=result.method, kind=result.status, reason=f"{result.status}: {result.reason}")
    worst = result.worst_retention
    return Row(
        name=result.method,
        kind="measured",
        **_score(result.score, digits),
        spread="" if math.isnan(result.spread) else f"± {number(result.spread, digits)} between seeds",
        **_against(result.against, found.reference, digits),
        trainable=count(result.trainable),
        part=share(result.trainable / result.total) if result.total else "",
        memory=size(result.memory_bytes),
        optimizer=size(result.optimizer_bytes),
        time=duration(result.seconds),
        speed=count(result.tokens_per_second),
        disk=size(result.disk_bytes),
        retention=signed(worst[1]) if worst else "",
        ability=worst[0] if worst else "",
        rate=f"{result.rate:.3g}" if result.rate is not None else "",
        chosen=result.method == found.recommended,
    )


def _score(score: Score, digits: int) -> dict[str, Any]:
    return {"score": number(score.value, digits), "score_interval": interval(score.low, score.high, digits)}


def _against(comparison: Comparison | None, reference: str, digits: int) -> dict[str, Any]:
    if comparison is None:
        return {"against": f"{reference} itself"}
    return {
        "against": delta(comparison.delta, digits),
        "against_interval": f"{interval(comparison.low, comparison.high, digits, sign=True)}, {p_value(comparison.p)}",
        "verdict": comparison.verdict,
        "sign": _SIGNS[comparison.verdict],
    }


def _rates(result: MethodResult) -> Rates:
    cells = tuple((_rate(trial), _reached(trial), _rate(trial) == _written(result.rate)) for trial in result.rates)
    return Rates(result.method, cells, "at the edge: a better rate may lie outside" if result.at_edge else "")


def _rate(trial: Tried) -> str:
    return _written(float(str(trial.settings["train.learning_rate"])))


def _written(rate: float | None) -> str:
    return "" if rate is None else f"{rate:.3g}"


def _reached(trial: Tried) -> str:
    return compact(trial.value) if trial.state == "whole" else trial.state


def _facts(found: MethodComparison) -> list[tuple[str, str]]:
    rows = ", ".join(f"{rows:,} {split}" for split, rows in found.rows.items())
    return [
        ("Task", found.task),
        ("Base model", found.model),
        ("Rows", rows),
        ("Steps of every training", f"{found.steps:,}"),
        ("Seeds", ", ".join(map(str, found.seeds))),
        ("Machine", found.machine),
        ("Date", found.created),
    ]
