"""Draw the tables of docs/evidence.md: false claims by number of rows, and power against that of the test alone.

    python benchmarks/evidence_plot.py         # writes docs/evidence.svg

The tables are those that ``benchmarks/calibration.py`` prints, so that the plot shows what the page says.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"

#: Size of a panel and of its margins, in pixels.
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 400, 300, 52, 46, 40

OURS, OTHER, GRAY = "#1f6feb", "#d9730d", "#777"

Row = dict[str, str]


def tables(text: str) -> Iterator[list[Row]]:
    """Yield the tables of a Markdown page as rows by column."""
    header, rows = list[str](), list[Row]()
    for line in [*text.splitlines(), ""]:
        if not line.startswith("|"):
            if rows:
                yield rows
            header, rows = [], []
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not header:
            header = cells
        elif not cells[0].startswith("---"):
            rows.append(dict(zip(header, cells, strict=False)))


def with_columns(page: str, *columns: str) -> list[Row]:
    """Return the table with these columns."""
    return next(rows for rows in tables(page) if set(columns) <= rows[0].keys())


class Panel:
    """A diagram with linear or logarithmic axes, as parts of an SVG."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], *, log: bool, offset: int) -> None:
        self.x, self.y, self.log, self.offset = x, y, log, offset
        self.parts = list[str]()

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return the position of a point in pixels."""
        scale = math.log if self.log else float
        across = (scale(x) - scale(self.x[0])) / (scale(self.x[1]) - scale(self.x[0]))
        up = (min(y, self.y[1]) - self.y[0]) / (self.y[1] - self.y[0])
        left = self.offset + LEFT
        return left + across * (WIDTH - LEFT - 12), TOP + (1 - up) * (HEIGHT - TOP - BOTTOM)

    def line(self, a: tuple[float, float], b: tuple[float, float], color: str = "#ccc", dash: str = "") -> None:
        """Add a line between two points."""
        (x1, y1), (x2, y2) = self.at(*a), self.at(*b)
        style = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}"{style}/>')

    def dot(self, x: float, y: float, color: str, shift: float, title: str) -> None:
        """Add a point, moved by some pixels to the right."""
        px, py = self.at(x, y)
        self.parts.append(
            f'<circle cx="{px + shift:.1f}" cy="{py:.1f}" r="3" fill="{color}" fill-opacity=".6">'
            f"<title>{title}</title></circle>"
        )

    def text(self, x: float, y: float, words: str, anchor: str = "middle", color: str = GRAY) -> None:
        """Add a text at a position in pixels, relative to the panel."""
        self.parts.append(
            f'<text x="{self.offset + x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{words}</text>'
        )

    def frame(self, title: str, label: str, ticks: Sequence[float], levels: Sequence[float]) -> None:
        """Add the title, the axes and their labels."""
        self.text(LEFT, 18, title, "start", "#444")
        self.text((WIDTH + LEFT) / 2, HEIGHT - 8, label)
        for level in levels:
            self.line((self.x[0], level), (self.x[1], level), "#e5e5e5")
            self.text(LEFT - 6, self.at(self.x[0], level)[1] + 4, f"{level:g}%", "end")
        for tick in ticks:
            self.text(self.at(tick, self.y[0])[0] - self.offset, HEIGHT - BOTTOM + 18, f"{tick:g}")


def false_claims(rows: Sequence[Row]) -> Panel:
    """Return the panel of false claims on the worse side of each cell."""
    panel = Panel((4.4, 900), (0, 9), log=True, offset=0)
    panel.frame("False claims on one side, every score", "rows or groups", (5, 10, 20, 50, 200, 800), (0, 2.5, 5, 7.5))
    panel.line((4.4, 2.5), (900, 2.5), GRAY, "4 3")
    for row in rows:
        n, ours = float(row["n"]), max(float(row["better"]), float(row["worse"]))
        panel.dot(n, float(row["bootstrap"]), OTHER, 5, f"{row['score']}, n = {row['n']}: {row['bootstrap']}%")
        panel.dot(n, ours, OURS, -5, f"{row['score']}, n = {row['n']}: {ours:g}%")
    panel.text(WIDTH - 12, 34, "fulltune", "end", OURS)
    panel.text(WIDTH - 66, 34, "percentile bootstrap", "end", OTHER)
    return panel


def power(rows: Sequence[Row]) -> Panel:
    """Return the panel of detected gains, against what the test alone detects."""
    panel = Panel((0, 100), (0, 100), log=False, offset=WIDTH)
    panel.frame("True gains that are detected", "% by the test alone", range(0, 101, 20), range(0, 101, 20))
    panel.line((0, 0), (100, 100), GRAY)
    panel.line((3, 0), (100, 97), GRAY, "4 3")
    for row in rows:
        title = f"{row['score']}, n = {row['n']}, gain {row['true gain']}: {row['improved']}%"
        panel.dot(float(row["test alone"]), float(row["improved"]), OURS, 0, title)
    panel.text(WIDTH - 12, 34, "dashed: 3 points fewer", "end")
    return panel


def svg(panels: Sequence[Panel]) -> str:
    """Return a complete SVG."""
    body = "\n".join(part for panel in panels for part in panel.parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH * len(panels)} {HEIGHT}" '
        f'font-family="system-ui, sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="#fff"/>\n'
        f"{body}\n</svg>\n"
    )


if __name__ == "__main__":
    page = (DOCS / "evidence.md").read_text(encoding="utf-8")
    claims = with_columns(page, "better", "worse", "bootstrap")
    gains = with_columns(page, "true gain", "improved", "test alone")
    (DOCS / "evidence.svg").write_text(svg([false_claims(claims), power(gains)]), encoding="utf-8")
