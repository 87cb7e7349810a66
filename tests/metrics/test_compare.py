"""Tests and intervals of two systems: against scipy, against published numbers, and by simulation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fulltune.metrics import get, known
from fulltune.metrics.accumulate import Accumulator, Rows
from fulltune.metrics.base import Metric
from fulltune.metrics.compare import PairedRows, agreed, holm, not_worse, paired, relative_loss, smallest_that_counts
from fulltune.metrics.fractions import mcnemar, tango, tango_z, wilson
from fulltune.metrics.ratios import mean_of
from fulltune.metrics.resampling import _bca, grouped, interval_of, standard_error, swap_test
from fulltune.records.run import Prediction

EXACT, BITS = get("exact_match"), get("bits_per_byte")
MEAN = mean_of(
    lambda prediction: np.array([prediction.values["score"], 1.0]), name="score", direction="higher", source=""
)
LABELS = ("a", "b", "c")
MACRO_F1, ACCURACY, MCC = (known(LABELS)[name] for name in ("macro_f1", "accuracy", "mcc"))

Numbers = Sequence[float] | np.ndarray


def filled(metric: Metric, predictions: Sequence[Prediction]) -> Accumulator:
    accumulator = Accumulator([metric])
    for item in predictions:
        accumulator.add(item)
    return accumulator


def row(index: int, group: str = "", reference: str = "", output: str = "", **values: float) -> Prediction:
    return Prediction(
        system="s", id=str(index), input="", reference=reference, output=output, values=values, group=group
    )


def hits(pattern: Sequence[bool] | np.ndarray, groups: Sequence[object] | None = None) -> Accumulator:
    names = [""] * len(pattern) if groups is None else [f"g{group}" for group in groups]
    rows = [row(i, names[i], "yes", "yes" if hit else "no") for i, hit in enumerate(pattern)]
    return filled(EXACT, rows)


def losses(nats: Numbers, sizes: Numbers | None = None, groups: Sequence[object] | None = None) -> Accumulator:
    names = [""] * len(nats) if groups is None else [f"g{group}" for group in groups]
    count = np.full(len(nats), 1 / math.log(2)) if sizes is None else sizes
    return filled(BITS, [row(i, names[i], nll=float(x), bytes=float(count[i])) for i, x in enumerate(nats)])


def scored(values: Numbers) -> Accumulator:
    return filled(MEAN, [row(index, score=float(value)) for index, value in enumerate(values)])


def labeled(truth: Sequence[str] | np.ndarray, answers: Sequence[str] | np.ndarray, metric: Metric) -> Accumulator:
    rows = [row(i, reference=str(t), output=str(o)) for i, (t, o) in enumerate(zip(truth, answers, strict=True))]
    return filled(metric, rows)


# ---- Fractions ----


@pytest.mark.parametrize(("right", "n"), [(0, 5), (5, 5), (7, 20), (190, 200)])
def test_wilson_equals_scipy(right: int, n: int) -> None:
    expected = stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert wilson(right, n) == pytest.approx((expected.low, expected.high))
    score = hits([True] * right + [False] * (n - right)).scores()["exact_match"]
    assert (score.low, score.high) == pytest.approx((expected.low, expected.high))


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_the_sign_test_of_the_rows_that_differ(wins: int, lost: int) -> None:
    expected = stats.binomtest(wins, wins + lost).pvalue if wins + lost else 1.0
    assert mcnemar(wins, lost) == pytest.approx(expected)


def test_tango_equals_the_published_intervals() -> None:
    """Fagerland, Lydersen & Laake 2014, table 6 (airway hyper-responsiveness): 1 and 7 discordant pairs of 21."""
    assert tango(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 40))
def test_limits_of_tango_are_the_differences_that_are_just_not_rejected(wins: int, lost: int, ties: int) -> None:
    n = wins + lost + ties
    if n == 0:
        return
    low, high = tango(wins, lost, n)
    assert -1 <= low <= (wins - lost) / n <= high <= 1
    for limit, sign in ((low, 1), (high, -1)):
        if abs(limit) < 1 - 1e-6:
            assert tango_z(wins, lost, n, limit) == pytest.approx(sign * stats.norm.ppf(0.975), abs=1e-4)
    assert tango(lost, wins, n) == pytest.approx((-high, -low), abs=1e-6)


def test_the_exact_test_never_finds_what_the_interval_does_not() -> None:
    for wins in range(40):
        for lost in range(wins):
            if mcnemar(wins, lost) <= 0.05:
                assert tango(wins, lost, wins + lost)[0] > 0
                assert tango(wins, lost, 300)[0] > 0


def test_four_wins_and_no_loss_decide_nothing_whatever_the_other_answers_are() -> None:
    truth = ["a"] * 30
    base = ["a"] * 20 + ["b"] * 10
    tuned = ["a"] * 24 + ["c"] * 6  # the six others are wrong in both, in different ways
    found = paired(labeled(truth, tuned, ACCURACY), labeled(truth, base, ACCURACY), ACCURACY)
    assert (found.p, found.test) == (pytest.approx(0.125), "exact McNemar test")
    assert (found.low, found.verdict) == (0, "no detectable change")


def test_no_difference_on_few_rows_does_not_exclude_one() -> None:
    found = paired(hits([True] * 20), hits([True] * 20), EXACT)
    assert (found.delta, found.p, found.verdict) == (0, 1, "no detectable change")
    assert (found.low, found.high) == pytest.approx((-0.161, 0.161), abs=1e-3)
    assert found.smallest_detectable == pytest.approx(6 / 20)


# ---- Swaps ----


@pytest.mark.parametrize("n", [4, 7, 12])
def test_all_swaps_of_a_mean_are_scipys_sign_flips(n: int) -> None:
    random = np.random.default_rng(n)
    a, b = random.normal(5, 1, n), random.normal(5.4, 1, n)
    expected = stats.permutation_test(
        (a - b,), lambda x: x.mean(), permutation_type="samples", n_resamples=np.inf, vectorized=False
    )
    found = paired(losses(a), losses(b), BITS)
    assert found.p == pytest.approx(expected.pvalue) or found.p > 0.05
    assert swap_test(*(np.stack([x, np.ones(n)], axis=1) for x in (a, b)), BITS.value)[0] == pytest.approx(
        expected.pvalue
    )
    assert found.test == f"sign-flip test of rows, all {2**n:,} swaps"


def test_drawn_swaps_are_close_to_all_swaps(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(2)
    a, b = (np.stack([random.normal(0, 1, 13), np.ones(13)], axis=1) for _ in range(2))
    exact, swaps = swap_test(a, b, BITS.value)
    monkeypatch.setattr("fulltune.metrics.resampling.ENUMERATED", 5)
    drawn, none = swap_test(a, b, BITS.value)
    assert (swaps, none) == (2**13, 0)
    assert drawn == pytest.approx(exact, abs=0.015)


def test_corpus_scores_are_compared_by_swapping_answers() -> None:
    """Compare with a plain loop over all swaps of nine rows."""
    random = np.random.default_rng(5)
    truth, one, two = (random.choice(LABELS, 9) for _ in range(3))
    one[:5] = truth[:5]

    def f1(answers: np.ndarray) -> float:
        return labeled(truth, answers, MACRO_F1).scores(resamples=100)["macro_f1"].value

    observed = abs(f1(one) - f1(two))
    masks = [np.array([bits >> i & 1 for i in range(9)], dtype=bool) for bits in range(2**9)]
    gaps = [abs(f1(np.where(mask, two, one)) - f1(np.where(mask, one, two))) for mask in masks[:: 2**2]]
    rows = [labeled(truth, answers, MACRO_F1).rows("macro_f1").units for answers in (one, two)]
    p, swaps = swap_test(*rows, MACRO_F1.value)
    same = sum((a == b).all() for a, b in zip(*rows, strict=True))
    assert swaps == 2 ** (9 - same)
    sample = np.mean(np.array(gaps) >= observed - 1e-12)
    assert p == pytest.approx(sample, abs=0.15)


# ---- Intervals ----


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_bca_equals_scipys(seed: int) -> None:
    values = np.random.default_rng(seed).exponential(size=40)
    expected = stats.bootstrap(
        (values,), np.mean, method="BCa", n_resamples=20_000, rng=np.random.default_rng(0)
    ).confidence_interval
    units = np.stack([values, np.ones(40)], axis=1)
    found = _bca(units, BITS.value, 20_000, 1, expanded=False)(0.95)
    scale = 1 / math.log(2)
    assert found == pytest.approx((scale * expected.low, scale * expected.high), rel=0.02)


def test_the_standard_error_is_the_jackknifes() -> None:
    values = np.random.default_rng(3).normal(size=25)
    units = np.stack([values, np.ones(25)], axis=1)
    assert standard_error(units, lambda sums: sums[..., 0] / sums[..., 1]) == pytest.approx(stats.sem(values))
    assert math.isnan(standard_error(units[:1], BITS.value))


def test_a_group_counts_as_one_row_with_the_sum_of_its_rows() -> None:
    random = np.random.default_rng(6)
    groups = np.repeat(np.arange(12), 5)
    a, b = (random.normal(3, 1, 60) + np.repeat(random.normal(0, 1, 12), 5) for _ in range(2))
    sizes = random.integers(5, 50, 60).astype(float)
    order = random.permutation(60)

    def summed(values: np.ndarray) -> np.ndarray:
        return np.array([values[groups == group].sum() for group in range(12)])

    by_group = paired(losses(a, sizes, groups), losses(b, sizes, groups), BITS)
    by_sums = paired(losses(summed(a), summed(sizes)), losses(summed(b), summed(sizes)), BITS)
    assert (by_group.delta, by_group.p) == (pytest.approx(by_sums.delta), by_sums.p)
    assert (by_group.low, by_group.high) == pytest.approx((by_sums.low, by_sums.high))
    assert (by_group.n, by_group.groups, by_sums.groups) == (60, 12, 0)
    assert by_group.test.startswith("sign-flip test of groups, all")
    shuffled = grouped(np.stack([a, b], axis=1)[order], groups[order])
    assert shuffled == pytest.approx(grouped(np.stack([a, b], axis=1), groups))


def test_five_groups_never_decide_however_many_rows_they_have() -> None:
    groups = [index % 5 for index in range(200)]
    found = paired(hits([True] * 200, groups), hits([False] * 200, groups), EXACT)
    assert (found.n, found.groups, found.verdict) == (200, 5, "too few rows")
    six = [index % 6 for index in range(200)]
    assert paired(hits([True] * 200, six), hits([False] * 200, six), EXACT).verdict == "improved"


def test_rows_without_a_group_are_groups_of_their_own() -> None:
    rows = [row(i, "g" if i < 4 else "", "yes", "yes") for i in range(10)]
    assert filled(EXACT, rows).rows("exact_match").size == 7


def test_scores_of_all_right_groups_are_not_certain() -> None:
    groups = [index // 4 for index in range(40)]
    score = hits([True] * 40, groups).scores()["exact_match"]
    assert score.high == 1
    assert 0.6 < score.low < 0.75  # as for ten rows, not forty
    assert math.isnan(hits([True] * 4, [0] * 4).scores()["exact_match"].low)


# ---- Verdicts ----


@given(st.floats(0, 1), st.floats(-2, 1), st.floats(0.01, 3), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_test_and_interval_agree(p: float, low: float, width: float, confidence: float) -> None:
    def interval(level: float) -> tuple[float, float]:
        reach = (width / 2) * stats.norm.ppf(0.5 + level / 2) / stats.norm.ppf(0.5 + confidence / 2)
        return low + width / 2 - reach, low + width / 2 + reach

    new, least, most = agreed(p, interval, confidence)
    assert (new <= 1 - confidence + 1e-6) == (least > 0 or most < 0) or abs(new - (1 - confidence)) < 1e-4
    assert new >= p
    assert least <= low + 1e-9
    assert most >= low + width - 1e-9


@pytest.mark.parametrize("metric", [EXACT, BITS], ids=lambda metric: metric.name)
@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_a_certain_but_tiny_difference_is_no_improvement(metric: Metric, factor: float) -> None:
    if metric is EXACT:
        count = 10_000
        a = hits([index % 2 == 0 or index < 2 * 50 * factor for index in range(count)])
        b = hits([index % 2 == 0 for index in range(count)])
    else:
        a, b = (losses([level * (1 + 0.1 * math.sin(i)) for i in range(200)]) for level in (1 - 0.005 * factor, 1.0))
    found = paired(a, b, metric)
    assert found.is_certain
    assert found.verdict == ("improved" if factor > 1 else "no detectable change")
    reversed_ = paired(b, a, metric)
    assert reversed_.verdict in ("worse", "no detectable change")
    assert paired(a, b, metric, min_effect=0.0).verdict == "improved"


def test_min_effect_is_relative_where_a_score_has_no_bounds() -> None:
    assert smallest_that_counts(EXACT, 0.9, 0.005) == 0.005
    assert smallest_that_counts(MCC, 0.2, 0.005) == 0.005
    assert smallest_that_counts(BITS, 1.4, 0.005) == pytest.approx(0.007)


def test_holm_steps_down() -> None:
    assert holm([0.01, 0.04, 0.03, math.nan]) == pytest.approx([0.03, 0.06, 0.06, math.nan], nan_ok=True)
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_not_worse_needs_rows_and_a_margin() -> None:
    random = np.random.default_rng(9)
    a = random.random(800) < 0.8
    b = np.where(random.random(800) < 0.05, ~a, a)
    wide, narrow = (not_worse(hits(b), hits(a), EXACT, margin) for margin in (0.07, 0.01))
    assert wide.verdict == "not worse"
    assert wide.p < 0.025
    assert narrow.verdict == "cannot tell"
    assert narrow.p > 0.025
    assert not_worse(hits(a[:5]), hits(a[:5]), EXACT, 0.5).verdict == "too few rows"
    few = not_worse(hits(a[:30]), hits(a[:30]), EXACT, 0.02)
    assert few.verdict == "cannot tell"  # equal answers of 30 rows do not exclude a loss of two points
    with pytest.raises(ValueError, match="margin must be above 0"):
        not_worse(hits(a), hits(b), EXACT, 0.0)


def test_not_worse_leaves_room_for_failures_that_no_row_shows() -> None:
    """If 1 row in 30 fails completely, none of 20 does in half of the cases, and the others hardly differ."""
    random = np.random.default_rng(28)
    before = random.normal(0.6, 0.1, 200)
    after = before + random.normal(0, 0.001, 200)
    system = {n: [scored(values[:n]) for values in (after, before)] for n in (20, 100, 200)}
    claims = {n: not_worse(*pair, MEAN, 0.02).verdict for n, pair in system.items()}
    assert claims == {20: "cannot tell", 100: "cannot tell", 200: "not worse"}
    found = not_worse(*system[100], MEAN, 0.1)
    assert found.verdict == "not worse"
    assert found.p < 0.025
    low = PairedRows.of(*system[100], MEAN, 500, 1)
    limit = low.with_unseen(low.interval())(0.95)[0]
    assert limit == pytest.approx(low.delta - after[:100].mean() * (1 - 0.025**0.01))


def test_scores_of_any_size_are_compared_alike() -> None:
    """What rounding may cause depends on the size of the scores."""
    random = np.random.default_rng(29)
    a, b = random.normal(1.5, 1, 25), random.normal(1, 1, 25)
    found = [paired(losses(size * a), losses(size * b), BITS) for size in (1.0, 1e-13, 1e12)]
    assert 0.001 < found[0].p < 0.5
    assert len({(one.p, one.verdict) for one in found}) == 1


def test_not_worse_and_the_interval_say_the_same() -> None:
    random = np.random.default_rng(10)
    a, b = losses(random.normal(2.00, 0.3, 60)), losses(random.normal(2.02, 0.3, 60))
    interval = paired(a, b, BITS, min_effect=0)
    assert interval.low < 0 < interval.high
    reference = 2.02
    for margin in (interval.high / reference * 1.2, interval.high / reference * 0.7):
        found = not_worse(a, b, BITS, margin)
        assert found.verdict == ("not worse" if found.margin > interval.high else "cannot tell")
        assert (found.p <= 0.025) == (found.verdict == "not worse")
    assert not_worse(losses(np.full(20, 3.0) + random.normal(0, 0.01, 20)), losses([2.0] * 20), BITS, 0.1).p > 0.9


def test_the_relative_loss_has_a_width_even_if_no_answer_changed() -> None:
    value, low, high = relative_loss(hits([True] * 30), hits([True] * 30), EXACT)
    assert value == 0
    assert low == pytest.approx(-high)
    assert 0.1 < high < 0.13


# ---- Simulation ----


def null_of_fractions(random: np.random.Generator, n: int) -> tuple[Accumulator, Accumulator]:
    hard = random.random(n)
    one, two = (np.where(random.random(n) < 0.5, hard, random.random(n)) < 0.8 for _ in range(2))
    return hits(one), hits(two)


def null_of_losses(random: np.random.Generator, n: int) -> tuple[Accumulator, Accumulator]:
    sizes = random.lognormal(5, 0.7, n)
    level = random.normal(1, 0.2, n)
    one, two = (sizes * (level + random.normal(0, 0.1, n)) for _ in range(2))
    return losses(one, sizes), losses(two, sizes)


def null_of_groups(random: np.random.Generator, n: int) -> tuple[Accumulator, Accumulator]:
    groups = [index // 5 for index in range(n)]
    one, two = (np.repeat(random.normal(1, 0.1, n // 5 + 1), 5)[:n] + random.normal(0, 0.1, n) for _ in range(2))
    return losses(one, groups=groups), losses(two, groups=groups)


def null_of_labels(random: np.random.Generator, n: int) -> tuple[Accumulator, Accumulator]:
    truth = random.choice(LABELS, n)
    one, two = (np.where(random.random(n) < 0.6, truth, random.choice(LABELS, n)) for _ in range(2))
    return labeled(truth, one, MACRO_F1), labeled(truth, two, MACRO_F1)


@pytest.mark.parametrize(
    ("null", "metric", "n"),
    [
        (null_of_fractions, EXACT, 20),
        (null_of_losses, BITS, 8),
        (null_of_losses, BITS, 30),
        (null_of_groups, BITS, 50),
        (null_of_labels, MACRO_F1, 30),
    ],
    ids=["fractions-20", "losses-8", "losses-30", "groups-50", "macro-f1-30"],
)
def test_equal_systems_are_seldom_told_apart_and_the_interval_covers_zero(
    null: Callable[[np.random.Generator, int], tuple[Accumulator, Accumulator]], metric: Metric, n: int
) -> None:
    """At most 2.5% per side within three Monte Carlo errors; the complete table is in docs/evidence.md."""
    random = np.random.default_rng(11)
    trials = 200
    found = [paired(*null(random, n), metric, resamples=300, min_effect=0) for _ in range(trials)]
    for verdict in ("improved", "worse"):
        assert sum(one.verdict == verdict for one in found) <= trials * 0.025 + 3 * math.sqrt(trials * 0.025 * 0.975)
    assert sum(one.low <= 0 <= one.high for one in found) >= 0.93 * trials


def test_intervals_of_skewed_scores_cover() -> None:
    random = np.random.default_rng(12)
    covered = 0
    for _ in range(200):
        values = random.exponential(size=20)
        units = np.stack([values, np.ones(20)], axis=1)
        low, high = interval_of(units, lambda s: s[..., 0] / s[..., 1], resamples=300, seed=1)(0.95)
        covered += low <= 1 <= high
    assert covered >= 0.9 * 200


def test_documents_of_very_different_length_cost_little_power() -> None:
    """The jackknife's limit does not decide: the exact test and BCa do, of which the second withstands skewness."""
    random = np.random.default_rng(3)
    test = verdict = both = 0
    for _ in range(120):
        sizes = random.lognormal(6, 1, 10)
        level = np.exp(random.normal(0, 0.3, 10))
        one, two = (np.stack([sizes * (level + random.normal(-gain, 0.08, 10)), sizes], axis=1) for gain in (0.1, 0))
        rows = PairedRows(BITS, Rows(one, 10, False), Rows(two, 10, False), 500)
        found = rows.comparison()
        low, high = rows.interval()(0.95)
        rejected = rows.test()[0] <= 0.05
        test += rejected
        verdict += found.verdict == "improved"
        both += rejected and (low > 0 or high < 0)
        assert (found.p <= 0.05) == (found.high < 0 or found.low > 0)
    assert both < verdict <= test
    assert verdict >= 0.9 * test


def test_skewed_differences_are_claimed_less_often_than_by_the_test() -> None:
    random = np.random.default_rng(4)
    test = verdict = 0
    for _ in range(150):
        gaps = random.lognormal(0, 1.5, 30) - math.exp(1.5**2 / 2)
        one, two = (np.stack([50 + values, np.ones(30)], axis=1) for values in (gaps, np.zeros(30)))
        rows = PairedRows(BITS, Rows(one, 30, False), Rows(two, 30, False), 500)
        test += rows.test()[0] <= 0.05
        verdict += rows.comparison(min_effect=0).verdict in ("improved", "worse")
    assert verdict < 0.85 * test
