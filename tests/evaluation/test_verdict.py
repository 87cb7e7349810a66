"""Verdicts on prediction files of any tool, from the command line and from Python."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report import samples
from typer.testing import CliRunner

import fulltune
from fulltune.cli.main import app
from fulltune.errors import ConfigError
from fulltune.metrics import get
from fulltune.metrics.fractions import mcnemar, tango, wilson
from fulltune.records.run import MetricInfo, Prediction
from fulltune.records.verdict import ManyVerdicts, PairVerdict
from fulltune.store.runs import RunFolder
from fulltune.testing import assert_improved, assert_not_worse

Row = dict[str, Any]


def answers(wrong: Sequence[int], n: int = 100, **more: Any) -> list[Row]:
    """Return answers that are right but for some rows."""
    targets = ["cat" if row % 3 else "dog" for row in range(n)]
    return [
        {"id": row, "target": target, "prediction": "bird" if row in set(wrong) else target}
        | {name: values[row] for name, values in more.items()}
        for row, target in enumerate(targets)
    ]


def written(path: Path, rows: Sequence[Row]) -> str:
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def told(*words: str) -> tuple[int, str]:
    """Return exit code and output of ``fulltune verdict``."""
    result = CliRunner().invoke(app, ["verdict", *words])
    return result.exit_code, result.output


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    """Return files of two systems; B has 20 rows right that A has not, and the reverse in 3."""
    a = written(tmp_path / "a.jsonl", answers([*range(20), *range(50, 60)]))
    b = written(tmp_path / "b.csv", list(reversed(answers([*range(50, 60), 90, 91, 92]))))
    return a, b


def test_the_numbers_are_those_of_the_tests(pair: tuple[str, str]) -> None:
    found = fulltune.verdict(*pair)
    assert isinstance(found, PairVerdict)
    assert (found.metric, found.n, found.verdict, found.test) == ("accuracy", 100, "improved", "exact McNemar test")
    assert found.difference.value == pytest.approx(0.17)
    assert found.difference.interval == pytest.approx(tango(20, 3, 100))
    assert found.p == found.p_holm == pytest.approx(mcnemar(20, 3))
    assert (found.a.value, found.a.interval) == (pytest.approx(0.7), pytest.approx(wilson(70, 100)))
    assert found.headline.startswith("b.csv is better than a.jsonl in accuracy by 17.0 points (")
    assert "in four of five cases" in found.notes[0]
    turned = fulltune.verdict(*reversed(pair))
    assert isinstance(turned, PairVerdict)
    assert (turned.verdict, turned.difference.value) == ("worse", pytest.approx(-0.17))


def test_the_json_has_the_documented_keys(pair: tuple[str, str]) -> None:
    for option in (("--format", "json"), ("--json",)):
        code, output = told(*pair, *option)
        found = json.loads(output)
        assert code == 0
        assert found["difference"].keys() >= {"value", "interval"}
        assert found.keys() >= {"metric", "n", "a", "b", "difference", "p", "test", "smallest_detectable", "verdict"}
        assert found["verdict"] == "improved"


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_file_types_agree(tmp_path: Path, ending: str) -> None:
    """Ids and labels are numbers in one file and texts in another."""
    rows = [{"id": row, "target": row % 2, "prediction": (row % 5 > 0) * (row % 2)} for row in range(40)]
    a = written(tmp_path / "a.jsonl", rows)
    b = written(tmp_path / f"b.{ending}", rows[::-1])
    found = fulltune.verdict(a, b, metric="macro_f1")
    assert isinstance(found, PairVerdict)
    assert (found.difference.value, found.verdict) == (0, "no detectable change")


def test_lists_of_labels_are_sets(tmp_path: Path) -> None:
    rows = [{"id": row, "target": ["x", "y"], "prediction": ["y", "x"] if row % 2 else ["x"]} for row in range(20)]
    found = fulltune.verdict(rows, rows)
    assert isinstance(found, PairVerdict)
    assert (found.a.value, found.metric) == (0.5, "accuracy")


def test_a_column_of_numbers_is_a_score(tmp_path: Path) -> None:
    a = [{"id": row, "score": 3.0 + row % 4} for row in range(30)]
    b = [{"id": row, "score": 2.5 + row % 4 + 0.1 * (row % 3)} for row in range(30)]
    found = fulltune.verdict(a, b, lower_is_better=True)
    assert isinstance(found, PairVerdict)
    assert (found.metric, found.verdict, found.direction) == ("score", "improved", "lower")
    assert found.min_effect == pytest.approx(0.005 * found.a.value)
    named = fulltune.verdict(
        *([{"id": row["id"], "stars": row["score"]} for row in rows] for rows in (a, b)), metric="stars"
    )
    assert isinstance(named, PairVerdict)
    assert (named.metric, named.verdict) == ("stars", "worse")


@pytest.mark.parametrize("name", ["loss", "eval_loss", "WER", "perplexity_mean", "val_logloss", "toxicity", "smape"])
def test_a_column_that_is_low_when_good_needs_its_direction(name: str) -> None:
    """A rising loss is no improvement."""
    a, b = ([{"id": row, name: 1.0 + more + row % 4} for row in range(30)] for more in (0, 1))
    for options in ({"metric": name}, {"columns": {"score": name}}):
        with pytest.raises(ConfigError, match=r"suggests that a low number is good.*Add --lower-is-better"):
            fulltune.verdict(a, b, **options)
        told = [fulltune.verdict(a, b, lower_is_better=lower, **options) for lower in (True, False)]
        assert [one.verdict for one in told if isinstance(one, PairVerdict)] == ["worse", "improved"]


def test_a_confidence_beside_the_answers_is_not_compared_by_default() -> None:
    """Pipelines write the confidence of an answer to a column ``score``; a higher one is no better answer."""
    a, b = answers(range(10), score=[0.5] * 100), answers(range(10), score=[0.9] * 100)
    with pytest.raises(ConfigError, match=r"may be a confidence.*--metric accuracy"):
        fulltune.verdict(a, b)
    same, higher, named = (
        fulltune.verdict(a, b, **options)
        for options in ({"metric": "accuracy"}, {"metric": "score"}, {"columns": {"score": "score"}})
    )
    assert [one.verdict for one in (same, higher, named) if isinstance(one, PairVerdict)] == [
        "no detectable change",
        "improved",
        "improved",
    ]


@pytest.mark.parametrize(
    ("name", "values", "count"),
    [
        ("document", [f"d{row // 20}" for row in range(100)], 5),
        ("docId", [row // 20 for row in range(100)], 5),
        ("text", [f"text {row // 4}" for row in range(100)], 25),
        ("source_file", [f"{row // 10}.txt" for row in range(100)], 10),
        ("problem_id", [row // 10 for row in range(100)], 10),
        ("movie", [f"movie {row // 10}" for row in range(100)], 10),
    ],
)
def test_a_column_that_looks_like_a_group_is_named(name: str, values: Sequence[Any], count: int) -> None:
    """The requirement has to hold with groups too, unless the call states that rows are independent."""
    wrong = range(0, 100, 4) if name == "text" else range(20)
    a, b = answers(wrong, **{name: values}), answers([], **{name: values})
    found = fulltune.verdict(a, b, metric="accuracy", require="improved")
    assert isinstance(found, PairVerdict)
    assert f"'{name}' has {count} values for 100 rows" in found.notes[-1]
    grouped = fulltune.verdict(a, b, metric="accuracy", require="improved", group=name)
    assert isinstance(grouped, PairVerdict)
    assert (found.verdict, found.passed) == (grouped.verdict, grouped.passed)
    assert found.headline == grouped.headline
    assert "If they are (--group with the column of ids): " in found.notes[-1]
    alone = fulltune.verdict(a, b, metric="accuracy", require="improved", group="id")
    assert isinstance(alone, PairVerdict)
    assert (alone.verdict, alone.passed, len(alone.notes)) == ("improved", True, 1)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("document_type", ["a", "b"] * 50),
        ("text", ["the same prompt"] * 100),
        ("text", [f"text {row}" for row in range(100)]),
        ("doc_length", list(range(50)) * 2),
        ("annotator", ["a", "b"] * 50),
        ("sample_id", list(range(10)) * 10),
        ("task", ["a", "b"] * 50),
    ],
)
def test_other_columns_are_no_groups(name: str, values: Sequence[Any]) -> None:
    found = fulltune.verdict(answers(range(20), **{name: values}), answers([], **{name: values}))
    assert isinstance(found, PairVerdict)
    assert len(found.notes) == 1


def test_copies_of_a_text_in_other_spellings_are_one_group() -> None:
    texts = [f"{('Text', 'text ', 'TEXT', 'text')[row % 4]} {row // 4}" for row in range(100)]
    found = fulltune.verdict(answers([1], text=texts), answers([2], text=texts))
    assert isinstance(found, PairVerdict)
    assert found.groups == 25


@pytest.mark.parametrize("form", ["d{}_{}", "{}/{}", "q{}-s{}", "topic {}#{}"])
def test_ids_that_number_the_rows_of_a_group_are_groups(form: str) -> None:
    """Chunks of documents, or several samples of a question, are not independent."""
    a, b = (
        [row | {"id": form.format(row["id"] // 12, row["id"] % 12)} for row in answers(wrong, n=96)]
        for wrong in (range(12), [])
    )
    found = fulltune.verdict(a, b, require="improved")
    assert isinstance(found, PairVerdict)
    assert (found.verdict, found.groups, found.passed) == ("no detectable change", 8, False)
    assert "The ids begin in 8 ways for 96 rows" in found.notes[-1]
    assert "improved (p = 0.00049), and the requirement would hold" in found.notes[-1]
    assert fulltune.verdict(a, b, require="improved", group="id").passed


@pytest.mark.parametrize("form", ["test-{:05}", "{:08x}-e29b-41d4-a716-446655440000", "{}"])
def test_other_ids_are_no_groups(form: str) -> None:
    rows = [row | {"id": form.format(row["id"])} for row in answers([])]
    found = fulltune.verdict(rows, rows)
    assert isinstance(found, PairVerdict)
    assert found.groups == 0
    assert "independent" not in " ".join(found.notes)


def test_a_change_that_is_not_detected_says_how_many_rows_would_do() -> None:
    found = fulltune.verdict(answers(range(12)), answers(range(4, 20)))
    assert isinstance(found, PairVerdict)
    assert found.verdict == "no detectable change"
    assert "One like the observed would need about 587 rows." in found.notes[0]
    same = fulltune.verdict(answers([1, 2]), answers([2, 3]))
    assert isinstance(same, PairVerdict)
    assert "would need" not in " ".join(same.notes)


def test_groups_are_swapped_as_a_whole(tmp_path: Path) -> None:
    documents = [f"d{row // 20}" for row in range(100)]
    a, b = answers(range(40), document=documents), answers([], document=documents)
    assert isinstance(alone := fulltune.verdict(a, b, group="id"), PairVerdict)
    assert isinstance(together := fulltune.verdict(a, b, group="document"), PairVerdict)
    assert alone.verdict == "improved"
    assert (together.verdict, together.groups, together.n) == ("too few rows", 5, 100)
    assert together.headline.startswith("5 groups of rows cannot decide")


def test_requirements_set_the_exit_code(pair: tuple[str, str]) -> None:
    a, b = pair
    assert told(a, b, "--require", "improved")[0] == 0
    assert told(a, b, "--require", "not-worse")[0] == 0
    code, output = told(b, a, "--require", "not-worse", "--margin", "0.05")
    assert code == 3
    assert "A loss of 5.0 points or more cannot be excluded" in output
    assert told(a, a, "--require", "improved")[0] == 3
    assert told(a, a, "--require", "not-worse", "--margin", "0.05")[0] == 0
    assert told(a, a, "--require", "not-worse", "--margin", "0.03")[0] == 3  # 100 rows cannot exclude 3 points


def test_several_systems_are_adjusted(tmp_path: Path) -> None:
    a = answers(range(30))
    almost = answers([*range(6, 30)])  # 6 wins, no loss: p = 0.031
    files = [written(tmp_path / f"{name}.jsonl", rows) for name, rows in (("a", a), ("b", almost), ("c", answers([])))]
    alone = fulltune.verdict(*files[:2])
    assert isinstance(alone, PairVerdict)
    assert (alone.verdict, alone.p) == ("improved", 0.03125)
    both = fulltune.verdict(files[0], files[1], files[1].replace("b.", "b."), files[2])
    assert isinstance(both, ManyVerdicts)
    assert [one.verdict for one in both.comparisons] == ["no detectable change"] * 2 + ["improved"]
    assert both.comparisons[0].p_holm == pytest.approx(0.0625)
    assert "adjusted for several comparisons (Holm, p = 0.062)" in both.comparisons[0].headline
    code, output = told(*files, "--format", "markdown", "--require", "improved")
    assert code == 0
    assert "| p (Holm) |" in output


def test_junit_and_html_are_well_formed(pair: tuple[str, str]) -> None:
    a, b = pair
    code, output = told(b, a, "--format", "junit", "--require", "not-worse")
    suite = ElementTree.fromstring(output.encode())
    assert code == 3
    assert (suite.get("tests"), suite.get("failures")) == ("1", "1")
    assert suite[0].get("name") == "a.jsonl is not worse than b.csv"
    assert "worse than b.csv" in str(suite[0][0].get("message"))
    page = told(a, b, "--format", "html")[1]
    assert page.startswith("<!doctype html>")
    assert "b.csv is better than a.jsonl" in page
    assert "http" not in page
    assert told(a, b, "--format", "markdown")[1].startswith("### ▲ b.csv against a.jsonl: improved")
    assert told(a, a, "--format", "markdown")[1].startswith("### a.jsonl (B) against a.jsonl (A): no detectable change")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1:], "a.jsonl has no answer here: '0'"),
        (lambda rows: [*rows, {"id": "new", "target": "dog", "prediction": "dog"}], "has no answer here: 'new'"),
        (lambda rows: [*rows, rows[0]], "1 id is used by several rows: '0'"),
        (lambda rows: [rows[0] | {"target": "bird"}, *rows[1:]], "'0' has 'bird' here and 'dog' there"),
        (lambda rows: [rows[0] | {"prediction": None}, *rows[1:]], "a row has no prediction"),
        (lambda rows: [rows[0] | {"id": None}, *rows[1:]], "a row has no id"),
        (lambda rows: [{"key": i, **row} for i, row in enumerate(rows) if row.pop("id") is not None], "no column 'id'"),
        (
            lambda rows: [{"id": r["id"], "target": r["target"], "predictoin": r["prediction"]} for r in rows],
            "did you mean 'predictoin'? name it with --column prediction=NAME",
        ),
        (lambda rows: [{"id": r["id"], "prediction": r["prediction"]} for r in rows], "there is no column 'target'"),
        (lambda rows: [{"id": r["id"], "score": "NaN"} for r in rows], "the score 'NaN' is not a finite number"),
        (lambda rows: [{"id": r["id"], "score": -1e308} for r in rows], "the score -1e+308 is too large"),
    ],
    ids=["missing", "more", "twice", "target", "no-answer", "no-id", "id", "typo", "no-target", "nan", "huge"],
)
def test_each_problem_is_one_clear_message(tmp_path: Path, change: Any, message: str) -> None:
    a = written(tmp_path / "a.jsonl", answers([1], n=20))
    b = written(tmp_path / "b.jsonl", change(answers([2], n=20)))
    code, output = told(a, b)
    assert code == 1
    assert message.lower() in " ".join(output.lower().split())
    assert "Traceback" not in output


def test_all_problems_are_reported_at_once_and_each_kind_briefly(tmp_path: Path) -> None:
    rows = [row | {"prediction": None} for row in answers([], n=50)]
    code, output = told(written(tmp_path / "a.jsonl", answers([], n=50)), written(tmp_path / "b.jsonl", rows))
    assert code == 1
    assert "b.jsonl:3" in output
    assert "b.jsonl:4" not in output
    assert "a row has no prediction" in output
    assert "47 more problems of these kinds" in output


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--metric", "accurate"), 1, "did you mean 'accuracy'?"),
        (("--group", "documents"), 1, "there is no column 'documents'"),
        (("--margin", "5"), 1, "a number between 0 and 1"),
        (("--lower-is-better",), 1, "the direction of 'accuracy' is known"),
        (("--column", "prediction"), 2, "'prediction' is not ROLE=NAME"),
        (("--column", "answer=x"), 1, "unknown roles of columns: answer"),
        (("--require", "better"), 2, "not-worse"),
    ],
    ids=["metric", "group", "margin", "direction", "column", "role", "require"],
)
def test_wrong_options_are_explained(pair: tuple[str, str], words: tuple[str, ...], code: int, message: str) -> None:
    found, output = told(*pair, *words)
    assert found == code, output
    assert message.lower() in " ".join(output.lower().replace("│", " ").split())


@pytest.mark.parametrize("resamples", [0, 10**9])
def test_resamples_that_cannot_be_drawn_are_refused(pair: tuple[str, str], resamples: int) -> None:
    with pytest.raises(ConfigError, match="100 to 100,000"):
        fulltune.verdict(*pair, metric="macro_f1", resamples=resamples)


def test_one_file_and_missing_files_are_explained(pair: tuple[str, str], tmp_path: Path) -> None:
    assert told(pair[0])[0] == 2
    code, output = told(pair[0], str(tmp_path / "b.jsonl"))
    assert (code, "there is no such file" in " ".join(output.split())) == (1, True)
    code, output = told(pair[0], "20260101-unknown", "--out", str(tmp_path))
    assert code == 1


def test_assertions_for_pytest(pair: tuple[str, str]) -> None:
    a, b = pair
    assert assert_not_worse(b, a).verdict == "improved"
    assert assert_improved(b, a).passed
    with pytest.raises(AssertionError, match=r"a\.jsonl is worse than b\.csv"):
        assert_not_worse(a, b, margin=0.02)
    with pytest.raises(AssertionError, match="No detectable change"):
        assert_improved(a, a)


def test_it_starts_without_torch(pair: tuple[str, str]) -> None:
    code = (
        "import sys, fulltune\n"
        f"fulltune.verdict({pair[0]!r}, {pair[1]!r})\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_runs_are_named_like_files(tmp_path: Path) -> None:
    """The metric is that of the run; a baseline of a run is named after ``#``."""
    info = {"accuracy": MetricInfo(direction="higher", version=get("accuracy").version, source="")}
    names = {"one": 10, "two": 40}
    for name, right in names.items():
        details = {"labels": ["no", "yes"]}
        record = samples.record(run_id=name, metric="accuracy", metrics=info, details=details, retention={})
        with RunFolder.create(tmp_path, name) as folder:
            folder.write_text("record.json", record.to_json())
            with folder.append("predictions.jsonl") as write:
                for system, hits in (("tuned", right), ("tfidf", 30)):
                    for row in range(50):
                        output = "yes" if row < hits else "no"
                        write(Prediction(system=system, id=str(row), input="", reference="yes", output=output))
    found = fulltune.verdict("one", "two", out=tmp_path)
    assert isinstance(found, PairVerdict)
    assert (found.metric, found.verdict, found.difference.value) == ("accuracy", "improved", pytest.approx(0.6))
    baseline = fulltune.verdict("two#tfidf", "two", out=tmp_path)
    assert isinstance(baseline, PairVerdict)
    assert (baseline.a.name, baseline.a.value, baseline.b.value) == ("two#tfidf", 0.6, 0.8)
    with pytest.raises(fulltune.StoreError, match="there is no prediction of few_shot"):
        fulltune.verdict("two#few_shot", "two", out=tmp_path)
    own = [{"id": row, "target": "yes", "prediction": "yes"} for row in range(50)]
    mixed = fulltune.verdict("two", own, out=tmp_path)
    assert isinstance(mixed, PairVerdict)
    assert (mixed.verdict, mixed.b.value) == ("improved", 1.0)


