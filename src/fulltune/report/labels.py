"""Measure, wrap and place the words of a chart, so that none is cut and none covers another.

A page has no fonts of its own, and its width is unknown, so that all widths are estimates for the narrowest screen.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from fulltune.runtime.graphemes import clusters

#: Width of a chart on a narrow phone, in pixels.
NARROW = 300

#: Estimated width of a letter at 13 pixels, and of one of a wide script or an emoji.
_LETTER, _WIDE = 7.3, 13.5


def width(text: str) -> float:
    """Return the estimated width of a text at 13 pixels."""
    return sum(_WIDE if _is_wide(cluster) else _LETTER for cluster in clusters(text))


def _is_wide(cluster: str) -> bool:
    return unicodedata.east_asian_width(cluster[0]) in "WF" or len(cluster.encode()) > 8


def wrap(text: str, most: float = NARROW) -> list[str]:
    """Divide a text into lines of at most ``most`` pixels: between words if possible, otherwise between letters."""
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if width(joined) <= most:
            lines[-1:] = [joined]
        else:
            lines += _pieces(word, most)
    return lines or [""]


def _pieces(word: str, most: float) -> list[str]:
    """Divide a word that may be wider than a line."""
    pieces, room = [""], most
    for cluster in clusters(word):
        size = width(cluster)
        if size > room and pieces[-1]:
            pieces.append("")
            room = most
        pieces[-1] += cluster
        room -= size
    return pieces


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels: the area of a label or of a marker."""

    left: float
    top: float
    right: float
    bottom: float

    def contains(self, other: Box) -> bool:
        return (
            self.left <= other.left
            and other.right <= self.right
            and self.top <= other.top
            and other.bottom <= self.bottom
        )

    def overlaps(self, other: Box) -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


@dataclass(frozen=True)
class Placed:
    """Position of a label, relative to its point: horizontal distance, height of the baseline, side."""

    dx: float
    dy: float
    anchor: str

    @property
    def is_far(self) -> bool:
        """True if a line has to show which point it belongs to."""
        return not -_LINE < self.dy < 2 * _LINE


#: Height of a line of text, and distance of a label from its point, in pixels.
_LINE, _APART = 15, 9


def place(
    points: Sequence[tuple[float, float]],
    names: Sequence[str],
    area: Box,
    obstacles: Iterable[Box] = (),
) -> list[Placed]:
    """Return a place for the label of each point that covers no point, label or obstacle, if there is one.

    Args:
        points: Positions in pixels.
        names: The labels.
        area: The chart, which labels do not leave.
        obstacles: Areas that labels do not cover, such as whiskers.
    """
    taken = [*obstacles, *(around(x, y, 7) for x, y in points)]
    placed = []
    for (x, y), name in zip(points, names, strict=True):
        choices = [(choice, _box(x, y, choice, width(name))) for choice in _choices()]
        inside = [item for item in choices if area.contains(item[1])] or choices
        free = (item for item in inside if not any(item[1].overlaps(box) for box in taken))
        choice, box = next(free, inside[0])
        taken.append(box)
        placed.append(choice)
    return placed


def around(x: float, y: float, reach: float) -> Box:
    """Return the square around a point."""
    return Box(x - reach, y - reach, x + reach, y + reach)


def along(points: Sequence[tuple[float, float]]) -> list[Box]:
    """Return small squares that cover a line through the points."""
    covered = []
    for (x1, y1), (x2, y2) in pairwise(points):
        count = max(1, round(math.hypot(x2 - x1, y2 - y1) / 4))
        parts = (step / count for step in range(count + 1))
        covered += [around(x1 + part * (x2 - x1), y1 + part * (y2 - y1), 2) for part in parts]
    return covered


def _choices() -> Iterable[Placed]:
    """Yield places from the nearest to the farthest."""
    for step in range(8):
        for dy in (-8,) if step == 0 else (-8 - _LINE * step, 4 + _LINE * step):
            yield Placed(_APART, dy, "start")
            yield Placed(-_APART, dy, "end")


def _box(x: float, y: float, choice: Placed, size: float) -> Box:
    left = x + choice.dx - (size if choice.anchor == "end" else 0)
    return Box(left, y + choice.dy - 11, left + size, y + choice.dy + 4)
