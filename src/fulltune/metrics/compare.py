"""Compare systems on the same rows: one test and one interval per kind of score, and one verdict from both.

================================  ===========================================  ========================================
score                             test                                         interval of the difference
================================  ===========================================  ========================================
0 or 1 per row (accuracy)         exact McNemar                                Tango's score interval
mean or ratio (bits per byte)     sign flips, all of them up to 14 rows        BCa bootstrap and jackknife t
of the corpus (macro-F1, BLEU)    approximate randomization                    BCa bootstrap and jackknife t
================================  ===========================================  ========================================

If rows come in groups (``data.group``), complete groups are swapped and resampled, and scores of 0 and 1 are means. The
sources are cited in :mod:`fulltune.metrics.fractions` and :mod:`fulltune.metrics.resampling`; simulated error rates and
coverage are in docs/evidence.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fulltune.metrics import intervals
from fulltune.metrics.accumulate import Accumulator, Rows, aligned
from fulltune.metrics.base import Array, Metric
from fulltune.metrics.distributions import crossing
from fulltune.metrics.fractions import mcnemar
from fulltune.metrics.power import least_rows, smallest_detectable
from fulltune.metrics.resampling import Interval, standard_error, swap_test
from fulltune.records.run import Comparison, Verdict
from fulltune.records.verdict import NotWorse

#: Default of ``evaluation.min_effect``: half a point, or 0.5% of a score without bounds.
MIN_EFFECT = 0.005


def paired(
    a: Accumulator,
    b: Accumulator,
    metric: str | Metric,
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 17,
    min_effect: float = MIN_EFFECT,
) -> Comparison:
    """Compare two systems on the same rows: ``a`` minus ``b``, by the test and the interval of the module's table.

    The verdict is ``improved`` or ``worse`` if the test rejects at level ``1 - confidence``, the interval excludes 0,
    and the difference is at least ``min_effect``. With fewer than :func:`~fulltune.metrics.power.least_rows` rows (or
    groups) it is ``too few rows``. Test and interval are made to agree: see :func:`agreed`.

    Rows are matched by id; a row counts if the metric applies to both systems. Without such rows all numbers are NaN.

    Args:
        a, b: The systems.
        metric: The metric, or its name.
        resamples: Bootstrap resamples.
        confidence: Confidence level of the interval.
        seed: Seed of swaps and resamples.
        min_effect: Smallest difference that counts, see :func:`smallest_that_counts`.

    Raises:
        IncompatibleError: The two were not scored on the same rows.
    """
    return PairedRows.of(a, b, metric, resamples, seed).comparison(confidence, min_effect)


def relative_loss(
    tuned: Accumulator,
    base: Accumulator,
    metric: str | Metric,
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 17,
) -> tuple[float, float, float]:
    """Return the relative loss of ``tuned`` against ``base``, and its interval.

    The loss is a fraction of the base's value; above 0 is worse, whatever the metric's direction. It is NaN if the
    base's value is 0 or either is undefined. Rows are matched as in :func:`paired`.

    Raises:
        IncompatibleError: The two were not scored on the same rows.
    """
    measure = base.metrics[metric if isinstance(metric, str) else metric.name]
    one, two = aligned(tuned, base, measure.name)
    if not one.n:
        return math.nan, math.nan, math.nan
    value = float(intervals.relative_loss(measure, one.units.sum(axis=0), two.units.sum(axis=0)))
    interval = intervals.of_relative_loss(
        measure, one.units, two.units, resamples=resamples, seed=seed, rows=not one.grouped
    )
    return value, *interval(confidence)


def not_worse(
    a: Accumulator,
    b: Accumulator,
    metric: str | Metric,
    margin: float,
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 17,
    artifact: float = 0.0,
) -> NotWorse:
    """Test that ``a`` is not worse than ``b`` by ``margin`` or more.

    The test inverts the interval of the difference (for 0/1 scores it is the equivalence test of Tango 1998). That no
    difference was detected proves nothing of the kind: few rows never detect one. Rows of a bounded score may also fail
    completely, too seldom to occur among so few: the limit leaves room for them (:meth:`PairedRows.with_unseen`).

    Args:
        a, b, metric, resamples, confidence, seed: As in :func:`paired`.
        margin: Smallest loss that matters, above 0, as :func:`smallest_that_counts` reads it.
        artifact: Advantage of ``a`` that is none, in the same unit: it may hide as large a loss.

    Raises:
        IncompatibleError: The two were not scored on the same rows.
    """
    return PairedRows.of(a, b, metric, resamples, seed).not_worse(margin, confidence, artifact)


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number (Holm 1979, "A simple sequentially rejective multiple test procedure").

    Each adjusted value can be compared with the level of a single test: the probability of any false claim among all
    stays below that level. NaN stays NaN and does not count.
    """
    known = sorted((p, index) for index, p in enumerate(values) if not math.isnan(p))
    adjusted, highest = [math.nan] * len(values), 0.0
    for rank, (p, index) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        adjusted[index] = highest
    return adjusted