def test_bits_per_byte_need_no_targets(tmp_path: Path) -> None:
    """A model has references for the rows that it continued; n-grams continue none."""
    info = {"bits_per_byte": MetricInfo(direction="lower", version=1, source="")}
    record = samples.record(run_id="one", metric="bits_per_byte", metrics=info, retention={})
    with RunFolder.create(tmp_path, "one") as folder:
        folder.write_text("record.json", record.to_json())
        with folder.append("predictions.jsonl") as write:
            for system, nll, reference in (("ngram", 40.0, ""), ("tuned", 20.0, "the end")):
                for row in range(30):
                    values = {"nll": nll + row % 5, "bytes": 20}
                    write(
                        Prediction(system=system, id=str(row), input="", reference=reference, output="", values=values)
                    )
    found = fulltune.verdict("one#ngram", "one", out=tmp_path)
    assert isinstance(found, PairVerdict)
    assert (found.metric, found.n, found.verdict) == ("bits_per_byte", 30, "improved")


def of(rows: Sequence[Row], **changes: Any) -> list[Row]:
    return [row | changes for row in rows]


SCORES = [{"id": row, "score": 0.1 * (row % 7)} for row in range(40)]
LIKELIHOODS = [{"id": row, "score": 0, "nll": 40.0 + row % 5, "bytes": 20, "tokens": 10} for row in range(40)]


