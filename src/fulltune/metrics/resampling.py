"""Intervals and tests for every metric that is a function of sums: bootstrap, jackknife, and the swapping of systems.

The units that are resampled, left out and swapped are rows, or complete groups of rows: a group counts as one row whose
vector is the sum of its rows' (Cameron & Miller 2015, "A practitioner's guide to cluster-robust inference").

Limits are the outer ones of two intervals, because neither covers in all cases (docs/evidence.md):

- the jackknife's standard error with a quantile of Student's t (Efron & Stein 1981), which is exact for normal
  differences, and too short on one side for skewed ones;
- the bias-corrected and accelerated bootstrap (Efron 1987), with its levels expanded for few units (Hesterberg 2015,
  "What teachers should know about the bootstrap"), which is too short if some units weigh far more than others.

The second interval alone decides whether 0 is excluded if a test of its own rejects 0, as for the difference of two
systems. Requiring the jackknife's limit too would only cost power: units of very different weights, which its quantile
is for, are no problem of a test that swaps them. The second one cannot be left out: it protects against skewed
differences, which such a test takes for differences of 0.

The studentized bootstrap covers too, but is up to a third wider on few rows of very different lengths.

:class:`scipy.stats.bootstrap` needs the rows and calls the statistic on every resample of them; with a matrix of sums
all resamples are one product, which is some hundred times faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from fulltune.metrics.base import Array
from fulltune.metrics.distributions import two_sided_t, two_sided_z, z_below, z_quantile

#: Maximum size in bytes of the weights of one chunk of resamples.
_BUDGET = 4 * 2**20

#: All swaps are enumerated for at most this many units that differ; else :data:`SWAPS` are drawn.
ENUMERATED = 14
SWAPS = 10_000

#: Differences that rounding may cause, as a fraction of what is subtracted.
_ROUNDING = 1e-12

#: Function from a confidence level to an interval.
Interval = Callable[[float], tuple[float, float]]

#: Function from sums ``(..., k)`` to values ``(...)``.
Value = Callable[[Array], Array]


def grouped(rows: Array, groups: NDArray[np.intp]) -> Array:
    """Return the sums of each group, ``(groups, k)``, of rows ``(n, k)`` with the numbers of their groups ``(n,)``."""
    sums = np.zeros((int(groups.max()) + 1 if len(groups) else 0, rows.shape[1]))
    np.add.at(sums, groups, rows)
    return sums


# ---- Test ----


def swap_test(a: Array, b: Array, value: Value, *, seed: int = 17) -> tuple[float, int]:
    """Return the two-sided p-value of two systems under swaps of their answers, unit by unit.

    If the systems are equally good in the sense that it does not matter which of them gave which answer, every swap is
    equally likely. For a mean this is the sign-flip test (Fisher 1935, section 21; Pitman 1937), for other scores
    approximate randomization (Noreen 1989; Yeh 2000, "More accurate tests for the statistical significance of result
    differences"). With up to :data:`ENUMERATED` units that differ all swaps are made and p is exact; else
    :data:`SWAPS` are drawn, and one is added to both counts (Phipson & Smyth 2010).

    Args:
        a, b: Vectors of the units of both systems, ``(n, k)``.
        value: The metric.
        seed: Seed of the draws.

    Returns:
        The p-value (NaN if the difference is undefined), and the number of swaps if all were made, else 0.
    """
    differ = (a != b).any(axis=1)
    total, gaps = (a + b).sum(axis=0), (a - b)[differ]

    def difference(swapped: Array) -> Array:
        with np.errstate(invalid="ignore"):  # inf - inf, if both are infinite
            return np.asarray(value((total + swapped) / 2) - value((total - swapped) / 2))

    observed = abs(float(difference(gaps.sum(axis=0))))
    if math.isnan(observed):
        return math.nan, 0
    before, after = (abs(float(value(units.sum(axis=0)))) for units in (a, b))
    limit = observed - _ROUNDING * max(before, after)
    if len(gaps) <= ENUMERATED:
        found = np.abs(difference(_all_signs(len(gaps)) @ gaps))
        return float(np.mean(found >= limit)), 2 ** len(gaps)
    random = np.random.default_rng(seed)
    extreme = sum(
        int((np.abs(difference(signs @ gaps)) >= limit).sum()) for signs in _drawn_signs(len(gaps), SWAPS, random)
    )
    return (extreme + 1) / (SWAPS + 1), 0


def _all_signs(n: int) -> Array:
    """Return all signs of ``n`` units with a positive first one, ``(2^(n-1), n)``; the others mirror these."""
    if n == 0:
        return np.zeros((1, 0))
    bits = np.arange(2 ** (n - 1))[:, None] >> np.arange(n) & 1
    return np.asarray(1.0 - 2.0 * bits, dtype=np.float64)


def _drawn_signs(n: int, count: int, random: np.random.Generator) -> Iterator[Array]:
    for size in _chunks(count, n):
        yield 2.0 * random.integers(2, size=(size, n), dtype=np.int8).astype(np.float64) - 1.0


# ---- Intervals ----


def interval_of(units: Array, value: Value, *, resamples: int, seed: int, p: float = math.nan) -> Interval:
    """Return the interval of a function of sums, which is itself a function of the confidence level; see the module.

    Args:
        units: Vectors of the units, ``(n, k)``; at least two.
        value: Function from sums to values.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resamples.
        p: P-value of a test that the true value is 0; NaN if there is none.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        if not math.isfinite(float(value(units.sum(axis=0)))):
            return lambda confidence: (math.nan, math.nan)
    jackknife, bootstrap = _jackknife_t(units, value), _bca(units, value, resamples, seed)

    def interval(confidence: float) -> tuple[float, float]:
        inner = bootstrap(confidence)
        lows, highs = zip(jackknife(confidence), inner, strict=True)
        low, high = float(np.min(lows)), float(np.max(highs))
        if p <= 1 - confidence:
            low = inner[0] if low <= 0 < inner[0] else low
            high = inner[1] if inner[1] < 0 <= high else high
        return low, high

    return interval


def standard_error(units: Array, value: Value) -> float:
    """Return the jackknife's standard error (Efron & Stein 1981); NaN with fewer than two units or infinite ones."""
    n = len(units)
    if n < 2 or not np.isfinite(units).all():
        return math.nan
    deviations = _left_out(units, value)
    largest = float(np.abs(deviations).max())
    if not 0 < largest < math.inf:
        return largest
    return largest * math.sqrt((n - 1) / n * float(((deviations / largest) ** 2).sum()))


def _left_out(units: Array, value: Value) -> Array:
    """Return the values without each unit, minus their mean, ``(n,)``; 0 where a value is undefined."""
    values = value(units.sum(axis=0) - units)
    defined = np.isfinite(values)
    return np.where(defined, values - values[defined].mean(), 0.0) if defined.any() else np.zeros(len(units))


def _jackknife_t(units: Array, value: Value) -> Interval:
    middle, error = float(value(units.sum(axis=0))), standard_error(units, value)

    def interval(confidence: float) -> tuple[float, float]:
        half = two_sided_t(confidence, len(units) - 1) * error
        return middle - half, middle + half

    return interval


def _bca(units: Array, value: Value, resamples: int, seed: int, *, expanded: bool = True) -> Interval:
    """Return the bias-corrected and accelerated interval; observed values only, so that infinities are kept apart."""
    n, middle = len(units), float(value(units.sum(axis=0)))
    (sums,) = resampled((units,), resamples, seed)
    with np.errstate(invalid="ignore"):
        draws = value(sums)
    draws = np.sort(draws[~np.isnan(draws)])
    acceleration = _acceleration(-_left_out(units, value))
    below = _fraction_below(draws, middle)

    def interval(confidence: float) -> tuple[float, float]:
        if not len(draws) or math.isnan(middle):
            return math.nan, math.nan
        z = two_sided_z(confidence)
        if expanded:
            z = math.sqrt(n / (n - 1)) * two_sided_t(confidence, n - 1)
        levels = [_bca_level(below, acceleration, end) for end in (-z, z)]
        low, high = np.quantile(draws, levels, method="inverted_cdf")
        return float(low), float(high)

    return interval


def _acceleration(deviations: Array) -> float:
    """Return a sixth of the skewness of the jackknife's deviations (Efron 1987); 0 if they do not vary."""
    largest = float(np.abs(deviations).max())
    if not 0 < largest < math.inf:
        return 0.0
    scaled = deviations / largest  # powers of values of any size neither overflow nor vanish
    return float((scaled**3).sum() / (6 * (scaled**2).sum() ** 1.5))


def _fraction_below(draws: Array, middle: float) -> float:
    """Return the fraction of draws below a value; equal ones count half, and it is never 0 or 1."""
    if not len(draws):
        return 0.5
    near = _ROUNDING * float(np.abs(draws[np.isfinite(draws)]).max(initial=abs(middle)))
    below, equal = (draws < middle - near).sum(), (np.abs(draws - middle) <= near).sum()
    return float(np.clip((below + 0.5 * equal) / len(draws), 1 / len(draws), 1 - 1 / len(draws)))


def _bca_level(below: float, acceleration: float, z: float) -> float:
    bias = z_quantile(below)
    room = 1 - acceleration * (bias + z)
    if room <= 0:
        return 0.0 if z < 0 else 1.0
    return z_below(bias + (bias + z) / room)


# ---- Draws ----


def resampled(tables: Sequence[Array], resamples: int, seed: int) -> list[Array]:
    """Return sums of resampled units, ``(resamples, k)`` for each table ``(n, k)``, all under the same draws.

    Weights are created for as many resamples at a time as fit into :data:`_BUDGET`; the result does not depend on it.
    """
    n = len(tables[0])
    if n == 0:
        return [np.full((resamples, table.shape[1]), np.nan) for table in tables]
    with np.errstate(invalid="ignore"):  # 0 times infinity: an infinite row leaves no interval
        parts = [[weights @ table for table in tables] for weights in _weights(n, resamples, seed)]
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def _weights(n: int, resamples: int, seed: int) -> Iterator[Array]:
    """Yield how often each of ``n`` units is drawn, ``(chunk, n)``."""
    random = np.random.default_rng(seed)
    for size in _chunks(resamples, n):
        drawn = random.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(float)


def _chunks(count: int, width: int) -> Iterator[int]:
    size = max(1, min(count, _BUDGET // (8 * max(1, width))))
    for start in range(0, count, size):
        yield min(size, count - start)
