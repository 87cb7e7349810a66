"""The top of the page and of its data section: outcome, next step, figures; what the model gets to see of the data."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import samples
from page_reader import PageReader
from rich.console import Console

from fulltune.cli.render import runs as terminal
from fulltune.records.data import ClassRows, DataSummary, LabelSpellings, Leaks, Lengths, Truncation
from fulltune.records.parts import PartScore, PartScores
from fulltune.records.run import GuardEvent, Recommendation, Record, Retention, Score, best_baseline
from fulltune.report import dataset, details, render, scores, tiles
from fulltune.report.display import unsaid

SUMMARY = DataSummary(
    rows={"train": 900, "eval": 100},
    max_length=64,
    truncation={"train": Truncation(rows=207, of=900, tokens={"input": 4000})},
    lengths={"train": Lengths(min=3, median=41, p95=90, max=1200), "eval": Lengths(min=4, median=40, p95=80, max=99)},
    classes=tuple(ClassRows(label=f"class <{i}>", train=90 - i, eval=i) for i in range(9)),
    labels=LabelSpellings(written=29, distinct=8, spellings=({"Spam": 40, "spam ": 2},), padded=("spam ",)),
    padding={"used": 0.04, "random": 0.31},
    leaks=Leaks(rows=2, of=100, kinds={"near": 2}, ids=("e:1", "e:2")),
)


RETAINED = Retention(
    metric="masked_loss",
    direction="lower",
    base=Score(value=1, low=1, high=1, n=9),
    tuned=Score(value=1.08, low=1, high=1.1, n=9),
    change=0.08,
    low=0.07,
    high=0.09,
    budget=0.05,
    verdict="lost",
)


def page(**changes: Any) -> str:
    record = samples.record(**changes)
    return render(record, [], [], None)


def with_summary(summary: DataSummary, **changes: Any) -> Record:
    return samples.record(data=samples.data().model_copy(update={"summary": summary}), **changes)


@pytest.mark.parametrize("outcome", ["accepted", "undecided", "rejected", "stopped"])
def test_every_outcome_is_explained(outcome: Any) -> None:
    texts = PageReader(page(outcome=outcome, retention={"law": RETAINED})).texts

    assert texts[1] == f"{tiles.SIGNS[outcome]} {outcome}"
    assert texts[2] == tiles.meaning(samples.record(outcome=outcome, retention={"law": RETAINED}))
    assert len(set(tiles.SIGNS.values())) == 4


def test_a_rejected_run_names_only_the_reasons_that_hold() -> None:
    lost = samples.rejected().record
    kept = GuardEvent(guard="overfitting", step=0, verdict="continue", message="step 0 was the best")
    still = lost.parameters.model_copy(update={"moved": 0.0, "largest_change": 0.0})
    even = {name: one.model_copy(update={"verdict": "no detectable change"}) for name, one in lost.comparison.items()}
    no_number = lost.scores | {"tuned": {"macro_f1": samples.score(math.nan)}}
    for changes, meaning in (
        ({}, "a baseline is better"),
        ({"retention": {"law": RETAINED}}, "a baseline is better; more of law was forgotten than the budget allows"),
        ({"guards": (kept,), "comparison": even}, "no step of training was better than the base"),
        ({"parameters": still, "comparison": even}, "training changed no weight"),
        ({"comparison": even}, "no better than guessing"),
        ({"comparison": {}, "scores": no_number}, "its score is not a number"),
    ):
        assert tiles.meaning(lost.model_copy(update=changes)) == meaning


def test_a_reason_whose_amount_the_headline_states_is_not_repeated() -> None:
    headline = (
        "Use TF-IDF. TF-IDF beats the tuned model: macro-F1 0.855 against 0.798, better by 5.7 points (1.0 to 10.7)."
    )
    reasons = ("worse than TF-IDF by 5.7 points (1.0 to 10.7)", "worse than few-shot by 2.0 points (0.1 to 3.9)")

    assert unsaid(samples.record(headline=headline, reasons=reasons)) == [reasons[1]]


def test_an_accepted_run_without_a_budget_is_not_said_to_keep_one() -> None:
    free = RETAINED.model_copy(update={"budget": math.nan, "verdict": "no budget"})

    assert PageReader(page(retention={})).texts[2] == "better than every baseline"
    assert "nothing had to be kept" in PageReader(page(retention={"general text (en)": free})).texts[2]


def test_the_next_step_comes_before_the_figures() -> None:
    sentence = "About 400 evaluation rows would show a difference of this size; there are 60."
    advice = Recommendation(use="", action="get more evaluation rows", sentence=sentence, rows=400)
    texts = PageReader(page(recommendation=advice)).texts

    assert texts[3:6] == ["Next", sentence, "Macro-F1, tuned model"]
    assert "Next" not in PageReader(page()).texts


def test_the_figures_are_those_of_the_record() -> None:
    lost = RETAINED
    kept = lost.model_copy(update={"change": 0.01, "low": 0.0, "high": 0.02, "verdict": "kept"})
    shown = tiles.tiles(samples.record(retention={"tales": kept, "law": lost}))

    assert [(tile.name, tile.value, tile.css_class) for tile in shown] == [
        ("Macro-F1, tuned model", "0.903", ""),
        ("Macro-F1, best baseline", "0.871", ""),
        ("Difference", "+0.032", "improved"),
        ("Largest loss of retention", "+8.0%", "worse"),
        ("Time", "5 min 2 s", ""),
    ]
    assert shown[0].notes == ("[0.883, 0.923]", "n = 400")
    assert shown[1].notes[1] == "TF-IDF"
    assert shown[2].notes == ("[+0.012, +0.052]", "improved")
    assert shown[3].notes[0] == "law"


@pytest.mark.parametrize(("direction", "best"), [("higher", "tfidf"), ("lower", "majority")], ids=["higher", "lower"])
def test_the_best_baseline_follows_the_direction_and_has_a_number(direction: Any, best: str) -> None:
    record = samples.record()
    metrics = {"macro_f1": record.metrics["macro_f1"].model_copy(update={"direction": direction})}
    scores = record.scores | {"zero_shot": {"macro_f1": samples.score(math.nan)}}

    assert best_baseline(samples.record(metrics=metrics, scores=scores)) == best
    assert best_baseline(samples.record(scores={"tuned": record.scores["tuned"]})) is None


def test_a_run_without_scores_has_its_cost_alone() -> None:
    assert [tile.name for tile in tiles.tiles(samples.record(scores={}, comparison={}))] == ["Time"]


def test_the_data_section_begins_with_what_the_model_gets_to_see() -> None:
    source = render(with_summary(SUMMARY), [], [], None)
    section = source.partition('<section id="data">')[2].partition("</section>")[0]
    text = PageReader(f"<body>{section}</body>").text

    assert text.startswith("Data Truncated 23% of train rows (207 of 900) to data.max_length: 64 Classes 9, from 90")
    assert "Labels 29 as written, 8 if case, spaces and punctuation are ignored: 'Spam' (40) = 'spam ' (2)" in text
    assert "Padding 4.0% of the inputs, 31.0% in random batches" in text
    assert "Leaks 2 of 100 eval rows (2%) also occur in train: left out of the deciding scores" in text
    assert "train 2,133 41 / 90 / 1,200 23.0% train.jsonl" in text
    assert "class <0> 90 0 class <1> 89 1" in text
    assert section.count('class="notable"') == 3
    assert section.index("Truncated") < section.index("Tokens per row") < section.index("The audit has")


def test_the_terminal_states_the_same_facts() -> None:
    lines = [line.plain for line in terminal.described(with_summary(SUMMARY))]

    assert lines == [f"Data, {name}: {fact}" for name, fact in dataset.details(SUMMARY).items()]
    assert len(lines) == 5


def test_facts_that_need_no_attention_are_not_marked() -> None:
    fine = DataSummary(
        truncation={"train": Truncation(rows=1, of=900)},
        labels=LabelSpellings(written=8, distinct=8),
        padding={"used": 0.4, "random": 0.5},
    )
    assert dataset.notable(fine) == set()
    assert list(dataset.details(fine)) == ["truncated", "padding"]
    assert dataset.details(DataSummary()) == {}
    assert dataset.classes(DataSummary()) is None


def test_many_classes_are_folded_and_complete() -> None:
    many = DataSummary(classes=tuple(ClassRows(label=f"class {i:02}", train=60 - i, eval=1) for i in range(60)))
    source = render(with_summary(many), [], [], None)

    assert "<summary>Rows of all 60 classes</summary>" in source
    assert all(f"<bdi>class {i:02}</bdi>" in source for i in range(60))


def test_code_in_sentences_is_shown_as_code_and_escaped() -> None:
    advice = Recommendation(use="", action="keep more", sentence="Mix it (`fulltune models interpolate <run>`).")
    source = page(recommendation=advice, reasons=("an odd ` is text",))

    assert "(<code>fulltune models interpolate &lt;run&gt;</code>)." in source
    assert "<li>an odd ` is text</li>" in source


def test_the_time_is_readable_and_exact() -> None:
    source = page()

    assert '<time datetime="2025-03-01T10:15:30+00:00">2025-03-01 10:15 UTC</time>' in source
    assert "yesterday" in page(created="yesterday")


def test_a_winner_that_only_the_reasons_name_is_not_repeated() -> None:
    headline, reasons = "TF-IDF beats the tuned model.", ("worse than few-shot by 2 points",)
    record = samples.rejected().record
    both = record.comparison | {"tuned vs few_shot": samples.versus("macro_f1", -0.02, "worse")}
    changed = record.model_copy(update={"comparison": both, "headline": headline, "reasons": reasons})

    assert scores.beaten(changed) == ""
    near = record.scores | {"linear_probe": {"macro_f1": samples.score(0.848)}}
    unclear = both | {"tuned vs linear_probe": samples.versus("macro_f1", -0.007, "no detectable change", half=0.24)}
    assert scores.beaten(changed.model_copy(update={"scores": near, "comparison": unclear})) == ""
    assert "Few-shot" in scores.beaten(changed.model_copy(update={"reasons": ()}))


def test_a_loss_that_cannot_be_told_is_not_shown_as_one() -> None:
    unclear = Retention(
        metric="masked_loss",
        direction="lower",
        base=samples.score(1.0, n=20),
        tuned=samples.score(1.1, n=20),
        change=0.1,
        low=-0.467,
        high=0.476,
        budget=0.05,
        verdict="cannot tell",
    )
    [tile] = [tile for tile in tiles.tiles(samples.record(retention={"general text": unclear})) if "loss" in tile.name]

    assert tile.css_class == ""
    assert tile.notes == ("general text", "cannot tell with 20 rows, budget 5.0%")


def test_a_reason_that_the_headline_states_is_not_repeated() -> None:
    headline = "Get more evaluation rows. 4 rows cannot decide: macro-F1 0.600 → 0.000."
    source = page(headline=headline, outcome="undecided", reasons=("4 rows cannot decide", "another reason"))

    assert re.findall(r"<li>(.*?)</li>", source.partition('class="reasons"')[2].partition("</ul>")[0]) == [
        "another reason"
    ]
    assert 'class="reasons"' not in page(headline=headline, reasons=("4 rows cannot decide",))


def test_the_parts_with_the_smallest_gains_are_shown() -> None:
    worst = tuple(
        PartScore(name=f"firm <{i}>", n=9, tuned=0.5 + i / 10, baseline=0.6, difference=i / 10 - 0.1) for i in range(5)
    )
    parts = PartScores(by="firm", baseline="tfidf", count=14, behind=1, fewest=5, small=3, worst=worst)

    texts = PageReader(page(parts=parts)).texts
    assert "Scores by firm" in texts
    sentence = "By firm, the tuned model is worse than TF-IDF in Macro-F1 in 1 of 14 (3 more have fewer than 5 rows)"
    assert any(text.startswith(f"{sentence}. Those with the smallest gain are shown.") for text in texts)
    start = texts.index("firm <0>")
    assert texts[start : start + 5] == ["firm <0>", "9", "0.500", "0.600", "−0.100"]

    console = Console(width=80)
    with console.capture() as captured:
        console.print(*terminal.parted(samples.record(parts=parts)))
    shown = " ".join(captured.get().split())
    assert sentence in shown
    assert [f"firm <{i}>" in shown for i in range(5)] == [True] * 3 + [False] * 2
    assert not terminal.parted(samples.record())
    assert "Scores by" not in page()


def test_core_seconds_stand_beside_wall_time_if_the_record_has_them() -> None:
    used = samples.record().resources
    counted = samples.record(resources=used.model_copy(update={"core_seconds": 1234.4}))
    assert ("Core-seconds", "1,234, of all threads together") in details.cost(counted)
    assert "core-seconds" not in str(details.cost(samples.record())).lower()
    assert terminal.spent(counted)[0].plain.startswith("Seconds: 302 (")
    assert ", 1234 core-seconds" in terminal.spent(counted)[0].plain