@pytest.mark.parametrize(
    ("a", "b", "options", "message"),
    [
        (answers([1], n=40), SCORES, {}, "no targets and predictions, which accuracy is computed from"),
        (answers([1], n=40), of(SCORES, prediction=""), {}, "no targets and predictions"),
        (SCORES, SCORES, {"metric": "macro_f1"}, "no targets and predictions"),
        (of(SCORES, target="", prediction=""), SCORES, {"metric": "bleu"}, "no targets and predictions"),
        (answers([1]), answers([2]), {"columns": {"prediction": "target"}}, "'target' is both target and prediction"),
        (LIKELIHOODS, of(LIKELIHOODS, bytes=40), {"metric": "bits_per_byte"}, "of 1,600 bytes; those of .* of 800"),
        (LIKELIHOODS, of(LIKELIHOODS, bytes=-20), {"metric": "bits_per_byte"}, "nll or bytes is below 0"),
        (LIKELIHOODS, of(LIKELIHOODS, tokens=11), {"metric": "perplexity"}, "or use bits_per_byte"),
        (
            LIKELIHOODS,
            [*LIKELIHOODS[:39], LIKELIHOODS[39] | {"nll": None}],
            {"metric": "bits_per_byte"},
            "1 row has no",
        ),
        (of(SCORES, match=True), [*of(SCORES[1:], match=True), SCORES[0]], {"metric": "execution_accuracy"}, "'0'"),
        (answers([1]), answers([2]), {"metric": "ece"}, "'ece' cannot decide"),
        (answers([1]), answers([2]), {"metric": "length_ratio"}, "'length_ratio' cannot decide"),
        (of(SCORES, label="cat"), of(SCORES, label="cat"), {}, "may be a confidence.*Add --metric score\\.$"),
        (of(SCORES, prediction="cat"), of(SCORES, prediction="dog"), {}, "may be a confidence"),
        (
            SCORES,
            [row | {"score": 100 * row["score"]} for row in SCORES],
            {},
            "28.8 on average, 0.287 in .* the same unit",
        ),
    ],
    ids=[
        *(
            "scores",
            "no-target",
            "label-metric",
            "empty",
            "one-column",
            "bytes",
            "negative",
            "tokens",
            "no-nll",
            "rows",
        ),
        *("calibration", "no-direction", "pipeline", "confidence", "percent"),
    ],
)
def test_what_would_be_an_artifact_is_refused(
    a: Sequence[Row], b: Sequence[Row], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(fulltune.FulltuneError, match=message):
        fulltune.verdict(a, b, **options)


def test_metrics_of_values_need_no_answers() -> None:
    """Tokenizers may begin to predict at other bytes of a text."""
    better = [row | {"nll": row["nll"] / 2, "bytes": 19, "match": True} for row in LIKELIHOODS]
    for metric in ("bits_per_byte", "execution_accuracy"):
        found = fulltune.verdict(of(LIKELIHOODS, match=False), better, metric=metric)
        assert isinstance(found, PairVerdict)
        assert (found.verdict, found.n) == ("improved", 40)


def test_groups_of_saved_answers_are_used(tmp_path: Path) -> None:
    """Answers of a run or a judge have a column ``group``; another tool's answers to the same rows need none."""
    files = []
    for name, right in (("a", 10), ("b", 60)):
        rows = [
            Prediction(
                system="",
                id=str(row),
                input="",
                reference="cat",
                output="cat" if row < right else "dog",
                group=f"d{row // 10}",
            )
            for row in range(60)
        ]
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text("\n".join(row.model_dump_json() for row in rows), encoding="utf-8")
    own = [{"id": row, "target": "cat", "prediction": "cat"} for row in range(60)]
    for a, b in ((files[0], files[1]), (files[0], own), (own, files[0])):
        found = fulltune.verdict(a, b)
        assert isinstance(found, PairVerdict)
        assert (found.groups, found.n) == (6, 60)
    moved = tmp_path / "moved.jsonl"
    moved.write_text(files[0].read_text(encoding="utf-8").replace("d5", "d4"), encoding="utf-8")
    with pytest.raises(fulltune.DataError, match=r"10 rows are in other groups than in .*a\.jsonl: '50', '51', '52'"):
        fulltune.verdict(own, files[0], moved)


def test_margins_of_several_systems_are_adjusted() -> None:
    a, b = answers([0, 1], n=280), answers([0, 1, 2], n=280)
    alone = fulltune.verdict(a, b, margin=0.02)
    several = fulltune.verdict(a, b, b, b, b, margin=0.02, require="not-worse")
    assert isinstance(alone, PairVerdict)
    assert isinstance(several, ManyVerdicts)
    first = several.comparisons[0].not_worse
    assert first is not None
    assert alone.not_worse is not None
    assert (alone.not_worse.verdict, first.verdict) == ("not worse", "cannot tell")
    assert first.p == pytest.approx(4 * alone.not_worse.p)
    assert not several.passed


def test_notes_state_direction_level_and_spelling() -> None:
    higher = fulltune.verdict(SCORES, SCORES, confidence=0.9)
    lower = fulltune.verdict(SCORES, SCORES, lower_is_better=True)
    spelled = fulltune.verdict(of(answers([]), prediction="CAT"), answers([]))
    notes = [" ".join(found.notes) for found in (higher, lower, spelled) if isinstance(found, PairVerdict)]
    assert "Higher is better (else: --lower-is-better)." in notes[0]
    assert "at 0.9 instead of 0.95" in notes[0]
    assert "Lower is better." in notes[1]
    assert "Unicode form: 66 rows of rows in memory (A)." in notes[2]


def test_a_score_that_is_not_finite_is_never_passed() -> None:
    diverged = [*LIKELIHOODS[1:], LIKELIHOODS[0] | {"nll": float("nan")}]
    found = fulltune.verdict(LIKELIHOODS, diverged, metric="bits_per_byte", require="not-worse")
    assert isinstance(found, PairVerdict)
    assert found.not_worse is not None
    assert (found.passed, found.not_worse.verdict) == (False, "cannot tell")
    assert "a score is not a finite number" in found.notes[-1]


def test_junit_is_well_formed_for_every_name(tmp_path: Path) -> None:
    files = [written(tmp_path / name, answers([])) for name in ("a.jsonl", "b\a<&.jsonl")]
    suite = ElementTree.fromstring(told(*files, "--format", "junit")[1].encode())
    assert str(suite[0].get("name")).startswith("b\N{REPLACEMENT CHARACTER}<&.jsonl")


def test_many_rows_in_memory_have_different_names() -> None:
    found = fulltune.verdict(*[answers([1], n=10)] * 30)
    assert isinstance(found, ManyVerdicts)
    assert len({one.b.name for one in found.comparisons}) == 29


def test_a_better_system_that_guesses_is_named() -> None:
    """A guess has a higher macro-F1 than one label for all rows, and knows as little."""
    targets = ["cat" if row % 5 else "dog" for row in range(1000)]
    one_label = [{"id": row, "target": label, "prediction": "cat"} for row, label in enumerate(targets)]
    guess = [row | {"prediction": "dog" if row["id"] // 5 % 5 == 0 else "cat"} for row in one_label]
    right = [row | {"prediction": row["target"]} for row in one_label]
    notes = []
    for answered in (guess, right):
        found = fulltune.verdict(one_label, answered, metric="macro_f1")
        assert isinstance(found, PairVerdict)
        assert found.verdict == "improved"
        notes.append(" ".join(found.notes))
    assert "cannot be told from guessing: MCC 0.000 (" in notes[0]
    assert "guessing" not in notes[1]
    passed = [fulltune.verdict(one_label, given, metric="macro_f1", require="improved") for given in (guess, right)]
    assert [found.passed for found in passed] == [False, True]  # as a run, which would be undecided
    assert isinstance(passed[0], PairVerdict)
    assert "so that the requirement does not hold" in " ".join(passed[0].notes)


def test_labels_that_are_guessed_are_named_in_every_metric() -> None:
    """One label for all rows is better than a coin, whatever metric compares the answers."""
    targets = ["cat" if row % 5 else "dog" for row in range(200)]
    coin = [
        {"id": row, "target": label, "prediction": "dog" if row % 7 < 3 else "cat"} for row, label in enumerate(targets)
    ]
    for metric in ("accuracy", "exact_match", "rouge1"):
        constant, right = ([row | {"prediction": given or row["target"]} for row in coin] for given in ("cat", ""))
        found = [fulltune.verdict(coin, given, metric=metric, require="improved") for given in (constant, right)]
        assert [(one.verdict, one.passed) for one in found if isinstance(one, PairVerdict)] == [
            ("improved", False),
            ("improved", True),
        ]


def test_sets_of_labels_that_are_guessed_are_named() -> None:
    """All labels for all rows have a higher F1 than few."""
    targets = [["x"] * (row % 2) + ["y"] * (row % 3 > 0) + ["z"] for row in range(90)]
    few = [{"id": row, "target": labels, "prediction": ["x"] * (row % 7 == 0)} for row, labels in enumerate(targets)]
    every, right = ([row | {"prediction": given or row["target"]} for row in few] for given in (["x", "y", "z"], []))
    found = [fulltune.verdict(few, given, metric="micro_f1", require="improved") for given in (every, right)]
    assert [(one.verdict, one.passed) for one in found if isinstance(one, PairVerdict)] == [
        ("improved", False),
        ("improved", True),
    ]
    assert isinstance(found[0], PairVerdict)
    assert "cannot be told from guessing: z = 0.00 for the relation to the targets" in " ".join(found[0].notes)


def test_free_answers_are_no_guess() -> None:
    """Each question of a set has its own answer; a few right ones are known."""
    none = [{"id": row, "target": f"answer {row}", "prediction": "unknown"} for row in range(40)]
    some = [row | {"prediction": row["target"]} if row["id"] < 12 else row for row in none]
    assert fulltune.verdict(none, some, require="improved").passed


def test_likelihoods_of_more_bytes_are_no_improvement() -> None:
    """They have fewer bits for each of them, and may hide a loss."""
    counted = of(LIKELIHOODS, bytes=100)
    longer, better = of(counted, bytes=109), of(counted, nll=30.0)
    for given, verdict in ((longer, "no detectable change"), (better, "improved")):
        found = fulltune.verdict(counted, given, metric="bits_per_byte")
        assert isinstance(found, PairVerdict)
        assert found.verdict == verdict
        assert ("a difference of 0.09 of the score is no finding" in " ".join(found.notes)) == (given is longer)
    noise = [row | {"nll": row["nll"] - 0.45 * (row["id"] % 3)} for row in longer]
    by_chance = fulltune.verdict(counted, noise, metric="bits_per_byte")
    assert isinstance(by_chance, PairVerdict)
    assert -by_chance.difference.value > 0.09 * by_chance.a.value
    assert by_chance.difference.interval[1] > -0.09 * by_chance.a.value
    assert by_chance.verdict == "no detectable change"
    hidden = fulltune.verdict(counted, of(longer, nll=45.0), metric="bits_per_byte", margin=0.02)
    assert isinstance(hidden, PairVerdict)
    assert hidden.not_worse is not None
    assert hidden.not_worse.verdict == "cannot tell"


def test_metrics_of_other_columns_need_no_answers() -> None:
    a = [{"id": row, "nll": 40.0 + row % 5, "bytes": 20} for row in range(40)]
    found = fulltune.verdict(a, of(a, nll=20.0), metric="bits_per_byte")
    assert isinstance(found, PairVerdict)
    assert found.verdict == "improved"
