"""Every text of a page has the contrast that WCAG 2.2 asks for (AA: 4.5 to 1), on light and dark pages and on paper."""

from __future__ import annotations

import re

import pytest

from fulltune.report import task
from fulltune.report.page import asset

Color = tuple[float, ...]
AA = 4.5


def themes() -> dict[str, dict[str, str]]:
    """Return the variables of each theme, by the rule that sets them."""
    blocks = re.findall(r":root {(.*?)}", asset("report.css"), re.DOTALL)
    return {
        name: dict(re.findall(r"(--[\w-]+): ([^;]+);", block))
        for name, block in zip(("light", "dark", "print"), blocks, strict=True)
    }


def color(value: str) -> Color:
    if not value.startswith("#"):
        return tuple(float(part) for part in value.split())
    digits = value[1:] if len(value) == 7 else "".join(2 * digit for digit in value[1:])
    return tuple(float(int(digits[i : i + 2], 16)) for i in (0, 2, 4))


def luminance(value: Color) -> float:
    """Return the relative luminance of WCAG 2.2."""
    linear = [part / 255 / 12.92 if part <= 10.31 else ((part / 255 + 0.055) / 1.055) ** 2.4 for part in value]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: Color, two: Color) -> float:
    dark, light = sorted((luminance(one), luminance(two)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark", "print"])
def test_texts_on_pages_and_cards(theme: str) -> None:
    colors = themes()[theme]
    for ground in ("--paper", "--card"):
        for ink in ("--ink", "--soft", "--blue", "--warm", "--teal"):
            assert contrast(color(colors[ground]), color(colors[ink])) >= AA, (ground, ink)


@pytest.mark.parametrize("theme", ["light", "dark", "print"])
def test_counts_on_every_shade_of_the_confusion_matrix(theme: str) -> None:
    colors = themes()[theme]
    paper, shade = color(colors["--paper"]), color(colors["--blue-rgb"])
    for fraction in (step / 200 for step in range(201)):
        classes = task.Heat(1, 1, fraction, True).shade.split()
        ink = "--on-full" if "full" in classes else "--on-bright" if "bright" in classes else "--on-cell"
        ground = tuple(
            0.95 * fraction * top + (1 - 0.95 * fraction) * under for top, under in zip(shade, paper, strict=True)
        )
        assert contrast(ground, color(colors[ink])) >= AA, fraction
