"""Score groups, folders or databases one by one, so that a part that got worse is not hidden by the mean."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from fulltune.metrics.accumulate import Accumulator, matching
from fulltune.metrics.base import Array, Metric
from fulltune.records.parts import PartScore, PartScores

#: Number of parts that are recorded.
SHOWN = 12

#: Fewest rows of a part: a fraction of fewer rows takes few values, while one text is enough for a mean over its bytes.
_FEWEST_ROWS, _FEWEST_TEXTS = 5, 2


def part_scores(
    tuned: Accumulator, baseline: Accumulator, metric: Metric, parts: Mapping[str, str], *, by: str, name: str
) -> PartScores | None:
    """Return the deciding metric of two systems by part, the smallest gain first; None without two parts.

    Args:
        tuned, baseline: The systems; rows count that both answered.
        metric: The metric.
        parts: The part of each row, by its id; rows without one do not count.
        by: The column, or ``folder`` or ``database``, that parts have in common.
        name: Name of the baseline.
    """
    common = frozenset(tuned.ids) & frozenset(baseline.ids)
    a, b = (system.without(frozenset(system.ids) - common) for system in (tuned, baseline))
    order = matching(a.ids, b.ids)
    (one, applies), (two, also) = a.statistics(metric.name), b.statistics(metric.name)
    two, applies = two[order], applies & also[order]
    members: dict[str, list[int]] = {}
    for row, row_id in enumerate(a.ids):
        if applies[row] and parts.get(row_id):
            members.setdefault(parts[row_id], []).append(row)
    if len(members) < 2:
        return None
    fewest = _FEWEST_ROWS if metric.percent else _FEWEST_TEXTS
    scored = [_score(part, metric, one[rows], two[rows]) for part, rows in members.items() if len(rows) >= fewest]
    sign = 1 if metric.direction == "higher" else -1

    def gain(part: PartScore) -> float:
        return -math.inf if math.isnan(part.difference) else sign * part.difference

    ranked = sorted(scored, key=lambda part: (gain(part), part.name))
    return PartScores(
        by=by,
        baseline=name,
        count=len(scored),
        behind=sum(gain(part) < 0 for part in scored),
        fewest=fewest,
        small=len(members) - len(scored),
        worst=tuple(ranked[:SHOWN]),
    )


def _score(part: str, metric: Metric, one: Array, two: Array) -> PartScore:
    tuned, baseline = (float(metric.value(np.asarray(rows.sum(axis=0)))) for rows in (one, two))
    return PartScore(name=part, n=len(one), tuned=tuned, baseline=baseline, difference=tuned - baseline)
