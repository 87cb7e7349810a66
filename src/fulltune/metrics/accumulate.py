"""Accumulate scores in one pass, with bootstrap intervals and the paired bootstrap of two systems.

The rows are the population: a resample draws as many rows as there are, with replacement. Intervals are percentile
intervals (Efron & Tibshirani 1993, chapter 13). Two systems are compared under the same draws (Koehn 2004), so that
differences in difficulty between rows cancel out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from fulltune.errors import IncompatibleError
from fulltune.metrics.base import Array, Metric
from fulltune.metrics.power import least_rows, smallest_detectable
from fulltune.records.run import Comparison, Prediction, Score, Verdict

#: Maximum size in bytes of the weights of one chunk of resamples.
_BUDGET = 32 * 2**20

_Mask = NDArray[np.bool_]


class Accumulator:
    """Accumulator of predictions that keeps one short vector per prediction, not the prediction.

    Metrics with the same statistics function (such as accuracy and macro-F1) share their vectors.

    Attributes:
        metrics: Metrics by name, in the given order.
        ids: Row ids in the order of the predictions.
    """

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self.metrics = {metric.name: metric for metric in metrics}
        self.ids: list[str] = []
        self._tables = {metric.statistics: _Table() for metric in metrics}

    @property
    def n(self) -> int:
        return len(self.ids)

    def add(self, prediction: Prediction) -> None:
        vectors = [(table, statistics(prediction)) for statistics, table in self._tables.items()]
        for table, vector in vectors:
            table.add(vector)
        self.ids.append(prediction.id)

    def statistics(self, name: str) -> tuple[Array, _Mask]:
        """Return the vectors ``(n, k)`` of a metric (zeros where it does not apply) and the mask of the rest."""
        return self._tables[self.metrics[name].statistics].arrays()

    def without(self, ids: Container[str]) -> Accumulator:
        """Return the accumulator of all other rows."""
        kept = np.array([row_id not in ids for row_id in self.ids], dtype=bool)
        if kept.all():
            return self
        others = Accumulator(tuple(self.metrics.values()))
        others.ids = [row_id for row_id, keep in zip(self.ids, kept, strict=True) if keep]
        others._tables = {statistics: table.at(kept) for statistics, table in self._tables.items()}
        return others

    def scores(self, *, resamples: int = 1000, confidence: float = 0.95, seed: int = 17) -> dict[str, Score]:
        """Return each metric with its percentile interval.

        Without rows the value is NaN. With one row there is a value but no interval (NaN).

        Args:
            resamples: Number of bootstrap resamples.
            confidence: Confidence level of the interval, e.g. 0.95.
            seed: Seed; the same seed and rows give the same interval.
        """
        scores: dict[str, Score] = {}
        for statistics, table in self._tables.items():
            rows, applies = table.arrays()
            rows = rows[applies]
            (sums,) = _resampled((rows,), resamples, seed)
            for metric in self._sharing(statistics):
                scores[metric.name] = _score(metric, rows, sums, confidence)
        return {name: scores[name] for name in self.metrics}

    def _sharing(self, statistics: Callable[[Prediction], Array | None]) -> Iterator[Metric]:
        return (metric for metric in self.metrics.values() if metric.statistics == statistics)


def paired(
    a: Accumulator,
    b: Accumulator,
    metric: str | Metric,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 17,
) -> Comparison:
    """Compare two systems on the same rows by the paired bootstrap: ``a`` minus ``b``.

    The two-sided p-value is ``min(1, 2 min(P(δ ≤ 0), P(δ ≥ 0)))`` over the resamples, with one added to each count and
    to the number of resamples. A bootstrap of very few rows is overconfident, so p is never below ``2^(1 - d)``, where
    ``d`` is the number of rows on which the systems differ. Under the null hypothesis each of the ``2^d`` swaps is
    equally likely, and no two-sided test can give a smaller p-value. The verdict is ``improved`` or ``worse`` if the
    interval excludes 0 and ``p ≤ 1 - confidence``, and ``too few rows`` below
    :func:`~fulltune.metrics.power.least_rows`.

    Rows are matched by id; a row counts if the metric applies to both systems. Without such rows all numbers are NaN.

    Raises:
        IncompatibleError: The two were not scored on the same rows.
    """
    name = metric if isinstance(metric, str) else metric.name
    rows_a, rows_b = _aligned(a, b, name)
    if not len(rows_a):
        nan = math.nan
        return Comparison(metric=name, delta=nan, low=nan, high=nan, p=nan, verdict="too few rows")
    measure = a.metrics[name]
    draws = [measure.value(sums) for sums in _resampled((rows_a, rows_b), resamples, seed)]
    with np.errstate(invalid="ignore"):  # inf - inf, if both perplexities overflow
        deltas = draws[0] - draws[1]
        delta = float(measure.value(rows_a.sum(axis=0)) - measure.value(rows_b.sum(axis=0)))
    differing = int((rows_a != rows_b).any(axis=1).sum())
    return judged(measure, delta, deltas, n=len(rows_a), differing=differing, confidence=confidence)


def judged(metric: Metric, delta: float, deltas: Array, *, n: int, differing: int, confidence: float) -> Comparison:
    """Return the comparison of two systems from the resamples of their difference; see :func:`paired`.

    Args:
        metric: The metric.
        delta: The difference on all rows.
        deltas: Resampled differences, ``(resamples,)``.
        n: Number of rows.
        differing: Number of rows on which the systems differ.
        confidence: Confidence level of the interval.
    """
    low, high = percentile_interval(deltas, confidence)
    p = bootstrap_p(deltas, differing)
    certain = p <= 1 - confidence and (low > 0 or high < 0)
    return Comparison(
        metric=metric.name,
        delta=delta,
        low=low,
        high=high,
        p=p,
        verdict="too few rows" if n < least_rows(confidence) else verdict_of(delta, certain, metric.direction),
        n=n,
        smallest_detectable=smallest_detectable(deltas, confidence),
    )


def relative_loss(
    tuned: Accumulator,
    base: Accumulator,
    metric: str | Metric,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 17,
) -> tuple[float, float, float]:
    """Return the relative loss of ``tuned`` against ``base``, and its paired bootstrap interval.

    The loss is a fraction of the base's value; above 0 is worse, whatever the metric's direction. It is NaN if the
    base's value is 0 or either is undefined. Rows are matched as in :func:`paired`.

    Raises:
        IncompatibleError: The two were not scored on the same rows.
    """
    name = metric if isinstance(metric, str) else metric.name
    rows = _aligned(tuned, base, name)
    measure = base.metrics[name]

    def loss(sums: Sequence[Array]) -> Array:
        now, before = (measure.value(part) for part in sums)
        worse = now - before if measure.direction == "lower" else before - now
        return np.asarray(np.divide(worse, abs(before), out=np.full_like(worse, np.nan), where=before != 0))

    if not len(rows[0]):
        return math.nan, math.nan, math.nan
    with np.errstate(invalid="ignore"):  # inf - inf, as in `paired`
        value = float(loss([np.atleast_2d(part.sum(axis=0)) for part in rows])[0])
        draws = loss(_resampled(rows, resamples, seed))
    return value, *percentile_interval(draws, confidence)


def resampled_values(systems: Sequence[Accumulator], metric: Metric, *, resamples: int = 1000, seed: int = 17) -> Array:
    """Return a metric of several systems under the same draws of their rows, shape ``(systems, resamples)``.

    Raises:
        IncompatibleError: The systems were not scored on the same rows.
    """
    tables = []
    for system in systems:
        rows, applies = system.statistics(metric.name)
        order = matching(systems[0].ids, system.ids)
        tables.append(np.where(applies[:, None], rows, 0.0)[order])
    return np.stack([metric.value(sums) for sums in _resampled(tables, resamples, seed)])


def row_values(a: Accumulator, b: Accumulator, name: str) -> tuple[Array, Array]:
    """Return a metric of every single row, ``(n,)`` for each system in the order of ``a.ids``; NaN if undefined.

    Raises:
        IncompatibleError: The two were not scored on the same rows.
    """
    return _row_values(a, name), _row_values(b, name)[matching(a.ids, b.ids)]


def _row_values(accumulator: Accumulator, name: str) -> Array:
    rows, applies = accumulator.statistics(name)
    values = np.full(len(rows), np.nan)
    if applies.any():
        values[applies] = accumulator.metrics[name].value(rows[applies])
    return values


class _Table:
    """Vectors of one length in an array that doubles its size when it is full."""

    def __init__(self) -> None:
        self._rows = np.zeros((16, 0))
        self._applies = np.zeros(16, dtype=bool)
        self._n = 0

    def add(self, vector: Array | None) -> None:
        if self._n == len(self._applies):
            self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
            self._applies = np.concatenate([self._applies, np.zeros_like(self._applies)])
        if vector is not None:
            if not self._rows.shape[1]:
                self._rows = np.zeros((len(self._applies), len(vector)))
            self._rows[self._n] = vector
            self._applies[self._n] = True
        self._n += 1

    def at(self, kept: _Mask) -> _Table:
        """Return the table of some rows, given a mask ``(n,)``."""
        rows, applies = self.arrays()
        table = _Table()
        table._rows, table._applies, table._n = rows[kept], applies[kept], int(kept.sum())
        return table

    def arrays(self) -> tuple[Array, _Mask]:
        return self._rows[: self._n], self._applies[: self._n]


def _resampled(tables: Sequence[Array], resamples: int, seed: int) -> list[Array]:
    """Return sums of resampled rows, ``(resamples, k)`` for each table ``(n, k)``, all under the same draws.

    Weights are created for as many resamples at a time as fit into :data:`_BUDGET`; the result does not depend on it.
    """
    n = len(tables[0])
    sums = [np.zeros((resamples, table.shape[1])) for table in tables]
    if n == 0:
        return [np.full_like(part, np.nan) for part in sums]
    random = np.random.default_rng(seed)
    size = max(1, min(resamples, _BUDGET // (8 * n)))
    buffer = np.empty((size, n))
    for start in range(0, resamples, size):
        stop = min(start + size, resamples)
        weights = buffer[: stop - start]
        for weight in weights:
            weight[:] = np.bincount(random.integers(n, size=n), minlength=n)
        with np.errstate(invalid="ignore"):  # 0 times infinity: an infinite row leaves no interval
            for part, table in zip(sums, tables, strict=True):
                part[start:stop] = weights @ table
    return sums


def _score(metric: Metric, rows: Array, sums: Array, confidence: float) -> Score:
    if not len(rows):
        return Score(value=math.nan, low=math.nan, high=math.nan, n=0)
    value = float(metric.value(rows.sum(axis=0)))
    if len(rows) == 1:
        return Score(value=value, low=math.nan, high=math.nan, n=1)
    low, high = percentile_interval(metric.value(sums), confidence)
    return Score(value=value, low=low, high=high, n=len(rows))


def percentile_interval(values: Array, confidence: float) -> tuple[float, float]:
    """Return the percentile interval; resamples with an undefined metric are skipped."""
    defined = values[~np.isnan(values)]
    if not len(defined):
        return math.nan, math.nan
    tail = (1 - confidence) / 2
    # Use observed values: interpolation between infinities is undefined.
    low, high = np.quantile(defined, [tail, 1 - tail], method="inverted_cdf")
    return float(low), float(high)


def bootstrap_p(deltas: Array, differing: int) -> float:
    """Return the two-sided p-value of resampled differences; see :func:`paired` for ``differing``, a number of rows."""
    defined = deltas[~np.isnan(deltas)]
    if not len(defined):
        return math.nan
    smaller = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    return min(1.0, max(2 * (smaller + 1) / (len(defined) + 1), 2.0 ** (1 - differing)))


def verdict_of(delta: float, certain: bool, direction: str) -> Verdict:
    """Return the verdict for a difference, given the metric's direction and the certainty."""
    if not certain:
        return "no detectable change"
    return "improved" if (delta > 0) == (direction == "higher") else "worse"


