"""Compute what a number of rows can decide: the fewest rows, the smallest detectable difference, the rows needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

from fulltune.records.run import Comparison

#: Probability of detecting a difference that is called detectable (Cohen 1988, "Statistical Power Analysis").
POWER = 0.8


def least_rows(confidence: float = 0.95) -> int:
    """Return the smallest number of rows on which a paired two-sided test can detect any difference.

    If two systems are equally good, the difference of every row is as likely with the other sign, so that the
    sign-flip test (Fisher 1935, "The Design of Experiments", section 21) has ``2^n`` equally likely results. Its
    smallest two-sided p-value is ``2 / 2^n``, reached if all rows favor the same system: 0.0625 for five rows, 0.031
    for six. Below six rows no result whatever is significant at 95%.
    """
    return 1 + math.ceil(-math.log2(1 - confidence))


def smallest_detectable(error: float, confidence: float) -> float:
    """Return the smallest difference that as many rows detect with a probability of :data:`POWER`.

    This is ``(z(1 - α/2) + z(power)) · SE`` for a test at level ``α = 1 - confidence`` (Cohen 1988); NaN if the
    standard error is not finite.
    """
    z = NormalDist().inv_cdf
    return (z(0.5 + confidence / 2) + z(POWER)) * error if math.isfinite(error) else math.nan


def expected_detectable(rows: int, confidence: float, spread: float, groups: Sequence[int] = ()) -> float:
    """Return the smallest difference that rows will detect with a probability of :data:`POWER`, before any is scored.

    If the rows of a group change together, the variance of the mean is ``spread² · Σ sizes² / rows²`` (Kish 1965,
    "Survey Sampling", section 5.4, for an intraclass correlation of one).

    Args:
        rows: Number of rows; NaN is returned for fewer than :func:`least_rows`.
        confidence: Confidence level of the test.
        spread: Standard deviation of the difference of single rows. For a metric that is 0 or 1 on a row it is at most
            the square root of the fraction of rows that change (their variance is that fraction minus the difference
            squared).
        groups: Sizes of groups whose rows change together; NaN is returned for fewer than :func:`least_rows`. Empty if
            every row is independent.
    """
    if (len(groups) or rows) < least_rows(confidence):
        return math.nan
    sizes = groups or (1,) * rows
    return smallest_detectable(spread * math.hypot(*sizes) / sum(sizes), confidence)


def rows_needed(comparison: Comparison, confidence: float = 0.95) -> int | None:
    """Return the number of rows on which the observed difference would be detected with a probability of :data:`POWER`.

    The standard error falls with the square root of the rows, so the rows grow with the square of
    ``smallest_detectable / |delta|``. None if there is no difference, or if it is not finite.
    """
    detectable, delta = comparison.smallest_detectable, abs(comparison.delta)
    if not (math.isfinite(detectable) and 0 < delta < math.inf):
        return None
    return max(least_rows(confidence), math.ceil(comparison.n * (detectable / delta) ** 2))
