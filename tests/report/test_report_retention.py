"""The retention section of the page."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import samples

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
    text = page(record(english=found(0.314, "forgotten"), russian=found(-0.02, "kept")))
    section = text.partition('<section id="retention">')[2].partition("</section>")[0]
    for wanted in (
        "english",
        "russian",
        "+31.4%",
        "[+30.4%, +32.4%]",
        "−2.0%",
        "▼",
        "forgotten",
        "budget 5.0%",
        "n = 40",
    ):
        assert wanted in section, wanted
    assert "<svg" in section


def test_a_run_without_retention_has_no_section() -> None:
    assert 'id="retention"' not in page(record())


def test_abilities_without_a_budget_are_not_said_to_be_within_it() -> None:
    [row] = retention.rows(record(representation=found(0.3, "within budget", math.inf, "linear_cka")))
    assert (row.verdict, row.budget) == ("changed, no budget", "")
    assert row.metric.startswith("Linear CKA")


def test_a_loss_of_nan_is_shown_and_is_the_worst() -> None:
    lost = record(english=found(0.2, "forgotten"), russian=found(math.nan, "forgotten"))
    name, _ = retention.worst(lost.retention) or ("", None)
    assert name == "russian"
    assert "NaN" in page(lost)


def test_the_terminal_names_the_largest_loss() -> None:
    [line] = terminal.retained(record(english=found(0.314, "forgotten"), russian=found(0.01, "within budget")))
    assert "2 abilities asked" in line.plain
    assert "english: +31.4% (+30.4% to +32.4%), Bits per byte 1 → 1.314, forgotten" in line.plain
    [line] = terminal.retained(record(english=found(-0.01, "kept")))
    assert line.plain == "Retention: one ability asked, nothing lost"
    assert terminal.retained(record()) == []
    assert terminal.record(record(), Path("runs/x")) is not None


def test_the_chart_marks_the_budget_of_each_ability_and_zero() -> None:
    def limits(**retained: Retention) -> int:
        return str(retention.chart(record(**retained))).count('class="limit"')

    assert limits(english=found(0.314, "kept"), russian=found(-0.02, "kept")) == 2
    assert limits(english=found(0.314, "kept"), tales=found(0.2, "kept", budget=math.inf)) == 1
    chart = str(retention.chart(record(english=found(0.01, "kept", budget=0.4))))
    assert chart.count('class="zero"') == 1
    assert ">40%<" in chart  # the axis reaches the budget, in percent
    assert "</svg> budget</span>" in page(record(english=found(0.01, "kept")))
    assert "</svg> budget</span>" not in page(record(english=found(0.01, "kept", budget=math.inf)))