def _aligned(a: Accumulator, b: Accumulator, name: str) -> tuple[Array, Array]:
    """Return the vectors of both, ``(n, k)`` each, matched by id, of the rows that the metric applies to in both."""
    order = matching(a.ids, b.ids)
    rows_a, applies_a = a.statistics(name)
    rows_b, applies_b = b.statistics(name)
    both = applies_a & applies_b[order]
    return rows_a[both], rows_b[order][both]


def matching(a: Sequence[str], b: Sequence[str]) -> NDArray[np.intp]:
    """Return the positions in ``b`` of the rows of ``a``.

    Raises:
        IncompatibleError: The ids are not the same; names some of those that differ.
    """
    if a == b:
        return np.arange(len(a))
    if sorted(a) != sorted(b):
        raise IncompatibleError(
            f"the rows differ: {_some(set(a) - set(b))} only in the first, {_some(set(b) - set(a))} only in the second "
            f"({len(a)} and {len(b)} rows)",
            expected="the same row ids in both",
            fix="score both systems on the same rows",
            field="id",
        )
    positions = np.empty(len(a), dtype=np.intp)
    positions[sorted(range(len(a)), key=a.__getitem__)] = sorted(range(len(b)), key=b.__getitem__)
    return positions


def _some(ids: set[str]) -> str:
    shown = sorted(ids)[:3]
    return ", ".join(map(repr, shown)) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "") if shown else "none"
