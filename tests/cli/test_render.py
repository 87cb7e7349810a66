"""Results in a terminal: the answer first, every number with its interval, and a suggestion of what to try next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from fulltune.cli.render import answers, runs
from fulltune.config import load_config
from fulltune.evaluation.prediction_files import Answers
from fulltune.evaluation.verdict import verdict
from fulltune.metrics.run_comparison import ChangedRows, Row, RunComparison
from fulltune.pipeline.planning.plan import ModelSize, RowCounts, SequenceCounts, build_plan
from fulltune.records.data import DataSummary, Leaks
from fulltune.records.run import (
    AuditSummary,
    BaselineUse,
    Comparison,
    DataInfo,
    EvaluationRecord,
    MetricInfo,
    ModelInfo,
    Parameters,
    Prediction,
    Recommendation,
    Record,
    Resources,
    Score,
    SplitInfo,
    Training,
)

SPLIT = SplitInfo(source="test.jsonl", rows=1200, sha256="00")
MODEL = ModelInfo(source="gpt2 [small]", sha256="00", family="encoder", architecture="BertModel")
INFO = MetricInfo(direction="higher", version=1, source="scikit-learn")


def text(shown: RenderableType, width: int = 200) -> str:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(shown)
    return capture.get()


def score(value: float) -> Score:
    return Score(value=value, low=value - 0.02, high=value + 0.02, n=1200)


def difference(verdict: str, metric: str = "macro_f1") -> Comparison:
    return Comparison.model_validate(
        {"metric": metric, "delta": 0.11, "low": 0.09, "high": 0.13, "p": 0.001, "verdict": verdict}
    )


def record(verdict: str = "improved", **changes: Any) -> Record:
    fields: dict[str, Any] = {
        "run_id": "20260101-a",
        "fulltune": "0.1.0",
        "created": "2026-01-01T00:00:00+00:00",
        "task": "classification",
        "task_version": 1,
        "method": "full",
        "headline": "Tuned beats few-shot.",
        "metric": "macro_f1",
        "metrics": {"macro_f1": INFO},
        "model": MODEL,
        "data": DataInfo(train=SPLIT, eval=SPLIT, audit=AuditSummary(errors=0, warnings=0, findings=(), leaked_rows=0)),
        "parameters": Parameters(total=1, trainable=1, frozen=0, dtype="float32"),
        "training": Training(
            optimizer="AdamW",
            scheduler="cosine",
            learning_rate=3e-5,
            warmup_steps=1,
            weight_decay=0.01,
            batch_size=8,
            accumulation=1,
            epochs=3,
            steps=10,
            seed=17,
            tokens=1,
            rows=1,
            final_loss=1.0,
        ),
        "scores": {"tuned": {"macro_f1": score(0.9)}, "few_shot": {"macro_f1": score(0.79)}},
        "comparison": {"tuned vs few_shot": difference(verdict)},
        "resources": Resources(peak_rss_bytes=1, train_seconds=1, tokens_per_second=1, total_seconds=1),
        "versions": {},
        "outcome": "accepted",
    }
    return Record(**(fields | changes))


def test_a_run_begins_with_its_headline_and_ends_with_what_to_try() -> None:
    advice = Recommendation(use="tuned", action="use it", sentence="Use [it].")
    lines = text(runs.record(record(recommendation=advice), Path("runs/20260101-a"))).splitlines()
    assert lines[0].strip() == "Tuned beats few-shot."
    assert "Report: runs/20260101-a/report.html" in lines[-2]
    assert lines[-1].strip() == "Next: Use [it]."
    few = next(index for index, line in enumerate(lines) if "Few-shot" in line)
    tuned = next(index for index, line in enumerate(lines) if "0.900" in line)
    assert 0 < few < tuned, "the tuned model comes last"
    assert "0.790" in lines[few]
    assert "[0.770, 0.810]" in lines[few]
    assert "+0.110, improved" in lines[few]
    assert "1,200" in lines[few]


def test_a_rejected_run_lists_its_reasons_verbatim() -> None:
    shown = text(runs.record(record(outcome="rejected", reasons=("below [tfidf]",)), Path("r")))
    assert "below [tfidf]" in shown


def test_a_stopped_run_without_scores_can_be_shown() -> None:
    shown = text(runs.record(record(outcome="stopped", scores={}, comparison={}), Path("r")))
    assert "Tuned beats few-shot." in shown


@pytest.mark.parametrize(("rows", "shown"), [(17, "NaN"), (0, "–")])
def test_nan_stays_nan_and_a_score_on_no_row_is_a_dash(rows: int, shown: str) -> None:
    nan = Score(value=float("nan"), low=float("nan"), high=float("nan"), n=rows)
    assert shown in text(runs.record(record(scores={"tuned": {"macro_f1": nan}}), Path("r")))


def test_an_evaluation_puts_the_deciding_metric_first() -> None:
    found = EvaluationRecord(
        model=MODEL,
        system="zero_shot",
        task="classification",
        task_version=1,
        metric="macro_f1",
        metrics={"accuracy": INFO, "macro_f1": INFO},
        data=SPLIT,
        scores={"accuracy": score(0.5), "macro_f1": score(0.4)},
        seconds=1.0,
    )
    shown = text(runs.evaluation(found))
    assert "gpt2 [small], Zero-shot, on 1,200 rows of test.jsonl" in shown
    assert 0 < shown.index("Macro-F1") < shown.index("Accuracy")
    assert "[0.380, 0.420]" in shown


def test_a_comparison_names_both_runs_and_the_rows_that_changed() -> None:
    found = RunComparison(
        a="20260101-a",
        b="20260102-b",
        task="classification",
        metric="macro_f1",
        headline="B is better.",
        metrics={"macro_f1": INFO},
        scores={"a": {"macro_f1": score(0.79)}, "b": {"macro_f1": score(0.9)}},
        differences=(difference("improved"),),
        row_metric="accuracy",
        fixed=tuple(f"test.jsonl:{line}" for line in range(1, 8)),
        broken=("test.jsonl:9",),
    )
    shown = text(runs.comparison(found))
    assert shown.splitlines()[0].strip() == "B is better."
    assert "From A = 20260101-a" in shown
    assert "to   B = 20260102-b" in shown
    assert "B − A" in shown
    assert "right only in B" in shown
    assert "[+0.090, +0.130]" in shown
    assert "7: test.jsonl:1, test.jsonl:2, test.jsonl:3, test.jsonl:4, test.jsonl:5 …" in shown
    assert "1: test.jsonl:9" in shown
    assert "better in A" not in shown


def test_a_plan_shows_cost_and_advice() -> None:
    config = load_config(
        {"model": "m", "task": "causal-lm", "data": {"train": "t"}, "train": {"epochs": 3, "learning_rate": 1e-3}}
    )
    plan = build_plan(
        config, RowCounts(1000, 200), SequenceCounts(4000, 123_456), ModelSize(2**27), machine_memory=2**33
    )
    shown = text(runs.plan(plan))
    assert "134,217,728 parameters" in shown
    assert "at least 2.0 GiB, activations on top; this machine has 8.0 GiB" in shown
    assert "1,500 (500 an epoch), 90 of them warm-up" in shown
    assert "1,000 train, 200 eval" in shown
    assert shown.count("Advice: ") == len(plan.advice) == 2


def test_a_measured_plan_shows_memory_by_part_and_time_by_stage() -> None:
    train = {"epochs": 3, "learning_rate": 3e-5}
    config = load_config({"model": "m", "task": "causal-lm", "data": {"train": "t"}, "train": train})
    plan = build_plan(
        config, RowCounts(1000, 200), SequenceCounts(4000, 123_456), ModelSize(2**27), machine_memory=2**33
    )
    measured = {"memory": {"weights": 2**29, "activations": 2**31}, "seconds": {"zero_shot": 30.0, "train": 3700.0}}
    lines = [" ".join(line.split()) for line in text(runs.plan(plan.model_copy(update=measured))).splitlines()]
    assert "memory 2.5 GiB at the peak; this machine has 8.0 GiB" in lines
    shown = [line.strip("│ ┃").replace(" │ ", " ") for line in lines]
    assert {"weights 512 MiB", "activations 2.0 GiB", "all 2.5 GiB"} <= set(shown)
    assert {"Zero-shot 30 s", "train 1 h 1 min", "all 1 h 2 min"} <= set(shown)


def test_guard_messages_are_shown_once() -> None:
    events = [
        {"guard": "overfitting", "step": 40, "verdict": "stop", "message": "Stopped at step 40."},
        {"guard": "overfitting", "step": 0, "verdict": "continue", "message": "Nothing beat step 0."},
    ]
    kept = record(guards=events, reasons=("Nothing beat step 0.",), outcome="rejected")
    shown = text(runs.record(kept, Path("runs/a")))
    assert "Guard (overfitting): Stopped at step 40." in shown
    assert shown.count("Nothing beat step 0.") == 1


def test_the_first_warnings_of_the_audit_take_one_line_each() -> None:
    found = AuditSummary(errors=1, warnings=7, findings=("leaks", *(f"w{n}\nx" for n in range(7)), "i"), leaked_rows=0)
    shown = text(runs.record(record(data=DataInfo(train=SPLIT, eval=SPLIT, audit=found)), Path("runs/a")))
    assert [line for line in shown.splitlines() if line.startswith("Audit")] == [
        *(f"Audit: w{n} x" for n in range(5)),
        "Audit: … and 2 more in audit.json",
    ]
    assert "Audit" not in text(runs.record(record(), Path("runs/a")))


def test_leaks_are_told_once() -> None:
    message = "2 of 9 rows of eval also occur in train with the same target (2 exact): they are left out"
    found = AuditSummary(errors=0, warnings=2, findings=(message, "another warning"), leaked_rows=2)
    summary = DataSummary(leaks=Leaks(rows=2, of=9, kinds={"exact": 2}, ids=("a", "b")))
    info = DataInfo(train=SPLIT, eval=SPLIT, audit=found, summary=summary)
    shown = text(runs.record(record(data=info), Path("runs/a")))
    assert shown.count("also occur in train") == 1
    assert "Audit: another warning" in shown


def test_seconds_of_baselines_and_their_samples_are_shown() -> None:
    uses = {
        "majority": BaselineUse(seconds=0.2),
        "tfidf": BaselineUse(seconds=3.4, sampled="40 of 99 rows of train, drawn at random"),
        "zero_shot": BaselineUse(seconds=30.0, is_cached=True),
    }
    shown = text(runs.record(record(baselines=uses), Path("r")))
    assert "; baselines: TF-IDF 3\n" in "\n".join(line.rstrip() for line in shown.splitlines()) + "\n"
    assert "TF-IDF: 40 of 99 rows of train, drawn at random" in shown


def test_run_ids_do_not_break_the_table_of_a_verdict() -> None:
    names = ("20250301-101530-classification-bert-1a2b#tfidf", "20250301-101530-classification-bert-1a2b")
    sides = [
        Answers(
            name,
            tuple(
                Prediction(
                    system="tuned", id=str(row), input="", reference="yes", output="yes" if row < right else "no"
                )
                for row in range(40)
            ),
        )
        for name, right in zip(names, (30, 36), strict=True)
    ]
    lines = text(runs.verdict(verdict(*sides, metric="accuracy")), 80).splitlines()

    assert [line for line in lines if line.startswith(("A: ", "B: "))] == [f"A: {names[0]}", f"B: {names[1]}"]
    table = lines[next(n for n, line in enumerate(lines) if line.startswith("┏")) :]
    assert len(table) <= 10  # three borders, a header, at most two lines per system, and the names
    assert not any("2025" in line for line in table[:-2])


def test_broken_rows_come_before_fixed_ones() -> None:
    rows = [Row(id=f"test.jsonl:{n}", input="x", reference="a", before="a", after="b") for n in range(2)]
    changed = ChangedRows(
        before="one", after="two", metric="accuracy", counted=(1, 1), fixed=tuple(rows[:1]), broken=tuple(rows[1:])
    )
    shown = text(answers.changed_rows(changed))
    best = changed.model_copy(update={"before": "two#tfidf", "system": "tfidf", "is_best": True})
    assert "From TF-IDF, the best baseline, to the tuned model of two:" in text(answers.changed_rows(best))
    assert shown.index("1 broken") < shown.index("test.jsonl:1") < shown.index("1 fixed") < shown.index("test.jsonl:0")


def test_texts_are_listed_with_their_scores_and_without_continuations() -> None:
    better, worse = (
        Row(id=name, input="", reference="", before="loop loop", after="loop loop", scores=scores)
        for name, scores in (("krylov/fox.txt", (1.25, 0.9)), ("pushkin/cat.txt", (1.0, 1.125)))
    )
    changed = ChangedRows(
        before="one#zero_shot", after="one", system="zero_shot", metric="bits_per_byte", counted=None, moved=(7, 1),
        lower=True, reads_answers=False, fixed=(better,), broken=(worse,),
    )  # fmt: skip
    shown = text(answers.changed_rows(changed))

    assert "texts by Bits per byte (lower is better)" in shown
    assert "7 better, the largest changes first, 1 shown" in shown
    lines = [line.split() for line in shown.splitlines()]
    assert ["text", "base", "tuned", "difference"] in lines
    assert ["krylov/fox.txt", "1.250", "0.900", "−0.350"] in lines
    assert ["pushkin/cat.txt", "1.000", "1.125", "+0.125"] in lines
    assert "loop" not in shown


def test_huge_scores_are_written_with_an_exponent() -> None:
    a, b = ([{"id": str(i), "score": 1e100 / 3 * (1 + i % size)} for i in range(20)] for size in (3, 2))
    found = verdict(a, b)
    assert "6.5e+99 → 5e+99" in found.headline
    assert max(len(line) for line in text(runs.verdict(found)).splitlines()) <= 200
    assert all(len(word) < 30 for word in text(runs.verdict(found)).split() if word[:1].isdigit())
