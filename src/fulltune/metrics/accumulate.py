"""Accumulate scores in one pass: one short vector per row is kept, and the group that the row belongs to."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fulltune.errors import IncompatibleError, abridged
from fulltune.metrics import intervals
from fulltune.metrics.base import Array, Metric
from fulltune.metrics.resampling import grouped
from fulltune.records.run import Prediction, Score

_Mask = NDArray[np.bool_]


class Accumulator:
    """Accumulator of predictions that keeps one short vector per prediction, not the prediction.

    Metrics with the same statistics function (such as accuracy and macro-F1) share their vectors.

    Attributes:
        metrics: Metrics by name, in the given order.
        ids: Row ids in the order of the predictions.
        groups: The group of each row; empty for a row that belongs to none.
    """

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self.metrics = {metric.name: metric for metric in metrics}
        self.ids: list[str] = []
        self.groups: list[str] = []
        self._tables = {metric.statistics: _Table() for metric in metrics}

    @property
    def n(self) -> int:
        return len(self.ids)

    def add(self, prediction: Prediction) -> None:
        vectors = [(table, statistics(prediction)) for statistics, table in self._tables.items()]
        for table, vector in vectors:
            table.add(vector)
        self.ids.append(prediction.id)
        self.groups.append(prediction.group)

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
        others.groups = [group for group, keep in zip(self.groups, kept, strict=True) if keep]
        others._tables = {statistics: table.at(kept) for statistics, table in self._tables.items()}
        return others

    def grouped_by(self, groups: Mapping[str, str]) -> Accumulator:
        """Return the same rows in other groups, by the id of the row."""
        others = Accumulator(tuple(self.metrics.values()))
        others.ids, others._tables = self.ids, self._tables
        others.groups = [groups[row_id] for row_id in self.ids]
        return others

    def rows(self, name: str) -> Rows:
        """Return the rows that a metric applies to."""
        vectors, applies = self.statistics(name)
        return rows_of(vectors, self.groups, applies)

    def scores(self, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 17) -> dict[str, Score]:
        """Return each metric with its interval (:func:`fulltune.metrics.intervals.of_score`).

        Without rows the value is NaN. With one row, or one group, there is a value but no interval (NaN).

        Args:
            resamples: Number of bootstrap resamples.
            confidence: Confidence level of the interval, e.g. 0.95.
            seed: Seed; the same seed and rows give the same interval.
        """
        settings = {"resamples": resamples, "seed": seed}
        return {name: _score(metric, self.rows(name), confidence, settings) for name, metric in self.metrics.items()}


@dataclass(frozen=True)
class Rows:
    """The rows that a metric applies to, as the units that are resampled and swapped.

    Attributes:
        units: Vectors of the rows, or sums of their groups, ``(size, k)``.
        n: Number of rows.
        grouped: True if units are groups.
    """

    units: Array
    n: int
    grouped: bool

    @property
    def size(self) -> int:
        return len(self.units)


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


def _score(metric: Metric, rows: Rows, confidence: float, settings: dict[str, int]) -> Score:
    if not rows.n:
        return Score(value=math.nan, low=math.nan, high=math.nan, n=0)
    value = float(metric.value(rows.units.sum(axis=0)))
    low, high = intervals.of_score(metric, rows.units, confidence=confidence, rows=not rows.grouped, **settings)
    return Score(value=value, low=low, high=high, n=rows.n)


def aligned(a: Accumulator, b: Accumulator, name: str) -> tuple[Rows, Rows]:
    """Return the rows of both, matched by id, that a metric applies to in both.

    Raises:
        IncompatibleError: The two were not scored on the same rows.
    """
    one, two = common_rows((a, b), name)
    return one, two


def common_rows(systems: Sequence[Accumulator], name: str) -> list[Rows]:
    """Return the rows of several systems, in the order of the first, that a metric applies to in all of them.

    Raises:
        IncompatibleError: The systems were not scored on the same rows.
    """
    orders = [matching(systems[0].ids, system.ids) for system in systems]
    tables = [system.statistics(name) for system in systems]
    applies = np.logical_and.reduce([mask[order] for (_, mask), order in zip(tables, orders, strict=True)])
    groups = systems[0].groups
    return [rows_of(vectors[order], groups, applies) for (vectors, _), order in zip(tables, orders, strict=True)]


def rows_of(vectors: Array, groups: Sequence[str], applies: _Mask) -> Rows:
    """Return the rows ``(n, k)`` that a metric applies to as units; a group is one unit."""
    vectors = vectors[applies]
    if not any(groups):
        return Rows(vectors, len(vectors), grouped=False)
    # A row without a group is one by itself.
    keys = [(group, -1 if group else row) for row, group in enumerate(groups) if applies[row]]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return Rows(grouped(vectors, np.array([numbers[key] for key in keys], dtype=np.intp)), len(vectors), grouped=True)


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
    return abridged(list(map(repr, sorted(ids))), 3) or "none"
