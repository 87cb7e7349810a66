"""Intervals and tests for scores that are 0 or 1 on every row: Wilson, Tango, and the exact McNemar test."""

from __future__ import annotations

import math

from fulltune.metrics.distributions import binomial_below, crossing, poisson_mean, two_sided_z

#: Numbers of hits, or of misses, that are few enough for the Poisson limit.
_FEW = 3


def wilson(hits: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Return the score interval of a fraction (Wilson 1927, "Probable inference, the law of succession").

    Unlike the interval of the bootstrap it has a width if no row or every row is right. It covers too seldom if the
    true fraction is close to 0 or 1; for up to three hits or misses, the limit on that side is therefore that of a
    Poisson distribution (Brown, Cai & DasGupta 2001, "Interval estimation for a binomial proportion", section 4.1.1).

    Args:
        hits: Number of rows that are right.
        n: Number of rows; an effective number need not be whole.
        confidence: Confidence level.
    """
    z2 = two_sided_z(confidence) ** 2
    value = hits / n
    center = (value + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (value * (1 - value) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    low, high = center - half, center + half
    if 1 <= hits <= _FEW:
        low = min(low, poisson_mean(round(hits), 1 - confidence) / n)
    if 1 <= n - hits <= _FEW:
        high = max(high, 1 - poisson_mean(round(n - hits), 1 - confidence) / n)
    # Rounding must not move a limit past the value itself.
    return max(0.0, min(low, value)), min(1.0, max(high, value))


def mcnemar(wins: int, losses: int) -> float:
    """Return the two-sided p-value of the exact McNemar test (McNemar 1947), a sign test of the rows that differ.

    Args:
        wins: Rows that only the first system has right.
        losses: Rows that only the second has right.
    """
    return min(1.0, 2 * binomial_below(min(wins, losses), wins + losses))


def tango(wins: int, losses: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the score interval of the difference of two paired fractions, ``(wins - losses) / n``.

    These are the differences that the score test of Tango 1998 ("Equivalence test and confidence interval for the
    difference in proportions for the paired-sample design", Statistics in Medicine 17) does not reject. At a difference
    of 0 it is McNemar's test without continuity correction, so that the exact test never finds what the interval
    does not. Fagerland, Lydersen & Laake 2014 ("Recommended tests and confidence intervals for paired binomial
    proportions") recommend it.

    Args:
        wins, losses: As in :func:`mcnemar`.
        n: Number of rows, those on which the systems agree included.
        confidence: Confidence level.
    """
    z, difference = two_sided_z(confidence), (wins - losses) / n
    low = crossing(lambda delta: tango_z(wins, losses, n, delta) < z, -1.0, difference)
    high = crossing(lambda delta: tango_z(wins, losses, n, delta) < -z, difference, 1.0)
    return (-1.0 if losses == n else low), (1.0 if wins == n else high)


def tango_z(wins: int, losses: int, n: int, delta: float) -> float:
    """Return the score statistic of the hypothesis that the difference is ``delta``; standard normal if it is true."""
    gap = wins - losses - n * delta
    b = -wins - losses + (2 * n - wins + losses) * delta
    c = -losses * delta * (1 - delta)
    losing = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)  # its probability if the difference is delta
    variance = n * (2 * losing + delta * (1 - delta))
    if variance <= 0:
        return 0.0 if abs(gap) < 1e-9 else math.copysign(math.inf, gap)
    return gap / math.sqrt(variance)
