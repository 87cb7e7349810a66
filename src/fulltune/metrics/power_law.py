"""Extrapolate to more data: fit errors by number of rows with a power law, e(n) = a n^-b, up to one doubling.

Errors of many learners follow such a law over a wide range of sizes (Hestness et al. 2017, "Deep Learning Scaling is
Predictable, Empirically"). The law has no irreducible error: a handful of sizes cannot separate it from the slope, and
over one doubling it matters little. Near an irreducible error the prediction is too optimistic; the last points then
lie above the line, which widens the interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fulltune.metrics.base import Array
from fulltune.metrics.resampling import Interval

#: Fewest sizes for a fit: with two parameters, fewer sizes leave no residual to judge it by.
SIZES = 3


@dataclass(frozen=True)
class Doubling:
    """The fitted law and its prediction for twice the rows.

    Attributes:
        scale: ``a``.
        exponent: ``b``; above 0, more rows help.
        gain: Predicted decrease of the error from the largest size to twice that size.
        low, high: Interval of the gain.
    """

    scale: float
    exponent: float
    gain: float
    low: float
    high: float


def doubling(rows: Sequence[int], errors: Sequence[float], of_rows: Interval, confidence: float) -> Doubling | None:
    """Fit the law by least squares on logarithms.

    There are two sources of error: other evaluation rows, and other training rows and seeds. The interval over
    evaluation rows covers the first, the residuals of the fit the second (Student's t for the slope, k − 2 degrees of
    freedom). On each side, the wider of the two intervals is used.

    Args:
        rows: ``k`` sizes, increasing.
        errors: Error at each size, above 0.
        of_rows: Interval of the gain (:func:`gain_of_doubling`) over evaluation rows; NaN limits leave it open.
        confidence: Confidence level of the interval, e.g. 0.95.

    Returns:
        The prediction, or None with fewer than :data:`SIZES` sizes, or if an error is 0 or not a number.
    """
    if len(rows) < SIZES or not all(error > 0 and math.isfinite(error) for error in errors):
        return None
    from scipy.stats import linregress, t

    x = np.log(np.asarray(rows, dtype=np.float64))
    line = linregress(x, np.log(errors))
    reach = t.ppf((1 + confidence) / 2, len(rows) - 2) * line.stderr
    at_last = math.exp(line.intercept + line.slope * x[-1])
    gains = [at_last * (1 - 2.0**slope) for slope in (line.slope, line.slope + reach, line.slope - reach)]
    low, high = of_rows(confidence)
    return Doubling(
        scale=math.exp(line.intercept),
        exponent=-float(line.slope),
        gain=float(gains[0]),
        low=-math.inf if math.isnan(low) else float(min(gains[1], low)),
        high=math.inf if math.isnan(high) else float(max(gains[2], high)),
    )


def gain_of_doubling(rows: Sequence[int], errors: Array) -> Array:
    """Return the gain that laws fitted to errors ``(..., k)`` predict, ``(...)``; NaN if an error is not above 0."""
    x = np.log(np.asarray(rows, dtype=np.float64))
    centered = x - x.mean()
    with np.errstate(invalid="ignore", divide="ignore"):
        y = np.where(errors > 0, np.log(errors), np.nan)
    slopes = y @ centered / (centered @ centered)
    return np.asarray(np.exp(y.mean(axis=-1) + slopes * centered[-1]) * (1 - 2.0**slopes))
