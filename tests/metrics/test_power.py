"""What a number of rows can decide, against enumeration and simulation."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from fulltune.metrics import get
from fulltune.metrics.accumulate import Accumulator
from fulltune.metrics.compare import paired
from fulltune.metrics.power import least_rows, rows_needed, smallest_detectable
from fulltune.records.run import Comparison, Prediction


def smallest_p(rows: int) -> float:
    """Return the smallest p-value of the sign-flip test: all rows differ by 1, in the same direction."""
    sums = [abs(sum(signs)) for signs in product((1, -1), repeat=rows)]
    return sum(total >= rows for total in sums) / len(sums)


@pytest.mark.parametrize("confidence", [0.75, 0.9, 0.95, 0.99])
def test_the_least_rows_are_those_of_the_sign_flip_test(confidence: float) -> None:
    by_enumeration = next(rows for rows in range(1, 12) if smallest_p(rows) <= 1 - confidence + 1e-12)
    assert least_rows(confidence) == by_enumeration
    assert least_rows() == 6


def accumulated(nlls: np.ndarray) -> Accumulator:
    found = Accumulator((get("bits_per_byte"),))
    for row, nll in enumerate(nlls):
        values = {"nll": float(nll), "bytes": 1 / math.log(2)}
        found.add(Prediction(system="", id=str(row), input="", reference="", output="", values=values))
    return found


def test_a_paired_comparison_counts_its_rows_and_their_power() -> None:
    random = np.random.default_rng(3)
    before = random.normal(5.0, 1.0, 200)
    after = before - random.normal(0.1, 1.0, 200)
    found = paired(accumulated(after), accumulated(before), "bits_per_byte")
    assert found.n == 200
    spread = (after - before).std() / math.sqrt(200)
    assert found.smallest_detectable == pytest.approx((1.959964 + 0.841621) * spread, rel=0.1)
    needed = rows_needed(found)
    assert needed == math.ceil(200 * (found.smallest_detectable / abs(found.delta)) ** 2)


def test_the_needed_rows_detect_the_difference_in_four_of_five_cases() -> None:
    random = np.random.default_rng(4)
    gain, deviation = 0.2, 1.0
    observed = Comparison(
        metric="m", delta=gain, low=0, high=0, p=1, verdict="no detectable change", n=50,
        smallest_detectable=smallest_detectable(deviation / math.sqrt(50), 0.95),
    )  # fmt: skip
    needed = rows_needed(observed)
    assert needed is not None
    samples = random.normal(gain, deviation, (2000, needed))
    z = samples.mean(axis=1) / (samples.std(axis=1, ddof=1) / math.sqrt(needed))
    assert (np.abs(z) > 1.96).mean() == pytest.approx(0.8, abs=0.04)


@pytest.mark.parametrize("rows", [1, 4, 5, 6])
def test_no_difference_is_detected_on_too_few_rows(rows: int) -> None:
    before, after = np.full(rows, 6.9), np.full(rows, 3.0)
    found = paired(accumulated(after), accumulated(before), "bits_per_byte")
    assert found.verdict == ("improved" if rows >= 6 else "too few rows")
    assert rows_needed(found) == (6 if rows > 1 else None)


def test_no_rows_are_needed_for_no_difference() -> None:
    nan = math.nan
    same = paired(accumulated(np.ones(9)), accumulated(np.ones(9)), "bits_per_byte")
    assert rows_needed(same) is None
    assert math.isnan(smallest_detectable(math.inf, 0.95))
    assert math.isnan(smallest_detectable(math.nan, 0.95))
    assert rows_needed(Comparison(metric="m", delta=nan, low=nan, high=nan, p=nan, verdict="too few rows")) is None
