"""Training curves: losses, the metric for selection, and the steps of guard events."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fulltune.metrics.wording import metric_label
from fulltune.records.run import GuardEvent, Step
from fulltune.report import svg
from fulltune.report.display import as_float, compact
from fulltune.report.task import Chart


def curves(steps: Sequence[Step], guards: Sequence[GuardEvent], details: Mapping[str, Any]) -> list[Chart]:
    """Return charts of loss (training and evaluation), validation metric, learning rate and gradient norm by step.

    Args:
        steps: Logged steps.
        guards: Guard events, which are marked in the charts of loss and metric.
        details: ``details["validation"]`` is ``{"metric": …, "points": [[step, value], …]}`` if a metric selected the
            best step.
    """
    marks = [mark for event in guards for mark in _marks(event)]
    charts = [_loss(steps, marks), _validation(details.get("validation"), marks)]
    for field, title in (("learning_rate", "Learning rate"), ("grad_norm", "Gradient norm")):
        points = _points(steps, field)
        if points:
            note = _span(points) + (_peak(points) if field == "learning_rate" else "")
            charts.append(Chart(title, note, svg.lines(title, note, [svg.Line(title, points)])))
    return [chart for chart in charts if chart is not None]


def _marks(event: GuardEvent) -> list[svg.Mark]:
    if event.verdict == "continue":
        return [svg.Mark(event.step, "best", event.message)] if event.guard == "overfitting" else []
    return [svg.Mark(event.step, event.verdict, event.message)]


def _loss(steps: Sequence[Step], marks: Sequence[svg.Mark]) -> Chart | None:
    training = _points(steps, "loss")
    evaluation = _points(steps, "eval_loss")
    drawn = []
    keys = []
    notes = []
    if training:
        drawn.append(svg.Line("training", training))
        keys.append(("line", "training loss"))
        notes.append(f"Training loss {_span(training)}.")
    if evaluation:
        drawn.append(svg.Line("evaluation", evaluation, dotted=True))
        keys.append(("dotted", "evaluation loss"))
        notes.append(f"Evaluation loss {_span(evaluation)}{_lowest(evaluation)}.")
    if not drawn:
        return None
    note = " ".join(notes)
    picture = svg.lines("Training and evaluation loss", note, drawn, marks)
    return Chart("Loss", note, picture, tuple(keys), wide=True)


def _validation(details: Any, marks: Sequence[svg.Mark]) -> Chart | None:
    """Return the chart of the metric that selected the best step, or None for the loss, which has its own chart."""
    if not isinstance(details, Mapping) or details.get("metric") == "loss":
        return None
    points = [(as_float(step), as_float(value)) for step, value in details.get("points", ())]
    if not points:
        return None
    title = f"Validation {metric_label(str(details.get('metric')))}"
    line = svg.Line(title, points, dotted=True)
    note = f"{_span(points)}; it selected the best step."
    return Chart(title, note, svg.lines(title, "", [line], marks))


def _points(steps: Sequence[Step], field: str) -> list[svg.Point]:
    return [(step.step, getattr(step, field)) for step in steps if getattr(step, field) is not None]


def _span(points: Sequence[svg.Point]) -> str:
    first = points[0]
    last = points[-1]
    words = f"{compact(first[1])} at step {first[0]:,.0f} → {compact(last[1])} at step {last[0]:,.0f}"
    bad = sum(not math.isfinite(y) for _, y in points)
    return words + (f"; not finite (×) at {bad} logged step{'s' if bad > 1 else ''}" if bad else "")


def _peak(points: Sequence[svg.Point]) -> str:
    """Return the highest value, unless the line begins or ends with it."""
    finite = [point for point in points if math.isfinite(point[1])]
    step, value = max(finite, key=lambda point: point[1], default=points[0])
    if any(end[1] == value for end in (points[0], points[-1])):
        return ""
    return f", highest {compact(value)} at step {step:,.0f}"


def _lowest(points: Sequence[svg.Point]) -> str:
    finite = [point for point in points if math.isfinite(point[1])]
    if len(finite) < 2:
        return ""
    step, value = min(finite, key=lambda point: point[1])
    return f", lowest {compact(value)} at step {step:,.0f}"
