"""Scores by group, folder or database."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fulltune.metrics.accumulate import Accumulator
from fulltune.metrics.base import Metric
from fulltune.metrics.likelihood import bits_per_byte
from fulltune.metrics.parts import SHOWN, part_scores
from fulltune.metrics.text import exact_match
from fulltune.records.parts import PartScores
from fulltune.records.run import Prediction


def right(rows: dict[str, bool]) -> Accumulator:
    accumulator = Accumulator([exact_match])
    for name, hit in rows.items():
        accumulator.add(Prediction(system="s", id=name, input="", reference="yes", output="yes" if hit else "no"))
    return accumulator


def nats(rows: dict[str, float]) -> Accumulator:
    accumulator = Accumulator([bits_per_byte])
    for name, nll in rows.items():
        values = {"nll": nll, "tokens": 3, "bytes": 8}
        accumulator.add(Prediction(system="s", id=name, input="", reference="", output="", values=values))
    return accumulator


def scored(tuned: Accumulator, baseline: Accumulator, metric: Metric, parts: dict[str, str]) -> PartScores | None:
    return part_scores(tuned, baseline, metric, parts, by="folder", name="tfidf")


def test_a_part_that_got_worse_comes_first_though_the_mean_improves() -> None:
    ids = [f"{part}{row}" for part in "abc" for row in range(6)]
    parts = {name: name[0] for name in ids}
    tuned = right({name: name[0] != "b" or name == "b0" for name in ids})
    baseline = right({name: name[0] == "b" for name in reversed(ids)})  # rows are matched by id

    found = scored(tuned, baseline, exact_match, parts)

    assert found is not None
    assert (found.by, found.baseline, found.count, found.behind, found.small) == ("folder", "tfidf", 3, 1, 0)
    assert [(one.name, one.n) for one in found.worst] == [("b", 6), ("a", 6), ("c", 6)]
    worst = found.worst[0]
    assert (worst.tuned, worst.baseline) == (pytest.approx(1 / 6), 1.0)
    assert worst.difference == pytest.approx(-5 / 6)


def test_lower_bits_are_better_and_two_texts_are_enough() -> None:
    parts = {"1": "law", "2": "law", "3": "tale", "4": "tale", "5": "alone"}
    tuned = nats({"1": 8.0, "2": 8.0, "3": 4.0, "4": 4.0, "5": 1.0})

    found = scored(tuned, nats(dict.fromkeys(parts, 6.0)), bits_per_byte, parts)

    assert found is not None
    assert [one.name for one in found.worst] == ["law", "tale"]
    assert found.worst[0].difference == pytest.approx(0.25 / math.log(2))
    assert (found.behind, found.count, found.small, found.fewest) == (1, 2, 1, 2)


def test_only_rows_that_both_answered_count() -> None:
    ids = [f"{part}{row}" for part in "ab" for row in range(8)]
    tuned = right(dict.fromkeys(ids, True))
    found = scored(tuned, right(dict.fromkeys(ids[1:], False)), exact_match, {name: name[0] for name in ids})
    assert found is not None
    assert {one.name: one.n for one in found.worst} == {"a": 7, "b": 8}


def test_many_parts_are_recorded_up_to_a_limit_and_a_single_one_is_not() -> None:
    ids = [f"{part:02}-{row}" for part in range(30) for row in range(5)]
    system = right(dict.fromkeys(ids, True))
    found = scored(system, system, exact_match, {name: name[:2] for name in ids})
    assert found is not None
    assert (len(found.worst), found.count, found.behind) == (SHOWN, 30, 0)
    assert scored(system, system, exact_match, dict.fromkeys(ids, "one")) is None
    assert scored(system, system, exact_match, {}) is None


def test_a_value_that_is_undefined_comes_first() -> None:
    def statistics(prediction: Prediction) -> np.ndarray:
        return np.array([1.0, 0.0 if prediction.id.startswith("b") else 1.0])

    broken = Metric(
        "broken", "higher", 1, "", statistics, lambda sums: sums[..., 0] / sums[..., 1] if sums[1] else np.array(np.nan)
    )
    system = Accumulator([broken])
    for name in ("a0", "a1", "a2", "a3", "a4", "b0", "b1", "b2", "b3", "b4"):
        system.add(Prediction(system="s", id=name, input="", reference="", output=""))
    found = scored(system, system, broken, {name: name[0] for name in system.ids})
    assert found is not None
    assert [one.name for one in found.worst] == ["b", "a"]
    assert math.isnan(found.worst[0].difference)