def smallest_that_counts(metric: Metric, reference: float, min_effect: float) -> float:
    """Return the smallest difference that counts, in the unit of the metric.

    It is ``min_effect`` for a score with bounds, such as accuracy, and that fraction of the ``reference`` score for one
    without, such as bits per byte.
    """
    return min_effect if metric.bounds is not None else min_effect * abs(reference)


def agreed(p: float, interval: Interval, confidence: float) -> tuple[float, float, float]:
    """Return p and interval such that p is at most ``1 - confidence`` exactly if the interval excludes 0.

    The two are computed in different ways and may disagree close to the level. The more cautious one wins: the interval
    is extended to 0 if the test does not reject, and p is that of the interval if only the interval includes 0.
    """
    low, high = interval(confidence)
    if math.isnan(p) or math.isnan(low) or math.isnan(high):
        return p, low, high
    if p > 1 - confidence:
        return p, min(low, 0.0), max(high, 0.0)
    if low <= 0 <= high:
        return max(p, _level(interval, 0.0, confidence)), low, high
    return p, low, high


def verdict_of(delta: float, certain: bool, direction: str) -> Verdict:
    """Return the verdict for a difference, given the metric's direction and the certainty."""
    if not certain:
        return "no detectable change"
    return "improved" if (delta > 0) == (direction == "higher") else "worse"


