"""Whether two lists of rows are the same multiset when numbers may differ by rounding."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

RELATIVE, ABSOLUTE = 1e-6, 1e-9
_EXACT_FLOATS = 2.0**53

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
    if any(not targets for targets in near):
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


def _near(gold: list[tuple[Vector, int]], predicted: list[tuple[Vector, int]]) -> list[list[int]]:
    """For each vector of gold the indices of those near to it, looked up through the most varied column."""
    column = max(range(len(gold[0][0])), key=lambda i: len({vector[i] for vector, _ in gold}))
    order = sorted(range(len(predicted)), key=lambda j: predicted[j][0][column])
    values = [predicted[j][0][column] for j in order]
    found = []
    for vector, _ in gold:
        reach = max(2 * ABSOLUTE, 2 * RELATIVE * abs(vector[column]))
        reach = reach if math.isfinite(reach) else 0.0
        window = range(bisect_left(values, vector[column] - reach), bisect_right(values, vector[column] + reach))
        found.append([order[k] for k in window if _row_close(vector, predicted[order[k]][0])])
    return found
