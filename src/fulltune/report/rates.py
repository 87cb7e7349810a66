"""Draw a search for a learning rate as a separate SVG file."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from fulltune.report import svg
from fulltune.report.display import compact

_WIDTH, _LEFT, _HEAD = 720, 64, 56

_STYLE = """
.chart { overflow: visible }
text { font-family: system-ui, sans-serif; font-size: 13px; fill: #1d2530 }
.title { font-size: 15px; font-weight: 600 }
.tick { font-size: 12px; fill: #5a6675 }
.halo { paint-order: stroke; stroke: #fff; stroke-width: 5px; stroke-linejoin: round }
.grid { stroke: #e3e7ec }
.line { fill: none; stroke: #b9c4d2; stroke-width: 1.2; vector-effect: non-scaling-stroke }
.line.dotted { stroke: #1f5fbf; stroke-width: 2 }
.mark { stroke: #5a6675; stroke-dasharray: 2 3 }
.dot { display: none }
.cross { fill: #b3261e }
"""


def plot(
    sweep: Sequence[tuple[float, float, float]], tried: Sequence[tuple[float, float]], chosen: float | None, reason: str
) -> str:
    """Return a chart of a range test (loss and smoothed loss by rate), with the rates that were tried.

    Args:
        sweep: Rate, loss and smoothed loss; at least one point.
        tried: Rates and the resulting held-out losses.
        chosen: The recommended rate, one of those tried.
        reason: The conclusion in one sentence.
    """
    curves = [
        svg.Line("loss", [(rate, loss) for rate, loss, _ in sweep]),
        svg.Line("smoothed", [(rate, mean) for rate, _, mean in sweep], dotted=True),
    ]
    marks = [svg.Mark(rate, compact(rate) + " ✓" * (rate == chosen), _describe(loss)) for rate, loss in tried]
    inner = svg.lines("Loss over learning rate", reason, curves, marks, log_steps=True, unit="rate")
    height = _HEAD + 206
    parts = (
        svg.tag("style", Markup(_STYLE)),
        svg.tag("rect", width="100%", height="100%", fill="#fff"),
        svg.tag("text", "Training loss over learning rate", class_="title", x=16, y=24),
        svg.tag("text", "gray: loss of a step; blue: smoothed; dashed: rates tried", class_="tick", x=16, y=42),
        svg.tag("svg", inner, x=_LEFT, y=_HEAD, width=_WIDTH - _LEFT - 16, height=height - _HEAD, overflow="visible"),
    )
    head = {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {_WIDTH} {height}"}
    return str(svg.tag("svg", *parts, width=_WIDTH, height=height, **head)) + "\n"


def _describe(loss: float) -> str:
    return f"held-out loss {loss:.4g}" if math.isfinite(loss) else "training failed"