@dataclass(frozen=True)
class PairedRows:
    """Two systems on the same rows.

    Attributes:
        metric: The metric.
        a, b: Vectors of the same rows in the same order.
        resamples: Bootstrap resamples.
        seed: Seed of swaps and resamples.
    """

    metric: Metric
    a: Rows
    b: Rows
    resamples: int = 2000
    seed: int = 17

    @classmethod
    def of(cls, a: Accumulator, b: Accumulator, metric: str | Metric, resamples: int, seed: int) -> PairedRows:
        """Match the rows of two systems by id.

        Raises:
            IncompatibleError: The two were not scored on the same rows.
        """
        measure = a.metrics[metric if isinstance(metric, str) else metric.name]
        return cls(measure, *aligned(a, b, measure.name), resamples, seed)

    @property
    def delta(self) -> float:
        """The score of ``a`` minus that of ``b``."""
        one, two = (float(self.metric.value(rows.units.sum(axis=0))) for rows in (self.a, self.b))
        return one - two

    def comparison(self, confidence: float = 0.95, min_effect: float = MIN_EFFECT) -> Comparison:
        """Return test, interval and verdict, see :func:`paired`."""
        nan, n = math.nan, self.a.n
        delta = self.delta if n else nan
        if not math.isfinite(delta):
            verdict: Verdict = "no detectable change" if self.enough(confidence) else "too few rows"
            return Comparison(metric=self.metric.name, delta=delta, low=nan, high=nan, p=nan, verdict=verdict, n=n)
        p, test = self.test()
        p, low, high = agreed(p, self.interval(p), confidence)
        counts = smallest_that_counts(self.metric, float(self.metric.value(self.b.units.sum(axis=0))), min_effect)
        certain = p <= 1 - confidence and (low > 0 or high < 0)
        verdict = verdict_of(delta, certain and abs(delta) >= counts * (1 - 1e-9), self.metric.direction)
        return Comparison(
            metric=self.metric.name,
            delta=delta,
            low=low,
            high=high,
            p=p,
            verdict=verdict if self.enough(confidence) else "too few rows",
            n=n,
            smallest_detectable=self.detectable(confidence),
            groups=self.a.size if self.a.grouped else 0,
            test=test,
            min_effect=counts,
        )

    def enough(self, confidence: float) -> bool:
        """Return True if there are as many rows (or groups) as any test needs."""
        return self.a.size >= least_rows(confidence)

    def test(self) -> tuple[float, str]:
        """Return the two-sided p-value and the name of the test."""
        if self.is_fraction:
            return mcnemar(*intervals.wins_and_losses(self.metric, self.a.units, self.b.units)), "exact McNemar test"
        p, swaps = swap_test(self.a.units, self.b.units, self.metric.value, seed=self.seed)
        name = "sign-flip test" if self.metric.ratio else "approximate randomization"
        return p, f"{name} of {'groups' if self.a.grouped else 'rows'}{f', all {swaps:,} swaps' if swaps else ''}"

    def interval(self, p: float = math.nan) -> Interval:
        """Return the interval of the difference, as a function of its confidence level.

        Args:
            p: P-value of the test that there is no difference; NaN for an interval without a test.
        """
        return intervals.of_difference(
            self.metric,
            self.a.units,
            self.b.units,
            resamples=self.resamples,
            seed=self.seed,
            rows=not self.a.grouped,
            p=p,
        )

    def not_worse(self, margin: float, confidence: float, artifact: float = 0.0) -> NotWorse:
        """Return the result of the test of :func:`not_worse`."""
        if not margin > 0:
            raise ValueError(f"margin must be above 0, not {margin}")
        reference = float(self.metric.value(self.b.units.sum(axis=0)))
        margin = smallest_that_counts(self.metric, reference, margin)
        hidden = margin - smallest_that_counts(self.metric, reference, artifact)
        if not self.enough(confidence) or not math.isfinite(self.delta):
            verdict: Literal["cannot tell", "too few rows"] = (
                "cannot tell" if self.enough(confidence) else "too few rows"
            )
            return NotWorse(margin=margin, p=math.nan, verdict=verdict)
        higher = self.metric.direction == "higher"
        interval, bound = self.with_unseen(self.interval()), -hidden if higher else hidden
        low, high = interval(confidence)
        holds = low > bound if higher else high < bound
        beyond = self.delta <= bound if higher else self.delta >= bound
        level = _level(interval, bound, 0.0)
        return NotWorse(
            margin=margin,
            p=1 - level / 2 if beyond else level / 2,
            verdict="not worse" if holds else "cannot tell",
        )

    def with_unseen(self, interval: Interval) -> Interval:
        """Return an interval of the difference with room for complete failures of ``a`` that no row shows.

        If a row fails with a probability of ``f``, none of ``n`` does with ``(1 - f)^n``, so that the level excludes no
        ``f`` below ``1 - level^(1/n)``, about 3.7 / n at 2.5% (Clopper & Pearson 1934; the rule of three of Hanley &
        Lippman-Hand 1983). Each failure costs what ``a`` scores above the worst value. Resamples of rows without a
        failure contain none, however often they are drawn.
        """
        if self.metric.bounds is None or self.is_fraction:
            return interval
        higher, (least, most) = self.metric.direction == "higher", self.metric.bounds
        value, delta = float(self.metric.value(self.a.units.sum(axis=0))), self.delta
        loss = value - least if higher else most - value

        def wider(confidence: float) -> tuple[float, float]:
            low, high = interval(confidence)
            unseen = loss * (1 - ((1 - confidence) / 2) ** (1 / self.a.size))
            return (min(low, delta - unseen), high) if higher else (low, max(high, delta + unseen))

        return wider

    def detectable(self, confidence: float) -> float:
        """Return the smallest detectable difference; for 0/1 scores at least that of the fewest rows that decide."""
        units = np.hstack([self.a.units, self.b.units])
        least = least_rows(confidence) / self.a.n if self.is_fraction else 0.0
        found = smallest_detectable(standard_error(units, self._difference), confidence)
        return max(found, least) if not math.isnan(found) else found

    def _difference(self, sums: Array) -> Array:
        width = self.a.units.shape[1]
        with np.errstate(invalid="ignore"):
            return np.asarray(self.metric.value(sums[..., :width]) - self.metric.value(sums[..., width:]))

    @property
    def is_fraction(self) -> bool:
        return not self.a.grouped and intervals.is_fraction(self.metric, self.a.units, self.b.units)


def _level(interval: Interval, bound: float, confidence: float) -> float:
    """Return one minus the confidence at which an interval reaches a bound; intervals grow with the confidence.

    Args:
        interval: The interval.
        bound: The bound.
        confidence: A confidence at which the bound is inside; 0 if none is known.
    """

    def is_inside(level: float) -> bool:
        low, high = interval(level)
        return low <= bound <= high

    least, most = 1e-9, confidence or 1 - 1e-9
    return 1.0 if is_inside(least) else 1 - crossing(is_inside, least, most)
