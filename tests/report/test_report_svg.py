from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulltune.metrics.wording import metric_label
from fulltune.report import display, svg

finite = st.floats(-1e6, 1e6, allow_subnormal=False)


@pytest.mark.parametrize(
    ("value", "digits", "expected"),
    [(0.9034, 3, "0.903"), (1520.04, 1, "1,520.0"), (-0.5, 3, "−0.500"), (-0.0001, 3, "0.000"), (math.nan, 3, "NaN")],
)
def test_numbers(value: float, digits: int, expected: str) -> None:
    assert display.number(value, digits) == expected


def test_infinity_has_its_sign() -> None:
    assert display.number(math.inf) == "∞"
    assert display.number(-math.inf) == "−∞"


@pytest.mark.parametrize(
    ("values", "digits"),
    [([0.9, 0.05], 3), ([1520.0, 12.34], 2), ([141.0], 1), ([2500.0], 0), ([math.nan, 0.0], 3), ([], 3), ([4.5], 3)],
)
def test_a_column_has_a_uniform_number_of_decimals(values: list[float], digits: int) -> None:
    assert display.decimals(values) == digits


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0214, "+0.021"), (-0.0214, "−0.021"), (0.0, "0.000"), (0.00012, "+1.2e−4"), (math.nan, "NaN")],
)
def test_differences_are_signed_and_small_ones_are_not_zero(value: float, expected: str) -> None:
    assert display.difference(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3e-5, "3e-5"),
        (1.25e-5, "1.25e-5"),
        (0.0, "0"),
        (5627.7, "5,628"),
        (0.256, "0.256"),
        (2.5e9, "2.5e9"),
        (math.nan, "NaN"),
    ],
)
def test_compact_numbers(value: float, expected: str) -> None:
    assert display.compact(value) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.41, "0.41 s"), (2.13, "2.1 s"), (75, "1 min 15 s"), (3700, "1 h 1 min"), (math.nan, "NaN")],
)
def test_durations(seconds: float, expected: str) -> None:
    assert display.duration(seconds) == expected


@pytest.mark.parametrize(
    ("size", "expected"), [(999, "999 bytes"), (5.7e9, "5.7 GB"), (1.5e13, "15 TB"), (0, "0 bytes")]
)
def test_sizes(size: float, expected: str) -> None:
    assert display.size(size) == expected


@pytest.mark.parametrize(
    ("part", "expected"),
    [(1.0, "100%"), (0.99999, "99.9%"), (0.0, "0%"), (0.00001, "0.1%"), (0.452, "45.2%"), (math.nan, "NaN")],
)
def test_only_exactly_all_is_shown_as_100_percent(part: float, expected: str) -> None:
    assert display.percentage(part) == expected


def test_p_values() -> None:
    assert [display.p_value(p) for p in (0.0, 0.0424, math.nan)] == ["p < 0.001", "p = 0.042", "p = NaN"]


def test_names_of_metrics_and_systems() -> None:
    assert [metric_label(name) for name in ("rougeLsum", "bits_per_byte", "macro_f1", "chrf")] == [
        "ROUGE-Lsum",
        "Bits per byte",
        "Macro-F1",
        "chrF",
    ]
    assert display.in_order(["tuned", "zzz", "tfidf", "aaa"]) == ["tfidf", "tuned", "aaa", "zzz"]


@given(finite, finite, st.integers(2, 6))
def test_ticks_lie_on_the_axis_and_are_few(a: float, b: float, wanted: int) -> None:
    axis = svg.axis_over([a, b])
    assert axis is not None
    ticks = axis.ticks(wanted)

    assert len(ticks) <= 2 * wanted + 2
    assert all(-1e-6 <= axis.at(tick) <= 1 + 1e-6 for tick in ticks)
    assert 0 <= axis.at(a) <= 1


@given(st.lists(st.one_of(finite, st.just(math.nan)), min_size=1, max_size=2000))
def test_thinning_keeps_extremes_order_and_gaps(values: list[float]) -> None:
    points = [(float(step), value) for step, value in enumerate(values)]
    kept = svg.thin(points)
    known = [value for value in values if math.isfinite(value)]
    seen = [value for _, value in kept if math.isfinite(value)]

    assert len(kept) <= svg.POINTS * 1.5 + 3
    assert [step for step, _ in kept] == sorted(step for step, _ in kept)
    assert (min(seen), max(seen)) == (min(known), max(known)) if known else not seen
    assert any(map(math.isnan, values)) == any(math.isnan(value) for _, value in kept)


@given(
    st.lists(st.one_of(finite, st.sampled_from([0.0, math.nan, math.inf])), min_size=1, max_size=12),
    st.sampled_from([0, 1]),
)
def test_charts_are_valid_xml_without_nan_in_coordinates(values: list[float], width: int) -> None:
    rows = [
        svg.Bar(f"<{i}>", value, value - width, value + width, "words", strong=i == 0) for i, value in enumerate(values)
    ]
    curve = svg.Line("loss", [(float(i), value) for i, value in enumerate(values)])

    for drawn in (svg.forest("a & b", rows), svg.bars("a & b", rows), svg.lines("a & b", "", [curve])):
        if drawn:
            root = ElementTree.fromstring(str(drawn))
            places = " ".join(
                value
                for item in root.iter()
                for key, value in item.attrib.items()
                if key not in ("class", "aria-label")
            )
            assert not re.search(r"nan|inf", places)


def test_a_steep_curve_of_positive_values_gets_a_logarithmic_axis() -> None:
    drawn = svg.lines("norm", "", [svg.Line("norm", [(1, 0.01), (2, 1.0), (3, 100.0), (4, 10000.0)])])

    assert [svg.compact(tick) for tick in svg.Axis(0.01, 10000, log=True).ticks(6)] == [
        "0.01",
        "0.1",
        "1",
        "10",
        "100",
        "1,000",
        "10,000",
    ]
    assert "10,000" in drawn


def test_bars_of_zero_have_no_length() -> None:
    drawn = svg.bars("BLEU", [svg.Bar("Tuned", 0.0, 0.0, 0.0, "0.000", strong=True)])

    assert 'width="0.20%"' in drawn
    assert svg.bars("BLEU", [svg.Bar("Tuned", math.nan, math.nan, math.nan, "NaN")]) == ""


def test_a_single_step_is_a_dot() -> None:
    assert svg.lines("loss", "", [svg.Line("loss", [(5, 0.3)])]).count("<circle") == 1


def numbers(drawn: str) -> list[str]:
    return [item.text or "" for item in ElementTree.fromstring(drawn).iter("text")]


def test_no_two_ticks_of_an_axis_have_the_same_number() -> None:
    drawn = svg.lines("loss", "", [svg.Line("loss", [(0, 0.69312), (100, 0.69541)])])

    written = numbers(drawn)
    assert {"0.6935", "0.694", "0.6945"} <= set(written)
    assert len(written) == len(set(written))


def test_ticks_of_steps_are_whole_numbers() -> None:
    drawn = svg.lines("loss", "", [svg.Line("loss", [(0, 10.0), (1, 30.0)])])

    assert numbers(drawn)[-2:] == ["0", "1"]
