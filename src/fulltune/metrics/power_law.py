"""What more data would bring: errors over rows as a power law, e(n) = a n^-b, and one doubling beyond the last of them.

Errors of many learners fall so over a wide range of sizes (Hestness et al. 2017, "Deep Learning Scaling is Predictable,
Empirically"). A floor that no data removes is left out: a handful of sizes cannot tell it from the slope, and over one
doubling it matters little. Near such a floor the answer is too hopeful, and the last points then lie above the line,
which widens the interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fulltune.metrics.base import Array

#: Two numbers are fitted; fewer sizes than this leave nothing to judge the fit by.
SIZES = 3


@dataclass(frozen=True)
class Doubling:
    """The fitted law and what it says of twice the rows.

    Attributes:
        scale: ``a``.
        exponent: ``b``; above 0 more rows help.
        gain: How much the error falls from the law's value at the last size to that at twice it.
        low, high: Its interval.
    """

    scale: float
    exponent: float
    gain: float
    low: float
    high: float


def doubling(rows: Sequence[int], errors: Sequence[float], resampled: Array, confidence: float) -> Doubling | None:
    """Fit the law by least squares in logarithms.

    There are two reasons to be wrong: other evaluation rows, and other training rows and seeds. The bootstrap knows the
    first, the scatter of the points about the line the second (Student's t for the slope, k − 2 degrees of freedom);
    the interval is the wider of the two on each side.

    Args:
        rows: ``k`` sizes, rising.
        errors: The error at each, above 0.
        resampled: ``(k, resamples)`` errors of the same models on resampled evaluation rows, under the same draws.
        confidence: Of the interval, e.g. 0.95.

    Returns:
        None where no law can be fitted: fewer than :data:`SIZES` sizes, or an error that is 0 or not a number.
    """
    if len(rows) < SIZES or not all(error > 0 and math.isfinite(error) for error in errors):
        return None
    from scipy.stats import linregress, t

    x = np.log(np.asarray(rows, dtype=np.float64))
    line = linregress(x, np.log(errors))
    reach = t.ppf((1 + confidence) / 2, len(rows) - 2) * line.stderr
    at_last = math.exp(line.intercept + line.slope * x[-1])
    gains = [at_last * (1 - 2.0**slope) for slope in (line.slope, line.slope + reach, line.slope - reach)]
    low, high = _bootstrapped(x, resampled, confidence)
    return Doubling(
        scale=math.exp(line.intercept),
        exponent=-float(line.slope),
        gain=float(gains[0]),
        low=float(min(gains[1], low)),
        high=float(max(gains[2], high)),
    )


def _bootstrapped(x: Array, resampled: Array, confidence: float) -> tuple[float, float]:
    """The gain's percentile interval over resampled rows; a resample without an error somewhere has no law."""
    kept = resampled[:, (resampled > 0).all(axis=0) & np.isfinite(resampled).all(axis=0)]
    if not kept.shape[1]:
        return -math.inf, math.inf
    centered = x - x.mean()
    y = np.log(kept)
    slopes = centered @ y / (centered @ centered)
    gains = np.exp(y.mean(axis=0) + slopes * centered[-1]) * (1 - 2.0**slopes)
    tail = (1 - confidence) / 2
    low, high = np.quantile(gains, [tail, 1 - tail], method="inverted_cdf")
    return float(low), float(high)
