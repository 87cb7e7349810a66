"""Comparing two run folders."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import f1_score

from fulltune.errors import IncompatibleError, StoreError
from fulltune.metrics import get
from fulltune.metrics.base import Metric
from fulltune.metrics.run_comparison import SHOWN_ROWS, changed_rows, compare
from fulltune.records.data import DataSummary, Leaks
from fulltune.records.run import (
    AuditSummary,
    DataInfo,
    ModelInfo,
    Parameters,
    Prediction,
    Record,
    Resources,
    Score,
    SplitInfo,
    Training,
    read_record,
)

LABELS = ("lease", "sale", "trust")
CLASSES = ("macro_f1", "accuracy", "micro_f1", "mcc", "ece")
BITS = get("bits_per_byte")

Predictions = Sequence[Prediction]


def record(run_id: str = "run-a", measured: Sequence[Metric] = (), **changes: Any) -> Record:
    """Return a minimal record; ``changes`` replace complete fields."""
    split = SplitInfo(source="rows.jsonl", rows=40, sha256="e" * 64)
    fields: dict[str, Any] = {
        "run_id": run_id,
        "fulltune": "0.1.0",
        "created": "2026-01-01T00:00:00+00:00",
        "task": "classification",
        "task_version": 1,
        "method": "full",
        "headline": "",
        "metric": measured[0].name if measured else "",
        "metrics": {metric.name: metric.info() for metric in measured},
        "model": ModelInfo(source="base", sha256="b" * 64, family="encoder", architecture="Bert"),
        "data": DataInfo(train=split, eval=split, audit=AuditSummary(errors=0, warnings=0, findings=(), leaked_rows=0)),
        "parameters": Parameters(total=1, trainable=1, frozen=0, dtype="float32"),
        "training": Training(
            optimizer="adamw", scheduler="linear", learning_rate=1e-5, warmup_steps=0, weight_decay=0.0, batch_size=1,
            accumulation=1, epochs=1.0, steps=1, seed=17, tokens=1, rows=1, final_loss=1.0,
        ),
        "scores": {"tuned": {metric.name: Score(value=0.5, low=0.4, high=0.6, n=40) for metric in measured}},
        "comparison": {},
        "resources": Resources(peak_rss_bytes=1, train_seconds=1.0, tokens_per_second=1.0, total_seconds=1.0),
        "versions": {},
        "outcome": "accepted",
    }  # fmt: skip
    return Record(**fields | changes)


def folder(path: Path, found: Record, predictions: Predictions) -> Path:
    path.mkdir()
    (path / "record.json").write_text(found.to_json(), encoding="utf-8")
    lines = "".join(item.model_dump_json() + "\n" for item in predictions)
    (path / "predictions.jsonl").write_text(lines, encoding="utf-8")
    return path


def classified(right: Callable[[int], bool], system: str = "tuned", rows: int = 40) -> list[Prediction]:
    """Return a run whose row ``i`` has label ``i mod 3`` and is answered correctly where ``right(i)``."""
    return [
        Prediction(
            system=system,
            id=f"r{row}",
            input="text",
            reference=LABELS[row % 3],
            output=LABELS[(row + (0 if right(row) else 1)) % 3],
            values={"confidence": 0.8},
        )
        for row in range(rows)
    ]


def likelihoods(nll: Callable[[int], object], rows: int = 50) -> list[Prediction]:
    return [
        Prediction(
            system="tuned",
            id=f"r{i}",
            input="",
            reference="",
            output="",
            values={"nll": nll(i), "tokens": 5, "bytes": 20},
        )
        for i in range(rows)
    ]


def class_runs(tmp_path: Path, a: Predictions, b: Predictions, **changes: Any) -> tuple[Path, Path]:
    metrics = [get(name, LABELS) for name in CLASSES]
    details = {"labels": list(LABELS), "multi_label": False}
    first = record("run-a", metrics, details=details)
    second = record("run-b", metrics, **{"details": details} | changes)
    return folder(tmp_path / "a", first, a), folder(tmp_path / "b", second, b)


def test_two_classifiers(tmp_path: Path) -> None:
    a = classified(lambda row: row % 10 != 0)
    b = classified(lambda row: row % 2 == 0)
    found = compare(*class_runs(tmp_path, b, [*classified(lambda row: True, "zero_shot"), *a]))
    assert [difference.metric for difference in found.differences] == [name for name in CLASSES if name != "ece"]
    assert found.differences[1].delta == pytest.approx(0.9 - 0.5)
    assert found.differences[0].verdict == "improved"
    assert found.row_metric == "accuracy"
    assert found.fixed == tuple(f"r{row}" for row in range(40) if row % 2)
    assert found.broken == ("r0", "r10", "r20", "r30")
    assert found.most_improved == found.most_worsened == ()
    assert found.headline.startswith("run-b is better than run-a in macro-F1 by 40.1 points (")
    scores = [f1_score([p.reference for p in run], [p.output for p in run], average="macro") for run in (b, a)]
    assert found.headline.endswith(f", {scores[0]:.3f} → {scores[1]:.3f}, n = 40.")
    assert found.differences[0].delta == pytest.approx(scores[1] - scores[0])
    assert found.scores["b"]["macro_f1"].n == 40
    assert json.loads(found.to_json())["differences"][0]["metric"] == "macro_f1"


def test_the_other_way_round_is_worse_by_as_much(tmp_path: Path) -> None:
    runs = class_runs(tmp_path, classified(lambda row: row % 10 != 0), classified(lambda row: row % 2 == 0))
    there, back = compare(*runs), compare(*reversed(runs))
    assert back.differences[0].delta == -there.differences[0].delta
    assert (there.differences[0].verdict, back.differences[0].verdict) == ("worse", "improved")
    assert there.headline.startswith("run-b is worse than run-a in macro-F1 by 40.1 points (")
    assert (back.fixed, back.broken) == (there.broken, there.fixed)


def test_a_run_against_itself_has_no_change(tmp_path: Path) -> None:
    same = classified(lambda row: row % 4 != 0)
    found = compare(*class_runs(tmp_path, same, list(reversed(same))))
    assert {(d.delta, d.p, d.verdict) for d in found.differences} == {(0.0, 1.0, "no detectable change")}
    assert all(d.low < 0 < d.high for d in found.differences)
    assert found.fixed == found.broken == ()
    assert found.headline == (
        "No detectable change in macro-F1 from run-a to run-b (0.750 → 0.750): +0.0 points (−8.8 to +8.8), n = 40."
    )


def test_rows_of_a_metric_that_is_not_0_or_1_are_ranked(tmp_path: Path) -> None:
    metrics = [get("perplexity"), BITS]
    a = folder(tmp_path / "a", record("a", metrics, metric="bits_per_byte"), likelihoods(lambda i: 10.0 + i))
    worse_at = {3: 90.0, 7: 80.0}
    b = folder(
        tmp_path / "b",
        record("b", metrics, metric="bits_per_byte"),
        likelihoods(lambda i: 10.0 + worse_at.get(i, 2 * i)),
    )
    found = compare(b, a)
    assert [difference.metric for difference in found.differences] == ["bits_per_byte", "perplexity"]
    assert found.row_metric == "bits_per_byte"
    assert found.most_improved[:2] == ("r3", "r7")
    assert len(found.most_improved) == SHOWN_ROWS
    assert found.most_worsened == ()
    assert "a is better than b in bits per byte by " in found.headline
    assert compare(a, b).most_worsened == found.most_improved


def test_metrics_that_cannot_be_compared_are_left_out(tmp_path: Path) -> None:
    shared = [get("rougeLsum"), get("length_ratio")]
    own = Metric("own", "higher", 1, "a package", lambda item: None, lambda sums: sums)
    rows = [Prediction(system="tuned", id=str(i), input="", reference="a b", output="a b") for i in range(8)]
    a = folder(tmp_path / "a", record("a", [*shared, own, get("chrf")]), rows)
    b = folder(tmp_path / "b", record("b", [*shared, own]), rows)
    found = compare(a, b)
    assert [difference.metric for difference in found.differences] == ["rougeLsum"]
    assert found.scores["a"].keys() == {"rougeLsum", "length_ratio"}
    assert found.left_out == ("chrf", "own")


def test_labels_of_both_runs_count(tmp_path: Path) -> None:
    predictions = classified(lambda row: True)
    details = {"labels": ["lease"], "multi_label": False}
    found = compare(*class_runs(tmp_path, predictions, predictions, details=details))
    assert found.differences[0].delta == 0
    assert "(1.000 → 1.000)" in found.headline


def test_all_differing_fields_are_named_at_once(tmp_path: Path) -> None:
    rows = classified(lambda row: True)
    data = record().data
    newer = {name: get(name, LABELS).info().model_copy(update={"version": 2}) for name in ("macro_f1", "mcc")}
    a, b = class_runs(
        tmp_path,
        rows,
        rows,
        task="seq2seq",
        task_version=3,
        metrics=newer,
        data=data.model_copy(update={"eval": data.eval.model_copy(update={"sha256": "f" * 64})}),
    )
    with pytest.raises(IncompatibleError) as caught:
        compare(a, b)
    assert [problem.field for problem in caught.value.problems] == [
        "task",
        "task_version",
        "data.eval.sha256",
        "metrics.macro_f1.version",
        "metrics.mcc.version",
    ]
    message = str(caught.value)
    assert message.startswith("5 problems:")
    assert "field 'task': 'classification' in run-a, 'seq2seq' in run-b; expected the same in both runs" in message
    assert "field 'task_version': 1 in run-a, 3 in run-b" in message
    assert "e" * 64 in message
    assert "f" * 64 in message


def test_runs_without_a_common_metric_are_refused(tmp_path: Path) -> None:
    a = folder(tmp_path / "a", record("a", [BITS]), likelihoods(float))
    b = folder(tmp_path / "b", record("b", [get("bleu")]), likelihoods(float))
    with pytest.raises(IncompatibleError, match="field 'metrics': bits_per_byte in a, bleu in b"):
        compare(a, b)


def test_other_rows_are_refused(tmp_path: Path) -> None:
    runs = class_runs(tmp_path, classified(lambda row: True), classified(lambda row: True, rows=39))
    with pytest.raises(IncompatibleError, match="'r39' only in the first"):
        compare(*runs)


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    a, b = class_runs(tmp_path, classified(lambda row: True), classified(lambda row: True))
    with (b / "predictions.jsonl").open("a", encoding="utf-8") as file:
        file.write('\n{"system": "tuned"}\n')
    with pytest.raises(StoreError, match=r"predictions\.jsonl:42: not a prediction \(id: missing\)"):
        compare(a, b)
    (b / "predictions.jsonl").write_text('{"system":', encoding="utf-8")
    with pytest.raises(StoreError, match=r"predictions\.jsonl:1: not a prediction \(not valid JSON"):
        compare(a, b)


def test_missing_files_and_systems_are_named(tmp_path: Path) -> None:
    a, b = class_runs(tmp_path, classified(lambda row: True), classified(lambda row: True, "zero_shot"))
    with pytest.raises(StoreError, match="no prediction of the tuned model"):
        compare(a, b)
    (b / "predictions.jsonl").unlink()
    with pytest.raises(StoreError, match="the predictions cannot be read"):
        compare(a, b)
    with pytest.raises(StoreError, match=r"there is no record\.json"):
        compare(a, tmp_path / "nowhere")


@pytest.mark.parametrize("rows", [4, 5])
def test_too_few_rows_cannot_decide(rows: int, tmp_path: Path) -> None:
    a, b = (
        folder(tmp_path / name, record(name, [BITS], metric="bits_per_byte"), likelihoods(lambda _, nll=nll: nll, rows))  # type: ignore[misc]
        for name, nll in (("a", 10.0), ("b", 20.0))
    )
    found = compare(a, b)
    assert found.differences[0].verdict == "too few rows"
    assert (found.differences[0].n, found.differences[0].high) == (rows, pytest.approx(10 / 20 / math.log(2)))
    assert found.headline == (
        f"{rows} rows cannot decide (no test at 95% can with fewer than 6): bits per byte 0.721 → 1.443 from a to b."
    )


def test_rows_that_also_occur_in_train_are_left_out(tmp_path: Path) -> None:
    leaks = Leaks(rows=2, of=40, ids=("r1", "r3"))
    data = record().data.model_copy(update={"summary": DataSummary(leaks=leaks)})
    runs = class_runs(tmp_path, classified(lambda row: row > 2), classified(lambda row: row != 1), data=data)
    found = compare(*reversed(runs))
    assert found.broken == ("r0", "r2")
    assert found.fixed == ()
    assert found.differences[1].n == 38
    assert found.differences[1].delta == pytest.approx(-2 / 38)
    assert [row.id for row in changed_rows(runs[1], runs[0]).broken] == ["r0", "r2"]


def test_a_run_is_compared_with_its_best_baseline_or_with_the_one_that_is_named(tmp_path: Path) -> None:
    """A baseline may have answered a sample of the rows."""
    scores = {
        name: {"macro_f1": Score(value=value, low=0, high=1, n=40)}
        for name, value in (("tuned", 0.5), ("zero_shot", 0.1), ("tfidf", 0.9))
    }
    answers = [
        *classified(lambda row: False, "zero_shot"),
        *classified(lambda row: row > 2, "tfidf", rows=30),
        *classified(lambda row: row > 0),
    ]
    run, _ = class_runs(tmp_path, answers, answers)
    stored = read_record(run / "record.json").model_copy(update={"scores": scores})
    (run / "record.json").write_text(stored.to_json(), encoding="utf-8")

    found = changed_rows(run)
    assert (found.before, found.after, found.system, found.is_best) == ("run-a#tfidf", "run-a", "tfidf", True)
    assert [row.id for row in found.fixed] == ["r1", "r2"]
    assert found.counted == (2, 0)
    named = changed_rows(run, system="zero_shot")
    assert (named.before, named.counted, named.is_best) == ("run-a#zero_shot", (39, 0), False)
    assert changed_rows(run, run, system="tfidf").counted == (2, 0)
    with pytest.raises(StoreError, match="Choose one of zero_shot, tfidf, tuned"):
        changed_rows(run, system="nosuch")


def test_texts_that_are_judged_by_likelihood_have_their_bits_per_byte(tmp_path: Path) -> None:
    """A text of 20 bytes whose negative log-likelihood is 20 ln 2 has 1 bit per byte."""
    bit = 20 * math.log(2)
    base = [row.model_copy(update={"system": "zero_shot"}) for row in likelihoods(lambda i: 2 * bit)]
    tuned = likelihoods(lambda i: {4: 0.5, 6: 3.0}.get(i, 1.0) * bit)
    run = folder(tmp_path / "a", record("a", [BITS], metric="bits_per_byte"), [*base, *tuned])

    found = changed_rows(run)
    assert (found.counted, found.moved, found.lower, found.reads_answers) == (None, (49, 1), True, False)
    assert (found.fixed[0].id, found.fixed[0].scores) == ("r4", pytest.approx((2.0, 0.5)))
    assert [(row.id, row.scores) for row in found.broken] == [("r6", pytest.approx((2.0, 3.0)))]
    assert len(found.fixed) == SHOWN_ROWS


def test_comparing_loads_no_model_library() -> None:
    code = "import sys, fulltune.metrics.run_comparison\n"
    code += "sys.exit(any(n in sys.modules for n in ('torch', 'transformers', 'sklearn')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
