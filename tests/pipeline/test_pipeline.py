"""The complete job on tiny models: every family and task, no change, leaks, and failed training."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fakes
import pytest
from matrix import often

import fulltune
from fulltune.errors import DataError, IncompatibleError, ModelError
from fulltune.pipeline import run
from fulltune.records.run import Prediction, Record, read_record
from fulltune.store.runs import status

WORDS = {"law": ["court", "state", "party", "term"], "film": ["film", "star", "good", "great"]}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def clauses(start: int, count: int) -> list[dict[str, Any]]:
    rows = []
    for index in range(start, start + count):
        label = ("law", "film")[index % 2]
        words = WORDS[label]
        text = " ".join(words[(index // (2 * 4**place)) % 4] for place in range(3))
        rows.append({"text": f"the {text} is {index}", "label": label})
    return rows


def tales(start: int, count: int) -> list[dict[str, Any]]:
    heroes = ["fox", "king", "cat", "dog", "hen", "bear", "tsar"]
    return [
        {"text": f"Once upon a time a {heroes[i % 7]} met a {heroes[(i // 7) % 7]} and said {i}. " * 2}
        for i in range(start, start + count)
    ]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return prepared(tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a place whose files no test changes."""
    return prepared(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="module")
def finished(shared: Path) -> Callable[..., Record]:
    """Return a function that makes a run, once for all tests that ask for the same one."""

    @functools.cache
    def make(kind: str, task: str, data: str, **train: Any) -> Record:
        return fulltune.run(config(shared, kind, task, data, **train), out=shared / "runs")

    return make


def prepared(tmp_path: Path) -> Path:
    """Write the rows and the database of all jobs."""
    write(tmp_path / "clauses.train.jsonl", clauses(0, 40))
    write(tmp_path / "clauses.eval.jsonl", clauses(40, 16))
    write(tmp_path / "tales.train.jsonl", tales(0, 12))
    write(tmp_path / "tales.eval.jsonl", tales(12, 6))
    write(tmp_path / "pairs.train.jsonl", [{"source": f"say {i}", "target": f"{i} it is"} for i in range(20)])
    write(tmp_path / "pairs.eval.jsonl", [{"source": f"say {i}", "target": f"{i} it is"} for i in range(100, 106)])
    questions = [
        {"question": f"who has {i} legs?", "sql": f"SELECT name FROM animal WHERE legs = {i}", "db_id": "zoo"}
        for i in range(30)
    ]
    write(tmp_path / "sql.train.jsonl", questions[:20])
    write(tmp_path / "sql.eval.jsonl", questions[20:])
    with sqlite3.connect(tmp_path / "zoo.sqlite") as connection:
        connection.execute("CREATE TABLE animal (name TEXT, legs INTEGER)")
        connection.execute("INSERT INTO animal VALUES ('fox', 4), ('hen', 2)")
    connection.close()
    return tmp_path


def config(place: Path, kind: str, task: str, data: str, **train: Any) -> dict[str, Any]:
    folder = place / f"base-{kind}"
    if not folder.exists():
        fakes.save(kind, folder)
    options = {"train": str(place / f"{data}.train.jsonl"), "eval": str(place / f"{data}.eval.jsonl")}
    if task == "text2sql":
        options["databases"] = str(place)
    return {
        "model": str(folder),
        "task": task,
        "data": options,
        "train": {"epochs": 1, "batch_size": 4, "learning_rate": 1e-3, "evaluations": 2} | train,
        "baselines": {"few_shot": 2},
        "evaluation": {"resamples": 200, "max_new_tokens": 8, "continuations": 2, "batch_size": 4},
        "guards": {"forgetting": {"limit": 8}},
    }


JOBS = [
    ("bert", "classification", "clauses"),
    ("gpt2", "classification", "clauses"),
    ("t5", "classification", "clauses"),
    ("gpt2", "causal-lm", "tales"),
    ("llama", "causal-lm", "tales"),
    ("t5", "seq2seq", "pairs"),
    ("bart", "seq2seq", "pairs"),
    ("llama", "seq2seq", "pairs"),
    ("t5", "text2sql", "sql"),
    ("gpt2", "text2sql", "sql"),
]
OFTEN = [
    *(("bert", "classification"), ("gpt2", "causal-lm")),
    *(("t5", "seq2seq"), ("llama", "seq2seq"), ("t5", "text2sql")),
]


