"""Compare lists of rows: as multisets with rounding, or with columns in any order as Spider does."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

RELATIVE, ABSOLUTE = 1e-6, 1e-9
_EXACT_FLOATS = 2.0**53
#: Maximum number of near pairs in the exact matching; above it, the sorted rows must be near to each other.
MAX_PAIRS = 200_000
#: Maximum number of cells in the search for an order of columns (a few seconds); then the search is given up.
MAX_CELLS = 10_000_000

Number = int | float
Vector = tuple[Number, ...]


def rows_match(gold: Sequence[tuple[Any, ...]], predicted: Sequence[tuple[Any, ...]], *, ordered: bool) -> bool:
    """Compare rows of None, int, float, str and bytes, in sequence or as multisets.

    As multisets they match if the rows can be paired one to one with all pairs equal within the tolerance. Nearness is
    not transitive, so that neither rounding nor a greedy choice is sufficient; the rare cases that need it are decided
    by a maximum flow.
    """
    if len(gold) != len(predicted):
        return False
    if ordered:
        return all(_row_close(a, b) for a, b in zip(gold, predicted, strict=True))
    if Counter(gold) == Counter(predicted):
        return True
    left = _by_text(gold)
    right = _by_text(predicted)
    if {key: len(rows) for key, rows in left.items()} != {key: len(rows) for key, rows in right.items()}:
        return False
    return all(_vectors_match(left[key], right[key]) for key in left)


def columns_match(
    gold: Sequence[tuple[Any, ...]], predicted: Sequence[tuple[Any, ...]], *, ordered: bool
) -> bool | None:
    """Return True if some order of the predicted columns gives the reference rows, in sequence or as a multiset.

    Values are equal as in Python (1 equals 1.0, text never equals a number). Two lists without rows match. None means
    that the search reached :data:`MAX_CELLS` without a result.
    """
    if len(gold) != len(predicted) or not gold:
        return not gold and not predicted
    if len(gold[0]) != len(predicted[0]):
        return False
    left = list(zip(*gold, strict=True))
    right = list(zip(*predicted, strict=True))
    if ordered or Counter(left) == Counter(right):
        return Counter(left) == Counter(right)
    if Counter(map(_values, left)) != Counter(map(_values, right)):
        return False
    return _ColumnSearch(left, right).succeeds()


def _values(column: Iterable[Any]) -> frozenset[tuple[Any, int]]:
    """Return the values of a column with their counts, regardless of order."""
    return frozenset(Counter(column).items())


class _ColumnSearch:
    """Search for an order of columns that makes two multisets of rows equal, one column at a time.

    The rows of the columns chosen so far must be equal as multisets, which leaves few choices; of equal columns only
    one is tried. Rows that agree in the chosen columns share a number, so that each step reads only one column, and
    memory is that of the two tables.
    """

    def __init__(self, gold: Sequence[tuple[Any, ...]], predicted: Sequence[tuple[Any, ...]]) -> None:
        same: dict[Any, list[int]] = defaultdict(list)
        for j, column in enumerate(predicted):
            same[_values(column)].append(j)
        likely = [same[_values(column)] for column in gold]
        # Columns with few candidates first.
        order = sorted(range(len(gold)), key=lambda i: len(likely[i]))
        self._gold = [gold[i] for i in order]
        self._likely = [likely[i] for i in order]
        first = dict[tuple[Any, ...], int]()
        self._kinds = [first.setdefault(column, j) for j, column in enumerate(predicted)]
        self._predicted, self._left = predicted, MAX_CELLS
        self._numbers = [dict[tuple[int, Any], int]() for _ in gold]
        self._expected: list[list[int]] = []
        rows = [0] * len(gold[0])
        for column, numbers in zip(self._gold, self._numbers, strict=True):
            rows = [numbers.setdefault(pair, len(numbers)) for pair in zip(rows, column, strict=True)]
            self._expected.append(sorted(rows))

    def succeeds(self) -> bool | None:
        """Return True if there is such an order, False if not, and None if the search was given up."""
        used = [False] * len(self._gold)
        steps = [self._steps([0] * len(self._gold[0]), 0, used)]
        chosen: list[int] = []
        while steps:
            step = next(steps[-1], None)
            if step is None:
                steps.pop()
                if chosen:
                    used[chosen.pop()] = False
                continue
            column, rows = step
            chosen.append(column)
            used[column] = True
            if len(chosen) == len(self._gold):
                return True
            steps.append(self._steps(rows, len(chosen), used))
        return None if self._left < 0 else False

    def _steps(self, rows: list[int], place: int, used: Sequence[bool]) -> Iterator[tuple[int, list[int]]]:
        """Yield the columns that are possible at a place, with the numbers of the rows for each."""
        tried = set[int]()
        numbers = self._numbers[place]
        for column in self._likely[place]:
            if used[column] or self._kinds[column] in tried:
                continue
            tried.add(self._kinds[column])
            self._left -= len(rows)
            if self._left < 0:
                return
            extended = [numbers.get(pair, -1) for pair in zip(rows, self._predicted[column], strict=True)]
            if sorted(extended) == self._expected[place]:
                yield column, extended


def close(a: Number, b: Number) -> bool:
    """Return True for numbers that are equal up to rounding; different integers are never close (1000000, 1000001)."""
    if a == b:
        return True
    return not (_whole(a) and _whole(b)) and math.isclose(a, b, rel_tol=RELATIVE, abs_tol=ABSOLUTE)


def _whole(x: Number) -> bool:
    return isinstance(x, int) or (x.is_integer() and abs(x) < _EXACT_FLOATS)


def _is_number(cell: object) -> bool:
    return isinstance(cell, (int, float))


def _row_close(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return len(a) == len(b) and all(
        close(x, y) if _is_number(x) and _is_number(y) else type(x) is type(y) and x == y
        for x, y in zip(a, b, strict=True)
    )


def _by_text(rows: Iterable[tuple[Any, ...]]) -> dict[tuple[Any, ...], list[Vector]]:
    """Group rows by all values that must be equal; numbers, which may differ by rounding, are kept as vectors."""
    groups: dict[tuple[Any, ...], list[Vector]] = defaultdict(list)
    for row in rows:
        key = tuple(float if _is_number(cell) else (type(cell), cell) for cell in row)
        groups[key].append(tuple(cell for cell in row if _is_number(cell)))
    return groups


def _vectors_match(gold: list[Vector], predicted: list[Vector]) -> bool:
    pairs = zip(sorted(gold), sorted(predicted), strict=True)
    return all(_row_close(a, b) for a, b in pairs) or _flow_matches(_counted(gold), _counted(predicted))


def _counted(vectors: list[Vector]) -> list[tuple[Vector, int]]:
    # Include the types: 2**60 and float(2**60) are equal, but not equally near to 2**60 + 1.
    counts = Counter((vector, tuple(map(type, vector))) for vector in vectors)
    return [(vector, count) for (vector, _), count in counts.items()]


def _flow_matches(gold: list[tuple[Vector, int]], predicted: list[tuple[Vector, int]]) -> bool:
    """Return True if all copies on the left can be assigned to near rows on the right (transport with capacities)."""
    near = _near(gold, predicted)
    if near is None or any(not targets for targets in near):
        return False
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_flow

    source = 0
    sink = 1 + len(gold) + len(predicted)
    edges = [(source, 1 + i, count) for i, (_, count) in enumerate(gold)]
    edges += [(1 + len(gold) + j, sink, count) for j, (_, count) in enumerate(predicted)]
    edges += [(1 + i, 1 + len(gold) + j, gold[i][1]) for i, targets in enumerate(near) for j in targets]
    starts, ends, capacities = zip(*edges, strict=True)
    graph = csr_array((capacities, (starts, ends)), shape=(sink + 1, sink + 1), dtype="int32")
    return int(maximum_flow(graph, source, sink).flow_value) == sum(count for _, count in gold)


def _near(gold: list[tuple[Vector, int]], predicted: list[tuple[Vector, int]]) -> list[list[int]] | None:
    """Return, for each reference vector, the indices of near vectors, looked up by the column with most values.

    None means that there are more than :data:`MAX_PAIRS` candidate pairs.
    """
    column = max(range(len(gold[0][0])), key=lambda i: len({vector[i] for vector, _ in gold}))
    order = sorted(range(len(predicted)), key=lambda j: predicted[j][0][column])
    values = [predicted[j][0][column] for j in order]
    near = list[list[int]]()
    pairs = 0
    for vector, _ in gold:
        reach = max(2 * ABSOLUTE, 2 * RELATIVE * abs(vector[column]))
        reach = reach if math.isfinite(reach) else 0.0
        window = range(bisect_left(values, vector[column] - reach), bisect_right(values, vector[column] + reach))
        pairs += len(window)
        if pairs > MAX_PAIRS:
            return None
        near.append([order[k] for k in window if _row_close(vector, predicted[order[k]][0])])
    return near
