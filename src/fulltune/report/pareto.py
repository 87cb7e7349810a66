"""Draw the task score over the loss of retention as a separate SVG file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from fulltune.metrics.wording import metric_label
from fulltune.report import labels, svg
from fulltune.report.display import better, compact, percentage

_WIDTH, _HEIGHT, _LEFT, _TOP = 760, 420, 70, 56
_RIGHT = _WIDTH - 40
_BOTTOM = _HEIGHT - 56


@dataclass(frozen=True)
class Dot:
    """A mixture: its α, its largest relative loss, its task score; on the Pareto front or not, chosen or not."""

    alpha: float
    loss: float
    score: float
    on_front: bool
    chosen: bool


def picture(title: str, metric: str, direction: str, dots: Sequence[Dot], budget: float) -> str:
    """Return a complete SVG document; points with values that are not finite are omitted.

    Args:
        title: The result in one sentence, for screen readers.
        metric: Name of the task metric.
        direction: Direction in which it improves.
        dots: Points by α.
        budget: Highest accepted loss; if infinite, no line is drawn.
    """
    drawn = [dot for dot in dots if math.isfinite(dot.loss) and math.isfinite(dot.score)]
    limit = [budget] if math.isfinite(budget) else []
    x_axis = svg.axis_over([0.0, *limit, *(dot.loss for dot in drawn)]) or svg.Axis(0, 1)
    y_axis = svg.axis_over([dot.score for dot in drawn]) or svg.Axis(0, 1)
    place = _Place(x_axis, y_axis)
    names = (
        svg.tag("text", f"{metric_label(metric)} ({better(metric, direction)})", class_="name", x=_LEFT, y=_TOP - 22),
        svg.tag(
            "text", "largest relative loss of retention", class_="tick", x=_RIGHT, y=_HEIGHT - 12, text_anchor="end"
        ),
    )
    parts = [*_axes(place), *(_budget(place, value) for value in limit), _front(place, drawn), *names]
    parts += [_marker(place, dot) for dot in drawn]
    parts += _labels(place, drawn, limit)
    style = Markup("<style>{}</style>").format(Markup((Path(__file__).parent / "report.css").read_text("utf-8")))
    back = svg.tag("rect", width="100%", height="100%", fill="var(--paper)")
    inner = Markup("").join([svg.tag("title", title), style, back, *parts])
    look = f'class="chart" font-family="sans-serif" role="img" width="{_WIDTH}" height="{_HEIGHT}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {look}>{inner}</svg>\n'


@dataclass(frozen=True)
class _Place:
    """Mapping from values to pixels."""

    x_axis: svg.Axis
    y_axis: svg.Axis

    def x(self, loss: float) -> float:
        return round(_LEFT + (_RIGHT - _LEFT) * self.x_axis.at(loss), 1)

    def y(self, score: float) -> float:
        return round(_BOTTOM - (_BOTTOM - _TOP) * self.y_axis.at(score), 1)


def _axes(place: _Place) -> list[Markup]:
    parts = []
    for tick in place.x_axis.ticks(5):
        x = place.x(tick)
        parts.append(svg.tag("line", class_="grid", x1=x, x2=x, y1=_TOP, y2=_BOTTOM))
        parts.append(svg.tag("text", f"{100 * tick:g}%", class_="tick", x=x, y=_BOTTOM + 18, text_anchor="middle"))
    for tick in place.y_axis.ticks(5):
        y = place.y(tick)
        parts.append(svg.tag("line", class_="grid", x1=_LEFT, x2=_RIGHT, y1=y, y2=y))
        parts.append(svg.tag("text", compact(tick), class_="tick", x=_LEFT - 8, y=y + 4, text_anchor="end"))
    return parts


def _budget(place: _Place, budget: float) -> Markup:
    x = place.x(budget)
    line = svg.tag("line", class_="limit", x1=x, x2=x, y1=_TOP, y2=_BOTTOM)
    side = {"x": x - 5, "text_anchor": "end"} if x > _RIGHT - 80 else {"x": x + 5, "text_anchor": "start"}
    return line + svg.tag("text", f"budget {percentage(budget)}", class_="tick halo", y=_TOP - 4, **side)


def _line(place: _Place, dots: Sequence[Dot]) -> list[svg.Point]:
    """Return the points of the front in pixels."""
    ordered = sorted((dot for dot in dots if dot.on_front), key=lambda dot: dot.loss)
    return [(place.x(dot.loss), place.y(dot.score)) for dot in ordered]


def _front(place: _Place, dots: Sequence[Dot]) -> Markup:
    path = "L".join(f"{x} {y}" for x, y in _line(place, dots))
    return svg.tag("path", class_="line", d=f"M{path}") if path else Markup("")


def _marker(place: _Place, dot: Dot) -> Markup:
    title = svg.tag("title", f"α = {dot.alpha:g}: score {compact(dot.score)}, loss {percentage(dot.loss)}")
    x = place.x(dot.loss)
    y = place.y(dot.score)
    if dot.chosen:
        return svg.tag("path", title, class_="diamond", d=f"M{x - 8} {y}L{x} {y - 8}L{x + 8} {y}L{x} {y + 8}Z")
    return svg.tag("circle", title, class_="ring", cx=x, cy=y, r=5)


def _labels(place: _Place, dots: Sequence[Dot], limits: Sequence[float]) -> list[Markup]:
    """Return the labels of the points, off the line of the front and that of the budget."""
    points = [(place.x(dot.loss), place.y(dot.score)) for dot in dots]
    names = [f"α {dot.alpha:g}" for dot in dots]
    budget = [labels.Box(place.x(limit) - 3, _TOP, place.x(limit) + 3, _BOTTOM) for limit in limits]
    area = labels.Box(_LEFT, _TOP - 16, _WIDTH, _BOTTOM)
    places = labels.place(points, names, area, [*labels.along(_line(place, dots)), *budget])
    return [
        svg.tag(
            "text",
            name,
            class_="tick halo strong" if dot.chosen else "tick halo",
            x=round(x + at.dx, 1),
            y=round(y + at.dy, 1),
            text_anchor=at.anchor,
        )
        for dot, name, (x, y), at in zip(dots, names, points, places, strict=True)
    ]