#: Enough training to answer all rows of ``clauses`` correctly.
ENOUGH = {"epochs": 4, "learning_rate": 5e-3}

#: Baselines besides zero-shot and few-shot.
BASELINES = {
    "classification": ("majority", "tfidf", "linear_probe"),
    "causal-lm": ("ngram",),
    "seq2seq": ("copy", "lead", "nearest"),
    "text2sql": ("nearest", "nearest_values"),
}


@pytest.mark.filterwarnings("ignore:.*had no room for all")
@pytest.mark.parametrize(
    ("kind", "task", "data"),
    often(JOBS, lambda job: job[:2] in OFTEN),
    ids=[f"{kind}-{task}" for kind, task, _ in JOBS],
)
def test_every_family_and_task_runs_end_to_end(
    kind: str, task: str, data: str, finished: Callable[..., Record]
) -> None:
    record = finished(kind, task, data)
    folder = record.folder
    assert {path.name for path in folder.iterdir()} >= {
        "config.yaml", "plan.json", "audit.json", "baselines.json", "steps.jsonl", "predictions.jsonl", "model",
        "record.json", "report.html", "status.json",
    }  # fmt: skip
    assert read_record(folder / "record.json").to_json() == record.to_json()  # NaN is kept, and is not equal to itself
    assert status(folder).state == "finished"
    assert (record.parameters.frozen, record.parameters.dtype) == (0, "float32")
    assert record.parameters.moved > 0.9
    assert record.training.steps == len(clauses(0, 40)) // 4 if data == "clauses" else record.training.steps > 0
    systems = {"zero_shot", "few_shot", "tuned", *BASELINES.get(task, ())}
    assert set(record.baselines) == systems - {"tuned"}
    assert set(record.scores) == systems
    assert {name.removeprefix("tuned vs ") for name in record.comparison} == systems - {"tuned"}
    rows = {score.n for score in (scores[record.metric] for scores in record.scores.values())}
    assert rows == {record.data.eval.rows}
    lines = [Prediction.model_validate_json(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == len(systems) * record.data.eval.rows


def test_a_run_that_learns_no_more_than_tfidf_is_undecided(finished: Callable[..., Record]) -> None:
    record = finished("bert", "classification", "clauses", **ENOUGH)
    assert record.scores["tuned"]["accuracy"].value == 1.0
    assert record.comparison["tuned vs majority"].verdict == "improved"
    assert record.scores["tfidf"]["accuracy"].value == 1.0
    assert record.outcome == "undecided"
    assert record.headline.startswith(
        "Prefer TF-IDF. The tuned model cannot be told from TF-IDF: macro-F1 1.000 → 1.000"
    )
    assert record.recommendation is not None
    assert (record.recommendation.use, record.recommendation.action) == ("tfidf", "use the baseline")


def test_the_same_config_twice_gives_the_same_weights_and_scores(shared: Path, finished: Callable[..., Record]) -> None:
    first = finished("bert", "classification", "clauses")
    second = fulltune.run(config(shared, "bert", "classification", "clauses"), out=shared / "runs")
    assert first.run_id != second.run_id
    assert first.scores == second.scores
    hashes = [
        hashlib.sha256((record.folder / "model" / "model.safetensors").read_bytes()).hexdigest()
        for record in (first, second)
    ]
    assert hashes[0] == hashes[1]


def test_a_second_run_reuses_the_baselines(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fulltune.tasks.causal_lm import CausalLM

    job = config(place, "gpt2", "causal-lm", "tales")
    job["baselines"]["skip"] = ["ngram"]  # counts suit these few sentences, and beat the tiny model
    first = fulltune.run(job, out=place / "runs")
    assert "Not compared with the n-gram model (baselines.skip)." in first.warnings
    assert (first.outcome, first.recommendation.use if first.recommendation else "") == ("accepted", "tuned")
    assert first.headline.startswith("Use it. Tuning improved bits per byte by ")
    asked, predictor = [], CausalLM.predictor

    def watched(self: CausalLM, bundle: Any, system: str, shots: Any = ()) -> Any:
        answer = predictor(self, bundle, system, shots)

        def predict(examples: Any) -> Any:
            asked.append(system)
            return answer(examples)

        return predict

    monkeypatch.setattr(CausalLM, "predictor", watched)
    second = fulltune.run(job, out=place / "runs")
    assert asked == ["tuned", "retention", "retention"]  # the tuned model alone, on its rows and on both languages
    assert second.scores["few_shot"] == first.scores["few_shot"]


def test_a_model_that_did_not_move_is_no_detectable_change(finished: Callable[..., Record]) -> None:
    record = finished("gpt2", "causal-lm", "tales", learning_rate=1e-30, max_steps=1)
    comparison = record.comparison["tuned vs zero_shot"]
    assert (comparison.delta, comparison.p, comparison.verdict) == (0.0, 1.0, "no detectable change")
    assert record.parameters.moved == 0.0
    assert record.headline.startswith("Raise the rate. Nothing was learned. The tuned model")
    assert record.outcome == "rejected"


def test_few_leaks_are_left_out_and_scored_beside(place: Path) -> None:
    write(place / "clauses.eval.jsonl", [*clauses(40, 19), *clauses(0, 1)])
    record = fulltune.run(config(place, "bert", "classification", "clauses", max_steps=2), out=place / "runs")
    leaks = record.data.summary.leaks
    assert leaks is not None
    assert (leaks.rows, leaks.of, leaks.counted, leaks.ids) == (1, 20, False, record.data.summary.leaks.ids)
    [leaked] = leaks.ids
    assert {score.n for scores in record.scores.values() for score in scores.values()} == {19}
    assert record.scores_all_rows["tuned"]["accuracy"].n == 20
    assert record.scores_without_leaks == record.scores
    assert {comparison.n for comparison in record.comparison.values()} == {19}
    assert sum(map(sum, record.details["confusion"]["matrix"])) == 19
    folder = place / "runs" / record.run_id
    assert json.loads((folder / "baselines.json").read_text())["zero_shot"]["accuracy"]["n"] == 19
    answers = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert {answer["system"] for answer in answers if answer["id"] == leaked} == record.scores.keys()
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "The same on all rows" in page
    again = fulltune.compare(record.run_id, record.run_id, out=place / "runs")
    assert again.differences[0].n == 19
    scored = fulltune.evaluate(record.run_id, out=place / "runs")
    assert scored.scores == record.scores["tuned"]
    assert scored.warnings[-1] == "1 row of eval is left out of the scores, as in the run: also in train"


def test_more_leaks_stop_the_run_unless_allowed_and_are_then_counted(place: Path) -> None:
    rows = clauses(40, 16)
    write(place / "clauses.eval.jsonl", [*rows, *clauses(0, 3)])
    job = config(place, "bert", "classification", "clauses", max_steps=2)
    with pytest.raises(DataError, match="allow_leaks"):
        fulltune.run(job, out=place / "runs")
    [folder] = [path for path in (place / "runs").iterdir() if path.name != "cache"]
    assert status(folder).state == "refused"
    assert (folder / "audit.json").exists()
    assert not (folder / "model").exists()
    job["data"]["allow_leaks"] = True
    record = fulltune.run(job, out=place / "runs")
    assert record.data.audit.leaked_rows == 3
    assert record.scores["tuned"]["accuracy"].n == 19
    assert record.scores_all_rows == record.scores
    assert record.scores_without_leaks["tuned"]["accuracy"].n == 16


def test_a_rate_far_too_high_ends_in_a_clean_stop(place: Path) -> None:
    record = fulltune.run(config(place, "gpt2", "causal-lm", "tales", learning_rate=1e9), out=place / "runs")
    assert record.outcome == "stopped"
    assert record.headline.startswith("Lower the rate. Training was stopped")
    assert [event.verdict for event in record.guards] == ["roll back", "roll back", "stop"]
    assert read_record(place / "runs" / record.run_id / "record.json").outcome == "stopped"


def test_the_base_is_never_written_to(place: Path) -> None:
    job = config(place, "bert", "classification", "clauses", max_steps=2)
    base = Path(job["model"])
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    for path in [*base.iterdir(), base]:
        path.chmod(path.stat().st_mode & ~0o222)
    fulltune.run(job, out=place / "runs")
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before


def test_evaluate_a_run_gives_the_scores_of_its_record(place: Path) -> None:
    record = fulltune.run(config(place, "bert", "classification", "clauses", max_steps=2), out=place / "runs")
    again = fulltune.evaluate(record.run_id, out=place / "runs")
    assert again.system == "tuned"
    assert again.scores == record.scores["tuned"]
    for name in (record.run_id[:12], "latest"):
        found = fulltune.evaluate(name, out=place / "runs")
        assert (found.system, found.scores) == ("tuned", again.scores)


def test_evaluate_a_run_on_other_rows_keeps_its_labels(
    tmp_path: Path, shared: Path, finished: Callable[..., Record]
) -> None:
    record = finished("bert", "classification", "clauses", **ENOUGH)
    rows = [row for row in clauses(80, 8) if row["label"] == "law"]
    one_label = f"data.eval={write(tmp_path / 'other.jsonl', rows)}"
    found = fulltune.evaluate(
        record.run_id, out=shared / "runs", overrides=[one_label, f"data.train={tmp_path / 'other.jsonl'}"]
    )
    assert found.scores["accuracy"].value == 1.0
    write(tmp_path / "other.jsonl", [row | {"label": "tax"} for row in rows])
    with pytest.raises(DataError, match="unknown to the model: 'tax'"):
        fulltune.evaluate(record.run_id, out=shared / "runs", overrides=[one_label])


def test_evaluate_a_base_is_zero_shot(shared: Path, finished: Callable[..., Record]) -> None:
    record = finished("gpt2", "causal-lm", "tales")
    job = config(shared, "gpt2", "causal-lm", "tales")
    found = fulltune.evaluate(job["model"], job, out=shared / "runs")
    assert (found.system, found.scores) == ("zero_shot", record.scores["zero_shot"])


def test_comparable_runs_are_compared_and_others_refused(shared: Path, finished: Callable[..., Record]) -> None:
    short = finished("bert", "classification", "clauses", max_steps=1, learning_rate=1e-9)
    long = finished("bert", "classification", "clauses", **ENOUGH)
    forward = fulltune.compare(short.run_id, long.run_id, out=shared / "runs")
    backward = fulltune.compare(long.run_id, short.run_id, out=shared / "runs")
    assert [forward.differences[0].verdict, backward.differences[0].verdict] == ["improved", "worse"]
    assert forward.differences[0].delta == pytest.approx(-backward.differences[0].delta)
    other = finished("gpt2", "causal-lm", "tales")
    with pytest.raises(IncompatibleError, match="task"):
        fulltune.compare(long.run_id, other.run_id, out=shared / "runs")


def test_a_model_of_the_wrong_family_is_refused_before_training(place: Path) -> None:
    with pytest.raises(ModelError, match="encoder family"):
        fulltune.run(config(place, "bert", "causal-lm", "tales"), out=place / "runs")


def test_plan_trains_nothing_and_makes_no_run(place: Path) -> None:
    plan = run.plan(config(place, "bert", "classification", "clauses", epochs=2), out=place / "runs")
    assert plan.total_steps == 20
    assert not (place / "runs").exists()


def test_a_fraction_is_held_out_of_train_for_eval_and_valid(place: Path) -> None:
    job = config(place, "bert", "classification", "clauses")
    job["data"] = {"train": str(place / "clauses.train.jsonl"), "eval": 0.2, "valid": 0.2}
    job["train"]["max_steps"] = 2
    record = fulltune.run(job, out=place / "runs")
    assert record.data.valid is not None
    assert record.data.train.rows + record.data.eval.rows + record.data.valid.rows == 40
    assert math.isfinite(record.scores["tuned"]["accuracy"].value)
