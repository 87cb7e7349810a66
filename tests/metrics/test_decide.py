"""The outcome of a run, rule by rule."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fulltune.metrics import get, known
from fulltune.metrics.base import Metric
from fulltune.metrics.decide import decide
from fulltune.records.run import Comparison, Score, Verdict

MACRO_F1 = get("macro_f1", ("lease", "sale"))
BITS = get("bits_per_byte")

Baselines = dict[str, tuple[float, Verdict, tuple[float, float, float]]]


def verdict(
    metric: Metric, tuned: float, baselines: Baselines, n: int = 828, mcc: tuple[float, float, float] | None = None
) -> tuple[str, tuple[str, ...], str]:
    """Return the verdict; ``baselines``: name → (value, verdict, (delta, low, high) of tuned minus baseline)."""
    values = {"tuned": tuned} | {name: found[0] for name, found in baselines.items()}
    scores = {
        name: {metric.name: Score(value=value, low=value - 0.01, high=value + 0.01, n=n)}
        for name, value in values.items()
    }
    if mcc:
        scores["tuned"]["mcc"] = Score(value=mcc[0], low=mcc[1], high=mcc[2], n=n)
    comparison = {
        f"tuned vs {name}": Comparison(
            metric=metric.name, delta=d, low=low, high=high, p=0.5, verdict=word, n=n, smallest_detectable=2 * abs(d)
        )
        for name, (_, word, (d, low, high)) in baselines.items()
    }
    return decide(comparison, scores, metric)


WON: Baselines = {
    "majority": (0.02, "improved", (0.883, 0.86, 0.9)),
    "tfidf": (0.78, "improved", (0.123, 0.101, 0.144)),
}


def test_tuning_that_helped() -> None:
    assert verdict(MACRO_F1, 0.903, WON, mcc=(0.8, 0.7, 0.9)) == (
        "accepted",
        (),
        "Tuning improved macro-F1 by 12.3 points (10.1 to 14.4) over the best baseline, TF-IDF (0.780 → 0.903), "
        "n = 828.",
    )


def test_a_lower_value_is_reported_as_a_gain_where_lower_is_better() -> None:
    _, _, headline = verdict(
        BITS,
        1.099,
        {"zero_shot": (1.5, "improved", (-0.4, -0.5, -0.3)), "few_shot": (1.312, "improved", (-0.213, -0.25, -0.19))},
    )
    assert headline == (
        "Tuning improved bits per byte by 0.213 (0.190 to 0.250) over the best baseline, few-shot (1.312 → 1.099), "
        "n = 828."
    )


def test_a_gain_is_never_shown_as_zero() -> None:
    _, _, headline = verdict(BITS, 1.4998, {"zero_shot": (1.5, "improved", (-0.0002, -0.0003, -0.0001))})
    assert "improved bits per byte by 0.0002 (0.0001 to 0.0003)" in headline


def test_a_baseline_that_wins_comes_first_and_rejects() -> None:
    outcome, reasons, headline = verdict(
        MACRO_F1,
        0.85,
        {
            "zero_shot": (0.3, "improved", (0.55, 0.5, 0.6)),
            "few_shot": (0.87, "worse", (-0.02, -0.03, -0.01)),
            "tfidf": (0.875, "worse", (-0.025, -0.04, -0.009)),
        },
    )
    assert outcome == "rejected"
    assert headline == (
        "TF-IDF beats the tuned model: macro-F1 0.875 against 0.850, better by 2.5 points (0.9 to 4.0), n = 828."
    )
    assert reasons == (
        "worse than TF-IDF by 2.5 points (0.9 to 4.0)",
        "worse than few-shot by 2.0 points (1.0 to 3.0)",
    )


def test_a_base_that_was_better_rejects_where_lower_is_better() -> None:
    outcome, reasons, headline = verdict(BITS, 1.4, {"zero_shot": (1.2, "worse", (0.2, 0.1, 0.3))})
    assert outcome == "rejected"
    assert reasons == ("worse than zero-shot by 0.200 (0.100 to 0.300)",)
    assert headline.startswith("Zero-shot beats the tuned model: bits per byte 1.200 against 1.400")


def test_a_model_that_cannot_be_told_from_the_best_baseline_is_undecided() -> None:
    outcome, reasons, headline = verdict(
        MACRO_F1,
        0.879,
        {
            "tfidf": (0.875, "no detectable change", (0.004, -0.012, 0.02)),
            "zero_shot": (0.4, "improved", (0.479, 0.4, 0.5)),
            "few_shot": (0.5, "improved", (0.379, 0.3, 0.4)),
        },
    )
    assert (outcome, reasons) == ("undecided", ("cannot be told from TF-IDF: +0.4 points (−1.2 to +2.0), n = 828",))
    assert headline == (
        "The tuned model cannot be told from TF-IDF: macro-F1 0.875 → 0.879, +0.4 points (−1.2 to +2.0), n = 828; "
        "better than few-shot and zero-shot (adjusted for several comparisons, Holm)."
    )


def test_four_rows_decide_nothing_whatever_they_show() -> None:
    found: Baselines = {"zero_shot": (6.910, "too few rows", (-3.896, -3.981, -3.858))}
    outcome, [reason], headline = verdict(BITS, 3.014, found, n=4)
    assert outcome == "undecided"
    # The difference is half of what four rows detect: four times as many are needed.
    assert reason == (
        "4 rows cannot decide (no test at 95% can with fewer than 6); about 16 would show a difference of this size"
    )
    assert headline == f"{reason}: bits per byte 6.910 → 3.014 against zero-shot."
    assert verdict(MACRO_F1, 0.0, {"tfidf": (0.0, "too few rows", (0, 0, 0))}, n=5)[0] == "undecided"


@pytest.mark.parametrize(
    ("metric", "tuned", "baseline"),
    [(get("exact_match"), 0.0, 0.0), (MACRO_F1, 0.0, 0.0), (BITS, 8.2, 8.3), (get("rougeLsum"), 0.0, 0.0)],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_a_score_no_better_than_guessing_is_rejected(metric: Metric, tuned: float, baseline: float) -> None:
    for word in ("no detectable change", "improved"):
        outcome, reasons, headline = verdict(metric, tuned, {"zero_shot": (baseline, word, (0.0, 0.0, 0.0))}, n=24)  # type: ignore[dict-item]
        assert outcome == "rejected"
        assert "is no better than guessing" in headline
        assert reasons == (headline.rstrip("."),)


@pytest.mark.parametrize("mcc", [(0.03, -0.02, 0.08), (0.0, 0.0, 0.0), (math.nan, math.nan, math.nan)], ids=str)
def test_answers_that_do_not_depend_on_the_input_are_not_accepted(mcc: Any) -> None:
    """A random guess beats the majority class in macro-F1, and is no gain."""
    outcome, [reason], headline = verdict(MACRO_F1, 0.3, {"majority": (0.1, "improved", (0.2, 0.1, 0.3))}, mcc=mcc)
    assert outcome == "undecided"
    assert reason.startswith("cannot be told from guessing: MCC ")
    assert ("(no interval)" if math.isnan(mcc[1]) else " to ") in reason
    assert headline.startswith("The tuned model cannot be told from guessing: MCC ")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_tuned_model_without_a_finite_score_is_rejected(value: float) -> None:
    outcome, reasons, headline = verdict(BITS, value, {"zero_shot": (1.2, "no detectable change", (math.nan,) * 3)})
    assert outcome == "rejected"
    assert reasons == ("the tuned model's bits per byte is not a finite number (n = 828)",)
    assert headline == f"No verdict is possible for this run: {reasons[0]}."


def test_without_a_scored_baseline_nothing_is_claimed() -> None:
    outcome, reasons, headline = verdict(BITS, 1.0, {"zero_shot": (math.nan, "no detectable change", (math.nan,) * 3)})
    assert (outcome, reasons) == ("undecided", ("there is no baseline to compare with",))
    assert headline == "The tuned model has no baseline to compare with: bits per byte 1.000, n = 828."
    few = verdict(BITS, 1.0, {"zero_shot": (math.nan, "too few rows", (math.nan,) * 3)}, n=1)
    assert few[2] == "1 row cannot decide (no test at 95% can with fewer than 6): bits per byte 1.000."


def test_large_figures_have_no_decimals() -> None:
    _, _, headline = verdict(
        known()["perplexity"], 35.5, {"zero_shot": (23045.1, "improved", (-23009.6, -24000, -22000))}
    )
    assert "by 23,010 (22,000 to 24,000)" in headline
    assert "(23,045 → 35.500)" in headline


def judged(verdict_: Verdict, delta: tuple[float, float, float], *, p_holm: float, min_effect: float = 0.005) -> Any:
    """Return the decision on a tuned model and two baselines, of which the first is far behind."""
    d, low, high = delta
    worst = Comparison(metric="macro_f1", delta=0.5, low=0.4, high=0.6, p=1e-6, verdict="improved", n=800, p_holm=1e-6)
    best = Comparison(
        metric="macro_f1", delta=d, low=low, high=high, p=0.03, verdict=verdict_, n=800, p_holm=p_holm,
        min_effect=min_effect,
    )  # fmt: skip
    values = {"tuned": 0.9, "majority": 0.4, "tfidf": 0.9 - d}
    scores = {name: {"macro_f1": Score(value=value, low=0.3, high=1, n=800)} for name, value in values.items()}
    return decide({"tuned vs majority": worst, "tuned vs tfidf": best}, scores, MACRO_F1)


def test_one_of_several_baselines_beats_only_after_the_adjustment() -> None:
    found = judged("worse", (-0.02, -0.038, -0.002), p_holm=0.06)
    assert found.outcome == "undecided"
    assert "is worse than TF-IDF by a test of its own, but not if adjusted for 2 baselines (Holm, p = 0.06)" in (
        found.headline
    )
    assert judged("worse", (-0.02, -0.038, -0.002), p_holm=0.04).outcome == "rejected"


def test_every_baseline_is_beaten_at_the_full_level() -> None:
    """Accepting needs all tests to succeed, so that none is adjusted."""
    assert judged("improved", (0.02, 0.002, 0.038), p_holm=0.06).outcome == "accepted"


def test_a_certain_gain_that_is_too_small_is_undecided_and_named() -> None:
    found = judged("no detectable change", (0.002, 0.001, 0.003), p_holm=0.001)
    assert found.outcome == "undecided"
    assert found.headline == (
        "The tuned model is better than TF-IDF by less than 0.5 points, the smallest that counts "
        "(evaluation.min_effect): macro-F1 0.898 → 0.900, +0.2 points (+0.1 to +0.3), n = 800; better than the "
        "majority class (adjusted for several comparisons, Holm)."
    )


def test_scores_that_differ_never_look_equal() -> None:
    found = judged("no detectable change", (0.0001, -0.001, 0.0012), p_holm=0.5)
    assert "0.8999 → 0.9000" in found.headline
