"""Compare two lists of rows: as multisets with rounding, or with their columns in any order as Spider does."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

RELATIVE, ABSOLUTE = 1e-6, 1e-9
_EXACT_FLOATS = 2.0**53
#: Pairs of near rows that are searched for a pairing; with more, sorted rows must be near to each other.
MAX_PAIRS = 200_000
#: Cells that are looked at in search of an order of the columns; without an answer by then, the results differ.
MAX_CELLS = 20_000_000

Number = int | float
Vector = tuple[Number, ...]


def rows_match(gold: Sequence[tuple[Any, ...]], predicted: Sequence[tuple[Any, ...]], *, ordered: bool) -> bool:
    """Compare rows of None, int, float, str and bytes, in sequence or as multisets.

    As multisets they match when the rows can be paired one to one with every pair equal within the tolerance. Being
    near is not transitive, so neither rounding nor a greedy choice decides this; a maximum flow does, in the rare case
    that needs it.
    """
    if len(gold) != len(predicted):
        return False
    if ordered:
        return all(_row_close(a, b) for a, b in zip(gold, predicted, strict=True))
    if Counter(gold) == Counter(predicted):
        return True
    left, right = _by_text(gold), _by_text(predicted)
    if {key: len(rows) for key, rows in left.items()} != {key: len(rows) for key, rows in right.items()}:
        return False
    return all(_vectors_match(left[key], right[key]) for key in left)


def columns_match(gold: Sequence[tuple[Any, ...]], predicted: Sequence[tuple[Any, ...]], *, ordered: bool) -> bool:
    """Return whether some order of the predicted columns gives the gold rows, in sequence or as a multiset.

    Values are equal as in Python (1 equals 1.0, text never equals a number). Two lists without rows match.
    """
    if len(gold) != len(predicted) or not gold:
        return not gold and not predicted
    if len(gold[0]) != len(predicted[0]):
        return False
    left, right = list(zip(*gold, strict=True)), list(zip(*predicted, strict=True))
    if ordered or Counter(left) == Counter(right):
        return Counter(left) == Counter(right)
    return _ColumnSearch(left, right).succeeds()


class _ColumnSearch:
    """Finds an order of columns that makes two multisets of rows equal, one column after the other.

    The rows of the columns chosen so far must be equal as multisets, which leaves few choices; of equal columns only
    one is tried.
    """

    def __init__(self, gold: Sequence[tuple[Any, ...]], predicted: Sequence[tuple[Any, ...]]) -> None:
        self._predicted = predicted
        self._left = MAX_CELLS
        values = [Counter(column) for column in predicted]
        likely = [[j for j, other in enumerate(values) if other == Counter(column)] for column in gold]
        # Columns with few candidates first.
        order = sorted(range(len(gold)), key=lambda i: len(likely[i]))
        self._gold, self._likely = [gold[i] for i in order], [likely[i] for i in order]
        self._prefixes = [Counter(zip(*self._gold[: i + 1], strict=True)) for i in range(len(gold))]

    def succeeds(self) -> bool:
        chosen: list[int] = []
        choices = [iter(self._choices(chosen))]
        while choices:
            column = next(choices[-1], None)
            if column is None:
                choices.pop()
                if chosen:
                    chosen.pop()
                continue
            chosen.append(column)
            if len(chosen) == len(self._gold):
                return True
            choices.append(iter(self._choices(chosen)))
        return False

    def _choices(self, chosen: Sequence[int]) -> Iterator[int]:
        """Columns that can come after those chosen."""
        place, tried = len(chosen), set[tuple[Any, ...]]()
        for column in self._likely[place]:
            if column in chosen or self._predicted[column] in tried:
                continue
            tried.add(self._predicted[column])
            rows = zip(*(self._predicted[j] for j in (*chosen, column)), strict=True)
            self._left -= (place + 1) * len(self._predicted[column])
            if self._left < 0:
                return
            if Counter(rows) == self._prefixes[place]:
                yield column


def close(a: Number, b: Number) -> bool:
    """Equal up to rounding. Two different whole numbers are never close: 1000000 and 1000001 are two counts."""
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
    """Group rows by all that must be equal; what may differ by rounding stays as a vector of numbers."""
    groups: dict[tuple[Any, ...], list[Vector]] = defaultdict(list)
    for row in rows:
        key = tuple(float if _is_number(cell) else (type(cell), cell) for cell in row)
        groups[key].append(tuple(cell for cell in row if _is_number(cell)))
    return groups


def _vectors_match(gold: list[Vector], predicted: list[Vector]) -> bool:
    pairs = zip(sorted(gold), sorted(predicted), strict=True)
    return all(_row_close(a, b) for a, b in pairs) or _flow_matches(_counted(gold), _counted(predicted))


def _counted(vectors: list[Vector]) -> list[tuple[Vector, int]]:
    # The type belongs to the key: 2**60 and float(2**60) are equal, but not equally near to 2**60 + 1.
    counts = Counter((vector, tuple(map(type, vector))) for vector in vectors)
    return [(vector, count) for (vector, _), count in counts.items()]


def _flow_matches(gold: list[tuple[Vector, int]], predicted: list[tuple[Vector, int]]) -> bool:
    """Whether all copies on the left can be sent to near rows on the right (transport with capacities)."""
    near = _near(gold, predicted)
    if near is None or any(not targets for targets in near):
        return False
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_flow

    source, sink = 0, 1 + len(gold) + len(predicted)
    edges = [(source, 1 + i, count) for i, (_, count) in enumerate(gold)]
    edges += [(1 + len(gold) + j, sink, count) for j, (_, count) in enumerate(predicted)]
    edges += [(1 + i, 1 + len(gold) + j, gold[i][1]) for i, targets in enumerate(near) for j in targets]
    starts, ends, capacities = zip(*edges, strict=True)
    graph = csr_array((capacities, (starts, ends)), shape=(sink + 1, sink + 1), dtype="int32")
    return int(maximum_flow(graph, source, sink).flow_value) == sum(count for _, count in gold)


def _near(gold: list[tuple[Vector, int]], predicted: list[tuple[Vector, int]]) -> list[list[int]] | None:
    """For each vector of gold the indices of those near to it, looked up through the most varied column.

    None when more than :data:`MAX_PAIRS` pairs would have to be looked at.
    """
    column = max(range(len(gold[0][0])), key=lambda i: len({vector[i] for vector, _ in gold}))
    order = sorted(range(len(predicted)), key=lambda j: predicted[j][0][column])
    values = [predicted[j][0][column] for j in order]
    found, pairs = [], 0
    for vector, _ in gold:
        reach = max(2 * ABSOLUTE, 2 * RELATIVE * abs(vector[column]))
        reach = reach if math.isfinite(reach) else 0.0
        window = range(bisect_left(values, vector[column] - reach), bisect_right(values, vector[column] + reach))
        pairs += len(window)
        if pairs > MAX_PAIRS:
            return None
        found.append([order[k] for k in window if _row_close(vector, predicted[order[k]][0])])
    return found
