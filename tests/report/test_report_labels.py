"""The words of charts: wrapped without loss, and placed so that none covers another."""

from __future__ import annotations

import itertools
import random
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulltune.report import labels, svg

AREA = labels.Box(0, 0, labels.NARROW, 168)
FAMILY = "👩‍👩‍👧‍👦"
LONG = "Post-termination services and transition: obligations of both parties towards their subcontractors"


@given(st.lists(st.sampled_from(["a", "ж", "漢", " ", "-", "m", "e\u0301", FAMILY]), max_size=120))
def test_wrapped_lines_are_narrow_and_lose_nothing(letters: list[str]) -> None:
    text = "".join(letters)
    lines = labels.wrap(text, 90)

    assert "".join("".join(lines).split()) == "".join(text.split())
    assert all(labels.width(line) <= 90 for line in lines)


def test_wide_letters_and_emoji_count_as_wide() -> None:
    assert labels.width("漢字") > labels.width("ab")
    assert labels.width("e\u0301") == labels.width("e")
    assert labels.width(FAMILY) < labels.width("漢字")


def boxes(points: list[tuple[float, float]], names: list[str]) -> list[labels.Box]:
    """Return the areas of the labels, computed here from their places."""
    found = []
    for (x, y), name, placed in zip(points, names, labels.place(points, names, AREA), strict=True):
        left = x + placed.dx - (labels.width(name) if placed.anchor == "end" else 0)
        found.append(labels.Box(left, y + placed.dy - 10, left + labels.width(name), y + placed.dy + 3))
    return found


@pytest.mark.parametrize("seed", range(12))
def test_labels_of_close_points_do_not_touch(seed: int) -> None:
    draw = random.Random(seed)
    names = ["full", "lora", "qlora", "bitfit", "linear-probe", "prompt-tuning"]
    points = [(100 + draw.uniform(0, 60), 70 + draw.uniform(0, 30)) for _ in names]

    for one, two in itertools.combinations(boxes(points, names), 2):
        assert not one.overlaps(two)


def test_labels_keep_off_lines_and_whiskers() -> None:
    line = [(20.0, 150.0), (60.0, 100.0), (140.0, 60.0), (280.0, 40.0)]
    obstacles = labels.along(line)
    places = labels.place(line, ["one", "two", "three", "four"], AREA, obstacles)
    for (x, y), name, placed in zip(line, ("one", "two", "three", "four"), places, strict=True):
        left = x + placed.dx - (labels.width(name) if placed.anchor == "end" else 0)
        box = labels.Box(left, y + placed.dy - 10, left + labels.width(name), y + placed.dy + 3)
        assert not any(box.overlaps(other) for other in obstacles)


def test_a_label_stays_inside_the_chart() -> None:
    for point in ((2.0, 4.0), (298.0, 4.0), (2.0, 166.0), (298.0, 166.0)):
        [box] = boxes([point], ["linear-probe"])
        assert box.left >= 0
        assert box.right <= labels.NARROW
        assert box.top >= 0
        assert box.bottom <= 168


@pytest.mark.parametrize("draw", [svg.forest, svg.bars], ids=["forest", "bars"])
@pytest.mark.parametrize("count", [2, 60])
def test_rows_with_long_names_are_complete_and_apart(draw: object, count: int) -> None:
    assert callable(draw)
    rows = [svg.Bar(f"{LONG} {index}", 0.5, 0.4, 0.6, "0.500 [0.400, 0.600]") for index in range(count)]
    chart = ElementTree.fromstring(str(draw("scores", rows)))
    texts = [item for item in chart.iter("text") if "halo" in item.attrib["class"]]
    heights = [(float(item.attrib["y"]), item.attrib["x"]) for item in texts]

    assert len(set(heights)) == len(heights)
    assert " ".join(str(item.text) for item in texts if item.attrib["x"] == "0").count(LONG) == count
    assert all(labels.width(str(item.text)) <= labels.NARROW for item in texts)
    assert max(y for y, _ in heights) < float(chart.attrib["height"])


@given(st.floats(1, 1e9), st.integers(2, 9))
def test_numbers_of_an_axis_do_not_touch(size: float, wanted: int) -> None:
    axis = svg.axis_over([0.0, size])
    assert axis is not None
    drawn = ElementTree.fromstring(f"<g>{svg.bottom_axis(axis, 0, 0, wanted)}</g>")
    ends = -1.0
    for item in drawn.iter("text"):
        middle = float(item.attrib["x"].rstrip("%")) / 100 * labels.NARROW
        size = labels.width(str(item.text))
        left = middle - {"start": 0, "middle": size / 2, "end": size}[item.attrib["text-anchor"]]
        assert left > ends
        ends = left + size


def test_labels_of_marked_steps_are_stacked_by_their_width() -> None:
    marks = [svg.Mark(step, "roll back", "") for step in (100, 115, 130, 300)]
    drawn = svg.lines("loss", "", [svg.Line("loss", [(0, 1.0), (300, 0.5)])], marks)
    heights = re.findall(r'class="tick halo"[^>]* y="(\d+)"', drawn)

    assert len(set(heights[:3])) == 3
    assert heights[3] == heights[0]
