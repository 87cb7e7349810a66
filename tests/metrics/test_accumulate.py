"""Accumulated sums, intervals of scores, and matched rows."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulltune.errors import IncompatibleError
from fulltune.metrics.accumulate import Accumulator, row_values
from fulltune.metrics.base import Array, Metric
from fulltune.metrics.compare import paired
from fulltune.metrics.likelihood import bits_per_byte
from fulltune.metrics.text import exact_match
from fulltune.records.run import Prediction


def prediction(row_id: str, reference: str = "", output: str = "", **values: object) -> Prediction:
    return Prediction(system="tuned", id=row_id, input="", reference=reference, output=output, values=values)


def filled(metrics: Sequence[Metric], predictions: Sequence[Prediction]) -> Accumulator:
    accumulator = Accumulator(metrics)
    for item in predictions:
        accumulator.add(item)
    return accumulator


def hits(pattern: Sequence[bool], ids: Sequence[str] | None = None) -> Accumulator:
    """Return a system that is right on the rows where ``pattern`` is true."""
    names = ids or [str(index) for index in range(len(pattern))]
    rows = [prediction(name, "yes", "yes" if hit else "no") for name, hit in zip(names, pattern, strict=True)]
    return filled([exact_match], rows)


def mean_of(key: str) -> Metric:
    def statistics(item: Prediction) -> Array | None:
        return np.array([item.values[key], 1.0]) if key in item.values else None

    return Metric(key, "higher", 1, "mean", statistics, lambda sums: sums[..., 0] / sums[..., 1])


def test_statistics_and_mask_have_a_row_each() -> None:
    found = filled([mean_of("x")], [prediction("a"), prediction("b", x=2.0), prediction("c"), prediction("d", x=5.0)])
    rows, applies = found.statistics("x")
    assert rows.tolist() == [[0, 0], [2, 1], [0, 0], [5, 1]]
    assert applies.tolist() == [False, True, False, True]
    assert (found.n, found.ids) == (4, ["a", "b", "c", "d"])
    score = found.scores()["x"]
    assert (score.value, score.n) == (3.5, 2)


def test_rows_that_grow_past_the_first_array_are_all_kept() -> None:
    found = filled([mean_of("x")], [prediction(str(index), x=float(index)) for index in range(1000)])
    assert found.statistics("x")[0][:, 0].tolist() == list(range(1000))


def test_metrics_that_share_statistics_share_one_pass() -> None:
    calls: list[str] = []

    def statistics(item: Prediction) -> Array:
        calls.append(item.id)
        return np.array([1.0])

    metrics = [Metric(name, "higher", 1, "", statistics, lambda sums: sums[..., 0]) for name in ("one", "two")]
    scores = filled(metrics, [prediction("a"), prediction("b")]).scores()
    assert calls == ["a", "b"]
    assert list(scores) == ["one", "two"]


def test_no_rows_give_no_value_and_one_row_gives_no_interval() -> None:
    none, one = hits([]).scores()["exact_match"], hits([True]).scores()["exact_match"]
    assert math.isnan(none.value)
    assert none.n == 0
    assert one.value == 1
    assert math.isnan(one.low)
    assert math.isnan(one.high)


def test_rows_that_are_left_out_do_not_count() -> None:
    found = hits([True, False, True, True])
    without = found.without({"1"})
    assert (without.ids, without.n) == (["0", "2", "3"], 3)
    assert without.scores() == hits([True, True, True]).scores()
    assert found.without(set()) is found
    assert found.without({"0", "1", "2", "3"}).scores()["exact_match"].n == 0
    assert paired(without, found.without({"1"}), "exact_match").delta == 0
    assert found.scores()["exact_match"].n == 4


@given(st.lists(st.booleans(), min_size=2, max_size=60), st.integers(0, 5))
def test_the_interval_holds_the_value_and_repeats_by_seed(pattern: list[bool], seed: int) -> None:
    score = hits(pattern).scores(resamples=200, seed=seed)["exact_match"]
    assert score.low <= score.value <= score.high
    assert score == hits(pattern).scores(resamples=200, seed=seed)["exact_match"]


def test_the_bootstrap_of_many_rows_stays_within_its_budget() -> None:
    """All weights together would take 160 MB."""
    metric = mean_of("x")
    found = filled([metric], [prediction(str(row), x=1.0) for row in range(20_000)])
    tracemalloc.start()
    found.scores(resamples=1000)
    paired(found, found, metric, resamples=1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 48 * 2**20


def test_pairing_detects_what_two_separate_intervals_would_miss() -> None:
    base = [index % 2 == 0 for index in range(100)]
    better = [hit or index % 12 == 1 for index, hit in enumerate(base)]
    one, two = hits(better).scores()["exact_match"], hits(base).scores()["exact_match"]
    assert one.low < two.high
    assert paired(hits(better), hits(base), "exact_match").verdict == "improved"
    assert paired(hits(base), hits(better), "exact_match").verdict == "worse"


def test_lower_is_better_where_the_metric_says_so() -> None:
    def likelihood(factor: float) -> Accumulator:
        return filled([bits_per_byte], [prediction(str(i), nll=factor * (i + 1), bytes=10) for i in range(30)])

    found = paired(likelihood(0.5), likelihood(1.0), bits_per_byte)
    assert found.delta < 0
    assert found.verdict == "improved"
    assert paired(likelihood(1.0), likelihood(0.5), bits_per_byte).verdict == "worse"


def test_rows_are_matched_by_id_and_not_by_position() -> None:
    a = hits([True, True, False], ["x", "y", "z"])
    b = hits([False, True, True], ["z", "x", "y"])
    assert paired(a, b, "exact_match").p == 1
    one, two = row_values(a, b, "exact_match")
    assert one.tolist() == two.tolist() == [1, 1, 0]


def test_rows_where_the_metric_does_not_apply_to_both_are_left_out() -> None:
    metric = mean_of("x")
    a = filled([metric], [prediction("1", x=1.0), prediction("2", x=5.0), prediction("3")])
    b = filled([metric], [prediction("1", x=0.0), prediction("2"), prediction("3", x=9.0)])
    assert paired(a, b, metric).delta == 1
    neither = paired(a, filled([metric], [prediction(str(i)) for i in (1, 2, 3)]), metric)
    assert math.isnan(neither.delta)
    assert math.isnan(neither.p)
    assert neither.verdict == "too few rows"


def test_nan_is_never_a_verdict() -> None:
    rows = [prediction(str(i), nll="NaN" if i == 3 else 1.0, bytes=10) for i in range(30)]
    good = [prediction(str(i), nll=2.0, bytes=10) for i in range(30)]
    found = paired(filled([bits_per_byte], rows), filled([bits_per_byte], good), bits_per_byte)
    assert math.isnan(found.delta)
    assert found.verdict == "no detectable change"


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (["1", "2"], ["1", "3"], "'2' only in the first, '3' only in the second"),
        (["1", "2"], ["1"], r"'2' only in the first, none only in the second \(2 and 1 rows\)"),
        (list("123456"), ["9"], "'1', '2', '3' and 3 more only in the first"),
        (["1", "1"], ["1"], r"none only in the first, none only in the second \(2 and 1 rows\)"),
    ],
)
def test_other_rows_are_refused_by_name(a: list[str], b: list[str], message: str) -> None:
    with pytest.raises(IncompatibleError, match=message):
        paired(hits([True] * len(a), a), hits([True] * len(b), b), "exact_match")


def test_an_infinite_row_gives_an_infinite_value_and_no_verdict() -> None:
    metric = mean_of("x")
    a = filled([metric], [prediction(str(row), x=math.inf) for row in range(8)])
    score, difference = a.scores()["x"], paired(a, a, metric)
    assert score.value == math.inf
    assert math.isnan(difference.delta)
    assert difference.verdict == "no detectable change"
