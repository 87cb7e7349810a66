"""The retention section of the page."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import samples
from page_reader import PageReader

from fulltune.cli.render import runs as terminal
from fulltune.records.run import Record, Retention, Score
from fulltune.report import render, retention


def found(change: float, verdict: Any, budget: float = 0.05, metric: str = "bits_per_byte") -> Retention:
    base = Score(value=1.0, low=0.9, high=1.1, n=40)
    tuned = Score(value=1 + change, low=0.9 + change, high=1.1 + change, n=40)
    return Retention(
        metric=metric,
        direction="lower",
        base=base,
        tuned=tuned,
        change=change,
        low=change - 0.01,
        high=change + 0.01,
        budget=budget,
        verdict=verdict,
    )


def record(**retained: Retention) -> Record:
    return samples.causal_lm().record.model_copy(update={"retention": retained})


def page(one: Record) -> str:
    return render(one, [], [], None)


def test_each_ability_is_listed_with_both_scores_its_loss_and_the_budget() -> None:
    text = page(record(english=found(0.314, "lost"), russian=found(-0.02, "kept")))
    section = text.partition('<section id="retention">')[2].partition("</section>")[0]
    for wanted in (
        "english",
        "russian",
        "+31.4%",
        "[+30.4%, +32.4%]",
        "−2.0%",
        "▼",
        "lost",
        "budget 5.0%",
        "n = 40",
    ):
        assert wanted in section, wanted
    assert "<svg" in section


def test_a_run_without_retention_has_no_section() -> None:
    assert 'id="retention"' not in page(record())


def test_abilities_without_a_budget_are_not_said_to_be_within_it() -> None:
    free = found(0.3, "no budget", math.inf, "linear_cka").model_copy(update={"reason": "features may rotate"})
    [row] = retention.rows(record(representation=free))
    assert (row.verdict, row.budget, row.css_class) == ("only reported", "features may rotate", "kept")
    assert row.metric.startswith("Linear CKA")


def test_a_loss_of_nan_is_shown_and_is_the_worst() -> None:
    lost = record(english=found(0.2, "lost"), russian=found(math.nan, "lost"))
    name, _ = retention.worst(lost.retention) or ("", None)
    assert name == "russian"
    assert "NaN" in page(lost)


def lines(**retained: Retention) -> list[str]:
    return [line.plain for line in terminal.retained(record(**retained))]


def test_the_terminal_names_what_was_lost_or_the_largest_loss() -> None:
    russian = found(0.01, "kept")
    assert lines(english=found(0.314, "lost"), russian=russian) == [
        "Retention: loss of english +31.4% (+30.4% to +32.4%), Bits per byte 1 → 1.314: lost (more than the 5.0% of "
        "the budget)"
    ]
    assert lines(russian=russian, english=found(-0.02, "kept")) == [
        "Retention: loss of russian +1.0% (+0.0% to +2.0%), Bits per byte 1 → 1.01: kept (at most 5.0% may be lost)"
    ]
    wide = found(0.1, "cannot tell").model_copy(update={"low": -0.467, "high": 0.476})
    assert lines(english=wide, free=found(0.2, "no budget", math.inf)) == [
        "Retention: loss of english +10.0% (−46.7% to +47.6%), Bits per byte 1 → 1.1: 40 rows cannot tell whether this "
        "is within the budget of 5.0%",
        "Retention, only reported: loss of free +20.0%",
    ]
    assert lines(free=found(0.66, "no budget", math.inf)) == [
        "Retention: nothing had to be kept (guards.forgetting.keep); only reported: loss of free +66.0%"
    ]
    assert lines() == []
    assert terminal.record(record(), Path("runs/x")) is not None


def test_the_chart_marks_the_budget_of_each_ability_and_zero() -> None:
    def limits(**retained: Retention) -> int:
        return str(retention.chart(record(**retained))).count('class="limit"')

    assert limits(english=found(0.314, "lost"), russian=found(-0.02, "kept")) == 2
    assert limits(english=found(0.314, "lost"), tales=found(0.2, "no budget", budget=math.inf)) == 1
    chart = str(retention.chart(record(english=found(0.01, "kept", budget=0.4))))
    assert chart.count('class="zero"') == 1
    assert ">40%<" in chart  # the axis reaches the budget, in percent
    assert "</svg> budget</span>" in page(record(english=found(0.01, "kept")))
    free = page(record(english=found(0.66, "no budget", budget=math.inf)))
    assert "</svg> budget</span>" not in free
    assert "Nothing had to be kept: what is only reported blocks nothing" in PageReader(free).text
