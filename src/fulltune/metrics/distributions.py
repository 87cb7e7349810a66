"""Quantiles and probabilities of the distributions that tests and intervals need.

scipy is imported when one is computed, so that modules with verdicts stay quick to import.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist

_NORMAL = NormalDist()


def z_quantile(probability: float) -> float:
    """Return a quantile of the normal distribution."""
    return _NORMAL.inv_cdf(probability)


def z_below(value: float) -> float:
    """Return the probability of a standard normal value below this one."""
    return _NORMAL.cdf(value)


def two_sided_z(confidence: float) -> float:
    """Return the quantile of a two-sided interval, e.g. 1.96 for 0.95."""
    return z_quantile(0.5 + confidence / 2)


def two_sided_t(confidence: float, freedom: float) -> float:
    """Return the quantile of a two-sided interval by Student's t with these degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.5 + confidence / 2))


def two_sided_t_p(t: float, freedom: float) -> float:
    """Return the two-sided p-value of a t statistic."""
    from scipy.special import stdtr

    return 2 * float(stdtr(freedom, -abs(t)))


def binomial_below(successes: int, n: int) -> float:
    """Return the probability of at most this many successes in ``n`` throws of a fair coin."""
    from scipy.special import bdtr

    return float(bdtr(successes, n, 0.5))


def poisson_mean(events: int, probability: float) -> float:
    """Return the Poisson mean at which this many events, or more, have a probability."""
    from scipy.special import gammaincinv

    return float(gammaincinv(events, probability))


def crossing(is_beyond: Callable[[float], bool], low: float, high: float) -> float:
    """Return where a condition turns from False at ``low`` to True at ``high``, by bisection to 1e-9 of the range."""
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if is_beyond(middle) else (middle, high)
    return (low + high) / 2
