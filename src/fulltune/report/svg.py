"""Draw charts as inline SVG: real text at its own size, fluid widths, colors from the page's CSS variables.

Horizontal positions are percentages of the width, vertical ones are pixels, so that a chart fills a phone or a wide
screen without scaling its text. Color is never the only carrier of information: shapes and words repeat it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from fulltune.report import labels
from fulltune.report.display import compact

#: Maximum number of points per line; each bucket of steps keeps its lowest and its highest point.
POINTS = 300

Point = tuple[float, float]


def tag(name: str, *children: str | Markup, **attributes: Any) -> Markup:
    """Return an element with escaped text and attributes; ``class_`` and ``stroke_width`` become the SVG names."""
    written = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items()
    )
    return Markup("<{0}{1}>{2}</{0}>").format(name, written, Markup("").join(children))


@dataclass(frozen=True)
class Axis:
    """Mapping from values to 0…1, linear or logarithmic; the ticks of whole numbers are whole."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def at(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low = math.log10(low)
            high = math.log10(high)
            value = math.log10(value)
        return (value - low) / (high - low)

    def ticks(self, wanted: int) -> list[float]:
        """Return about ``wanted`` round numbers within the axis."""
        if self.log:
            powers = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
            return [10.0**power for power in powers][:: max(1, len(powers) // wanted)]
        rough = (self.high - self.low) / wanted
        unit = 10.0 ** math.floor(math.log10(rough))
        step = min((unit * m for m in (1, 2, 5, 10)), key=lambda size: abs(math.log(size / rough)))
        step = max(1.0, step) if self.whole else step
        first = math.ceil(self.low / step - 1e-9)
        return [float(f"{i * step:.12g}") for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def axis_over(values: Iterable[float], *, zero: bool = False, pad: float = 0.06, log: bool = False) -> Axis | None:
    """Return an axis that holds all finite values with a margin, or None if there are none."""
    finite = [value for value in values if math.isfinite(value)] + ([0.0] if zero else [])
    if not finite or (zero and len(finite) == 1):
        return None
    low = min(finite)
    high = max(finite)
    if log:
        return Axis(low / 1.2, high * 1.2, log=True)
    if low == high == 0:
        high = 1.0
    largest = max(abs(low), abs(high))
    spread = high - low if high - low > 1e-6 * largest else largest or 1.0
    margin = spread * pad
    return Axis(low if zero and low == 0 else low - margin, high if zero and high == 0 > low else high + margin)


def percent(fraction: float) -> str:
    """Return a position as a percentage of the width."""
    return f"{100 * fraction:.2f}%"


def figure(title: str, description: str, height: float, *parts: Markup, css_class: str = "chart") -> Markup:
    """Return the outer element, with a title and a description for screen readers."""
    head = (tag("title", title), tag("desc", description))
    return tag("svg", *head, *parts, class_=css_class, role="img", width="100%", height=f"{height:g}", aria_label=title)


def bottom_axis(
    axis: Axis, top: float, bottom: float, wanted: int = 4, tick: Callable[[float], str] = compact
) -> Markup:
    """Return light vertical lines with numbers below: as many as fit on a narrow screen."""
    parts = []
    tick = _distinct(axis.ticks(wanted), tick)
    for value in _uncrowded(axis, axis.ticks(wanted), tick):
        place = axis.at(value)
        if bottom > top:
            parts.append(tag("line", class_="grid", x1=percent(place), x2=percent(place), y1=top, y2=bottom))
        number = {"class_": "tick", "x": percent(place), "y": bottom + 15, "text_anchor": _anchor(place)}
        parts.append(tag("text", tick(value), **number))
    return Markup("").join(parts)


def _distinct(ticks: Sequence[float], tick: Callable[[float], str]) -> Callable[[float], str]:
    """Return a format for ticks that gives no two of them the same text."""
    for digits in range(4, 13):
        if len({tick(value) for value in ticks}) == len(ticks):
            break
        tick = partial(_significant, digits)
    return tick


def _significant(digits: int, value: float) -> str:
    return f"{value:,.{digits}g}".replace("-", "−")


def _anchor(place: float) -> str:
    return "start" if place < 0.04 else "end" if place > 0.96 else "middle"


def _uncrowded(axis: Axis, ticks: Sequence[float], tick: Callable[[float], str]) -> Sequence[float]:
    """Return the ticks, or every second, fourth, … of them, so that their numbers do not touch."""
    while any(_end(axis, one, tick) + 8 > _start(axis, two, tick) for one, two in pairwise(ticks)):
        ticks = ticks[::2]
    return ticks


def _start(axis: Axis, value: float, tick: Callable[[float], str]) -> float:
    """Return the left end of the number of a tick on a narrow screen, in pixels."""
    place = axis.at(value)
    before = {"start": 0.0, "middle": 0.5, "end": 1.0}[_anchor(place)]
    return labels.NARROW * place - before * labels.width(tick(value))


def _end(axis: Axis, value: float, tick: Callable[[float], str]) -> float:
    return _start(axis, value, tick) + labels.width(tick(value))


@dataclass(frozen=True)
class Bar:
    """One row of a forest plot or bar chart.

    Attributes:
        label: Name on the left.
        value: Position of its marker; NaN for none.
        low, high: Interval; NaN for none.
        text: Words on the right.
        strong: True for the tuned model.
        limit: Value that must not be exceeded; NaN for none.
    """

    label: str
    value: float
    low: float
    high: float
    text: str
    strong: bool = False
    limit: float = math.nan

    @property
    def heading(self) -> list[str]:
        """The lines of the name; the text is written on the last one, which is empty if both do not fit on one."""
        if labels.width(self.label) + labels.width(self.text) < labels.NARROW - 14:
            return [self.label]
        return [*labels.wrap(self.label), ""]


@dataclass(frozen=True)
class _Strip:
    """The place of a row: its top, the baseline of its last line of words, and the middle of its marker."""

    top: float
    baseline: float

    @property
    def middle(self) -> float:
        return self.baseline + 13

    @property
    def bottom(self) -> float:
        return self.baseline + 27


#: Distance between two lines of words.
_LEADING = 17


def _strips(rows: Sequence[Bar]) -> list[_Strip]:
    """Return the places of the rows, one below the other; a row with a long name is higher."""
    strips: list[_Strip] = []
    for row in rows:
        top = strips[-1].bottom if strips else 0
        strips.append(_Strip(top, top + 15 + _LEADING * (len(row.heading) - 1)))
    return strips


def forest(title: str, rows: Sequence[Bar], *, tick: Callable[[float], str] = compact, zero: bool = False) -> Markup:
    """Return points with intervals, one row per system; dashed lines mark the value of the strong row and the limits.

    Args:
        title: Title for screen readers.
        rows: The rows; without a finite number, the result is empty.
        tick: Formats a number for the axis.
        zero: Mark zero by a line.
    """
    numbers = [number for row in rows for number in (row.value, row.low, row.high, row.limit)]
    axis = axis_over(numbers + [0.0] * zero)
    if axis is None:
        return Markup("")
    strips = _strips(rows)
    bottom = strips[-1].bottom
    parts = [bottom_axis(axis, 0, bottom, tick=tick)]
    strong = [row.value for row in rows if row.strong and math.isfinite(row.value)]
    for row, strip in zip(rows, strips, strict=True):
        parts += [_across(0.0, "zero", axis, strip)] if zero else []
        parts += [_across(value, "reference", axis, strip) for value in strong]
        parts += [_across(row.limit, "limit", axis, strip)] if math.isfinite(row.limit) else []
        parts += [_row_words(row, strip), _whisker(row, axis, strip.middle), _marker(row, axis, strip.middle)]
    return figure(title, _description(rows), bottom + 20, *parts)


def _across(value: float, css_class: str, axis: Axis, strip: _Strip) -> Markup:
    """Return a vertical line behind the marker of a row."""
    place = percent(axis.at(value))
    return tag("line", class_=css_class, x1=place, x2=place, y1=strip.middle - 8, y2=strip.middle + 9)


def bars(title: str, rows: Sequence[Bar]) -> Markup:
    """Return horizontal bars from zero with intervals as whiskers."""
    axis = axis_over([number for row in rows for number in (row.value, row.low, row.high)], zero=True)
    if axis is None:
        return Markup("")
    parts = []
    strips = _strips(rows)
    for row, strip in zip(rows, strips, strict=True):
        parts.append(_row_words(row, strip))
        if math.isfinite(row.value):
            start, end = sorted((axis.at(0), axis.at(row.value)))
            place = {"x": percent(start), "y": strip.middle - 6, "width": percent(max(end - start, 0.002))}
            parts.append(tag("rect", class_="bar strong" if row.strong else "bar", height=12, rx=2, **place))
        parts.append(_whisker(row, axis, strip.middle))
    return figure(title, _description(rows), strips[-1].bottom - 2, *parts)


def _description(rows: Sequence[Bar]) -> str:
    return "; ".join(f"{row.label}: {row.text}" for row in rows)


def _row_words(row: Bar, strip: _Strip) -> Markup:
    strength = " strong" if row.strong else ""
    heading = row.heading
    first = strip.baseline - _LEADING * (len(heading) - 1)
    names = [
        tag("text", line, class_="name halo" + strength, x=0, y=first + _LEADING * index)
        for index, line in enumerate(heading)
        if line
    ]
    value = tag("text", row.text, class_="value halo" + strength, x="100%", y=strip.baseline, text_anchor="end")
    return Markup("").join([*names, value])


def _whisker(row: Bar, axis: Axis, y: float) -> Markup:
    if not (math.isfinite(row.low) and math.isfinite(row.high)):
        return Markup("")
    low = percent(axis.at(row.low))
    high = percent(axis.at(row.high))
    strength = "whisker strong" if row.strong else "whisker"
    line = tag("line", class_=strength, x1=low, x2=high, y1=y, y2=y)
    ends = (tag("line", class_=strength, x1=end, x2=end, y1=y - 4, y2=y + 4) for end in (low, high))
    return line + Markup("").join(ends)


def _marker(row: Bar, axis: Axis, y: float) -> Markup:
    """Return a filled diamond for the tuned model, a hollow circle for others."""
    if not math.isfinite(row.value):
        return Markup("")
    shape = tag("path", class_="diamond", d="M-7 0L0 -7L7 0L0 7Z") if row.strong else tag("circle", class_="ring", r=5)
    return tag("svg", shape, overflow="visible", x=percent(axis.at(row.value)), y=y)


@dataclass(frozen=True)
class Line:
    """One curve; ``dotted`` also draws its points (few, such as evaluations)."""

    label: str
    points: Sequence[Point]
    dotted: bool = False


@dataclass(frozen=True)
class Mark:
    """A marked step: a vertical line with a label at its top, and a sentence as a tooltip."""

    step: float
    label: str
    description: str


_TOP, _HEIGHT = 8, 160


def lines(
    title: str,
    description: str,
    curves: Sequence[Line],
    marks: Sequence[Mark] = (),
    *,
    log_steps: bool = False,
    unit: str = "step",
) -> Markup:
    """Return curves over steps. Values that are not finite leave a gap, with a cross on the axis.

    Args:
        title: Title for screen readers.
        description: Description for screen readers.
        curves: Curves with at least one point in total.
        marks: Steps to mark.
        log_steps: Use a logarithmic axis for steps.
        unit: Name of a step.
    """
    values = [y for curve in curves for _, y in curve.points if math.isfinite(y)]
    steps = [x for curve in curves for x, _ in curve.points] + [mark.step for mark in marks]
    log = bool(values) and min(values) > 0 and max(values) / min(values) > 50 and len(values) > 3
    y_axis = axis_over(values, log=log) or Axis(0, 1)
    x_axis = _steps_axis(min(steps), max(steps), log_steps)
    parts = [_left_axis(y_axis), bottom_axis(x_axis, _TOP + _HEIGHT, _TOP + _HEIGHT)]
    for curve in curves:
        parts += [_path(curve, x_axis, y_axis), _dots(curve, x_axis, y_axis, unit)]
    parts.append(_marks(marks, x_axis, unit))
    return figure(title, description, _TOP + _HEIGHT + 22, *parts, css_class="chart curve")


def _steps_axis(first: float, last: float, log: bool) -> Axis:
    if log:
        return Axis(first, last if first < last else 10 * last, log=True)
    return Axis(first, last, whole=True) if first < last else Axis(first - 1, last + 1, whole=True)


def _left_axis(axis: Axis) -> Markup:
    """Return light horizontal lines with numbers in the left margin of the page."""
    parts = []
    ticks = axis.ticks(4)
    written = _distinct(ticks, compact)
    for tick in ticks:
        y = _y(axis, tick)
        parts.append(tag("line", class_="grid", x1=0, x2="100%", y1=y, y2=y))
        parts.append(tag("text", written(tick), class_="tick", x=-8, y=round(y + 4, 1), text_anchor="end"))
    return Markup("").join(parts)


def _y(axis: Axis, value: float) -> float:
    return round(_TOP + _HEIGHT * (1 - axis.at(value)), 1)


def _path(curve: Line, x_axis: Axis, y_axis: Axis) -> Markup:
    """Return the curve in a box that is stretched horizontally without scaling its stroke."""
    commands = []
    pen_down = False
    for x, y in thin(curve.points):
        if math.isfinite(y):
            commands.append(f"{'L' if pen_down else 'M'}{1000 * x_axis.at(x):.1f} {_y(y_axis, y) - _TOP:.1f}")
        pen_down = math.isfinite(y)
    shape = tag("path", class_="line dotted" if curve.dotted else "line", d="".join(commands))
    box = {"viewBox": f"0 0 1000 {_HEIGHT}", "preserveAspectRatio": "none", "overflow": "visible"}
    return tag("svg", shape, x=0, y=_TOP, width="100%", height=_HEIGHT, **box)


def _marks(marks: Sequence[Mark], axis: Axis, unit: str) -> Markup:
    """Return vertical lines with labels; a label that would touch another is written below it."""
    drawn: list[Markup] = []
    words: list[Markup] = []
    ends: list[float] = []  # of the last label on each level, in pixels
    for mark in sorted(marks, key=lambda mark: mark.step):
        place = axis.at(mark.step)
        title = tag("title", f"{unit} {mark.step:g}: {mark.description}")
        across = {"x1": percent(place), "x2": percent(place), "y1": _TOP, "y2": _TOP + _HEIGHT}
        drawn.append(tag("line", title, class_="mark", **across))
        size = labels.width(mark.label) + 10
        turned = place * labels.NARROW + size > labels.NARROW
        start = place * labels.NARROW - (size if turned else 0)
        level = next((index for index, end in enumerate(ends) if end <= start), len(ends))
        ends[level : level + 1] = [start + size]
        side = {"dx": -5, "text_anchor": "end"} if turned else {"dx": 5, "text_anchor": "start"}
        height = _TOP + 12 + 15 * level
        words.append(tag("text", mark.label, class_="tick halo", x=percent(place), y=height, **side))
    return Markup("").join([*drawn, *words])


def _dots(curve: Line, x_axis: Axis, y_axis: Axis, unit: str) -> Markup:
    """Return the points of a dotted curve, single points of any curve, and crosses for values that are not finite."""
    few = curve.dotted or sum(math.isfinite(y) for _, y in curve.points) == 1
    parts = []
    for x, y in curve.points if few else [point for point in curve.points if not math.isfinite(point[1])][:POINTS]:
        place = percent(x_axis.at(x))
        if math.isfinite(y):
            dot = tag("title", f"{unit} {x:g}: {compact(y)}")
            parts.append(tag("circle", dot, class_="dot", cx=place, cy=_y(y_axis, y), r=3.5))
        else:
            title = tag("title", f"{unit} {x:g}: not a number")
            parts.append(tag("text", "×", title, class_="cross", x=place, y=_TOP + _HEIGHT - 2, text_anchor="middle"))
    return Markup("").join(parts)


def thin(points: Sequence[Point]) -> list[Point]:
    """Return at most :data:`POINTS` points, plus NaN ones; each bucket keeps its extremes, so that spikes are kept."""
    if len(points) <= POINTS:
        return list(points)
    width = math.ceil(len(points) / (POINTS // 2))
    kept: list[Point] = []
    for start in range(0, len(points), width):
        bucket = points[start : start + width]
        finite = [point for point in bucket if math.isfinite(point[1])]
        extremes = {min(finite, key=_height), max(finite, key=_height)} if finite else set()
        gap = next(([point] for point in bucket if not math.isfinite(point[1])), [])
        kept += sorted([*extremes, *gap], key=lambda point: point[0])
    return kept


def _height(point: Point) -> float:
    return point[1]


@dataclass(frozen=True)
class Dot:
    """A point of a scatter plot: name, cost, and value with interval; emphasized or not, on the Pareto front or not."""

    label: str
    x: float
    y: float
    low: float
    high: float
    description: str
    strong: bool = False
    on_front: bool = False


def scatter(title: str, description: str, dots: Sequence[Dot], tick: Callable[[float], str]) -> Markup:
    """Return values over costs with intervals, and the front as a line. Points that are not finite are omitted.

    Args:
        title: Title for screen readers.
        description: Description for screen readers.
        dots: Points; without a finite one, the result is empty.
        tick: Formats a cost for its axis.
    """
    drawn = [dot for dot in dots if math.isfinite(dot.x) and math.isfinite(dot.y)]
    costs = [dot.x for dot in drawn]
    x_axis = axis_over(costs, zero=bool(costs) and min(costs) < max(costs) / 2, pad=0.18)
    y_axis = axis_over([value for dot in drawn for value in (dot.y, dot.low, dot.high)])
    if x_axis is None or y_axis is None:
        return Markup("")
    front = sorted((dot.x, dot.y) for dot in drawn if dot.on_front)
    parts = [_left_axis(y_axis), bottom_axis(x_axis, _TOP, _TOP + _HEIGHT, tick=tick)]
    parts.append(_path(Line("front", front), x_axis, y_axis) if len(front) > 1 else Markup(""))
    parts += [_scattered(dot, x_axis, y_axis) for dot in drawn]
    parts += _names(drawn, front, x_axis, y_axis)
    return figure(title, description, _TOP + _HEIGHT + 22, *parts, css_class="chart curve")


def _scattered(dot: Dot, x_axis: Axis, y_axis: Axis) -> Markup:
    """Return the marker of a point with its interval."""
    x = percent(x_axis.at(dot.x))
    whisker = Markup("")
    if math.isfinite(dot.low) and math.isfinite(dot.high):
        ends = {"x1": x, "x2": x, "y1": _y(y_axis, dot.low), "y2": _y(y_axis, dot.high)}
        whisker = tag("line", class_="whisker strong" if dot.strong else "whisker", **ends)
    shape = tag("path", class_="diamond", d="M-7 0L0 -7L7 0L0 7Z") if dot.strong else tag("circle", class_="ring", r=5)
    return whisker + tag("svg", tag("title", dot.description), shape, overflow="visible", x=x, y=_y(y_axis, dot.y))


def _names(dots: Sequence[Dot], front: Sequence[Point], x_axis: Axis, y_axis: Axis) -> list[Markup]:
    """Return the labels of the points: next to their markers, off whiskers and the line of the front."""

    def pixels(x: float, y: float) -> Point:
        return labels.NARROW * x_axis.at(x), _y(y_axis, y)

    whiskers = [
        labels.Box(pixels(dot.x, 0)[0] - 2, _y(y_axis, dot.high), pixels(dot.x, 0)[0] + 2, _y(y_axis, dot.low))
        for dot in dots
        if math.isfinite(dot.low) and math.isfinite(dot.high)
    ]
    line = labels.along([pixels(*point) for point in front])
    area = labels.Box(0, 0, labels.NARROW, _TOP + _HEIGHT)
    points = [pixels(dot.x, dot.y) for dot in dots]
    places = labels.place(points, [dot.label for dot in dots], area, [*whiskers, *line])
    return [_name(dot, place, x_axis, y_axis) for dot, place in zip(dots, places, strict=True)]


def _name(dot: Dot, place: labels.Placed, x_axis: Axis, y_axis: Axis) -> Markup:
    """Return the label of a point, with a thin line to it if it is far away."""
    x, y = percent(x_axis.at(dot.x)), _y(y_axis, dot.y)
    leader = Markup("")
    if place.is_far:
        shape = tag("path", class_="leader", d=f"M0 0L{place.dx * 0.8:g} {place.dy - 4:g}")
        leader = tag("svg", shape, overflow="visible", x=x, y=y)
    look = {"class_": "tick halo strong" if dot.strong else "tick halo", "text_anchor": place.anchor}
    return leader + tag("text", dot.label, **look, x=x, y=round(y + place.dy, 1), dx=place.dx)


@dataclass(frozen=True)
class Bin:
    """Answers with a confidence in one range: mean confidence, accuracy, and count."""

    low: float
    high: float
    confidence: float
    accuracy: float
    count: int


def calibration(title: str, bins: Sequence[Bin]) -> Markup:
    """Return a reliability diagram: bars of accuracy by confidence, each with a line at the mean confidence."""
    axis = Axis(0, 1)
    y_axis = Axis(0, 1.08)
    parts = [_left_axis(y_axis), bottom_axis(axis, _TOP + _HEIGHT, _TOP + _HEIGHT)]
    for item in bins:
        if not item.count or not (math.isfinite(item.accuracy) and math.isfinite(item.confidence)):
            continue
        gap = 0.08 * (item.high - item.low)
        left = percent(item.low + gap)
        width = percent(item.high - item.low - 2 * gap)
        top = _y(y_axis, item.accuracy)
        words = tag("title", f"confidence {item.confidence:.2f}: {item.accuracy:.2f} correct of {item.count} rows")
        place = {"x": left, "y": top, "width": width, "height": max(round(_TOP + _HEIGHT - top, 1), 1)}
        parts.append(tag("rect", words, class_="bar", rx=2, **place))
        stated = _y(y_axis, item.confidence)
        right = percent(item.high - gap)
        parts.append(tag("line", class_="said", x1=left, x2=right, y1=stated, y2=stated))
    description = "; ".join(
        f"{b.low:g} to {b.high:g}: {b.accuracy:.2f} correct, {b.count} rows" for b in bins if b.count
    )
    return figure(title, description, _TOP + _HEIGHT + 22, *parts, css_class="chart curve")
