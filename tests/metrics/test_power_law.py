from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import curve_fit

from fulltune.metrics.power_law import doubling, gain_of_doubling
from fulltune.metrics.resampling import Interval

ROWS = (25, 50, 100, 200)


def still(errors: list[float], spread: float = 0.0, seed: int = 0) -> Interval:
    """Return the interval of the gain whose errors vary by so much over evaluation rows."""
    noise = np.random.default_rng(seed).normal(0, spread, (400, len(errors)))
    gains = gain_of_doubling(ROWS[: len(errors)], np.asarray(errors) * np.exp(noise))
    return lambda confidence: (float(np.quantile(gains, 0.025)), float(np.quantile(gains, 0.975)))


@given(scale=st.floats(0.1, 9), exponent=st.floats(0.05, 1.0))
def test_an_exact_law_is_fitted_and_extrapolated(scale: float, exponent: float) -> None:
    errors = [scale * n**-exponent for n in ROWS]
    law = doubling(ROWS, errors, still(errors), 0.95)
    assert law is not None
    assert (law.scale, law.exponent) == pytest.approx((scale, exponent))
    gain = scale * 200**-exponent - scale * 400**-exponent
    assert (law.gain, law.low, law.high) == pytest.approx((gain, gain, gain), rel=1e-4)
    assert float(gain_of_doubling(ROWS, np.array(errors))) == pytest.approx(gain)
    assert np.isnan(gain_of_doubling(ROWS, np.array([[0.5, 0.4, 0.3, 0.0]]))).all()


def test_the_fit_is_scipys_in_log_space() -> None:
    errors = [0.5, 0.42, 0.28, 0.25]
    law = doubling(ROWS, errors, still(errors), 0.95)
    assert law is not None
    found, covariance = curve_fit(lambda x, a, b: a - b * x, np.log(ROWS), np.log(errors))
    assert law.exponent == pytest.approx(found[1], rel=1e-5)
    at_last = math.exp(found[0]) * 200 ** -found[1]
    reach = 4.302652729911275 * math.sqrt(covariance[1, 1])  # Student's t, 2 degrees of freedom, 0.975
    assert law.low == pytest.approx(at_last * (1 - 2 ** -(found[1] - reach)), rel=1e-4)
    assert law.high == pytest.approx(at_last * (1 - 2 ** -(found[1] + reach)), rel=1e-4)


def test_noisy_evaluation_rows_widen_the_interval() -> None:
    errors = [0.8 * n**-0.3 for n in ROWS]
    sure, unsure = (doubling(ROWS, errors, still(errors, spread), 0.95) for spread in (0.001, 0.3))
    assert sure is not None
    assert unsure is not None
    assert sure.low > 0
    assert unsure.low < 0 < unsure.high


def test_a_plateau_is_no_gain() -> None:
    errors = [0.31, 0.3, 0.305, 0.302]
    law = doubling(ROWS, errors, still(errors), 0.95)
    assert law is not None
    assert law.low < 0 < law.high


@pytest.mark.parametrize(
    ("rows", "errors"),
    [((50, 100), [0.5, 0.4]), (ROWS, [0.5, 0.4, 0.1, 0.0]), (ROWS, [0.5, math.nan, 0.2, 0.1])],
    ids=["two sizes", "no error left", "not a number"],
)
def test_no_law_is_fitted_without_evidence(rows: tuple[int, ...], errors: list[float]) -> None:
    assert doubling(rows, errors, still(errors), 0.95) is None


def test_resamples_without_any_error_leave_everything_open() -> None:
    errors = [0.5, 0.4, 0.3, 0.2]
    law = doubling(ROWS, errors, lambda confidence: (math.nan, math.nan), 0.95)
    assert law is not None
    assert (law.low, law.high) == (-math.inf, math.inf)


def test_the_interval_has_about_its_nominal_coverage() -> None:
    random = np.random.default_rng(0)
    hits = 0
    tries = 300
    truth = 0.9 * 200**-0.4 * (1 - 2**-0.4)
    for _ in range(tries):
        errors = [0.9 * n**-0.4 * math.exp(random.normal(0, 0.05)) for n in ROWS]
        law = doubling(ROWS, errors, still(errors), 0.95)
        assert law is not None
        hits += law.low <= truth <= law.high
    assert hits / tries > 0.9
