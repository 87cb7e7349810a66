"""Reference queries are run before training; rows whose reference fails are not scored, as the record reports."""

from __future__ import annotations

import json
import pickle
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import fakes
import pytest

import fulltune
from fulltune.cli.render.answers import _details
from fulltune.config import Config, load_config
from fulltune.data.findings import Audit
from fulltune.errors import ConfigError, DataError
from fulltune.evaluation.baselines.cache import cache_parts
from fulltune.metrics.accumulate import Accumulator
from fulltune.models.inference import Generated
from fulltune.pipeline import run as pipeline
from fulltune.store.cache import cache_key
from fulltune.tasks import dataset
from fulltune.tasks.base import Example
from fulltune.tasks.text2sql import references
from fulltune.tasks.text2sql.execution import Result
from fulltune.tasks.text2sql.task import Text2SQL

ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "dbs").mkdir()
    with closing(sqlite3.connect(tmp_path / "dbs" / "shop.sqlite")) as connection:
        connection.executescript(
            "CREATE TABLE item (id INT, name TEXT); INSERT INTO item VALUES (1, 'ant'), (2, 'bee')"
        )
    return tmp_path


def good(number: int) -> str:
    return f"SELECT name FROM item WHERE id > {number % 2} AND {number} = {number}"


def write(path: Path, queries: list[str], db_id: str = "shop") -> str:
    rows = [{"question": f"what about {i} in {path.stem}?", "sql": q, "db_id": db_id} for i, q in enumerate(queries)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def options(folder: Path, train: list[str], scored: list[str], **more: Any) -> dict[str, Any]:
    data = {"train": write(folder / "train.jsonl", train), "eval": write(folder / "eval.jsonl", scored)}
    settings = {"sql_seconds": 0.2, "max_new_tokens": 4, "resamples": 100} | more.pop("evaluation", {})
    return {
        "model": "m",
        "task": "text2sql",
        "data": data | {"databases": str(folder / "dbs"), "allow_leaks": True} | more,
        "train": {"max_steps": 1, "batch_size": 4, "evaluations": 1},
        "baselines": {"few_shot": 1},
        "evaluation": settings,
    }


def audited(folder: Path, train: list[str], evaluation: list[str], **more: Any) -> Audit:
    config = load_config(options(folder, train, evaluation, **more))
    task = Text2SQL(config)
    task, data = dataset.prepare(config, task)
    return dataset.inspect(config, task, data, fakes.bundle("t5"), dataset.audit_rows(config, task, data))[0]


def about(audit: Audit, kind: str = "reference_queries_fail") -> dict[str, Any]:
    return {finding.split: finding for finding in audit.findings if finding.kind == kind}


def test_reference_queries_that_run_are_not_reported(folder: Path) -> None:
    assert about(audited(folder, [good(i) for i in range(8)], [good(i) for i in range(4)])) == {}


def test_queries_that_train_has_too_are_counted(folder: Path) -> None:
    known = [good(i) for i in range(8)]
    found = about(audited(folder, known, [f"{good(0)} ;", good(1).replace(" ", "\n"), good(9)]), "repeated_queries")
    assert found["eval"].message.startswith("2 of the 3 queries of eval also occur in train: the score says how well")
    assert (found["eval"].count, len(found["eval"].ids)) == (2, 2)
    assert "data.group" in found["eval"].fix
    assert about(audited(folder, known, [good(1), *(good(i) for i in range(10, 15))]), "repeated_queries") == {}


def test_random_reference_queries_are_a_finding(folder: Path) -> None:
    random = ["SELECT name FROM item ORDER BY RANDOM ( ) LIMIT 1", "SELECT hex(randomblob(4))"]
    plain = [good(0), "SELECT name AS random FROM item WHERE name <> 'random()' -- random()"]
    found = about(audited(folder, [good(1), *random], [*plain, *random]), "random_queries")
    assert list(found) == ["eval"]
    assert found["eval"].message.startswith("2 of the 4 reference queries of eval call a random function")
    assert found["eval"].ids == ("eval.jsonl:3", "eval.jsonl:4")


def test_reference_queries_that_fail_are_a_finding_with_their_rows(folder: Path) -> None:
    bad = "SELECT year(name) FROM item"
    scored = [good(2), bad, "SELECT absent FROM item"]
    with pytest.warns(UserWarning, match="2 of the 3 reference queries of eval cannot be run"):
        audit = audited(folder, [good(0), bad, good(1), bad], scored)
    train, evaluation = about(audit)["train"], about(audit)["eval"]
    assert train.message == (
        "2 of the 4 reference queries of train cannot be run: no such function: year (2) "
        "(rows train.jsonl:2, train.jsonl:4); the model is trained to write them all the same"
    )
    assert train.fix == "correct these queries or the databases, or set data.bad_rows: skip to leave the rows out"
    assert train.ids == ("train.jsonl:2", "train.jsonl:4")
    with pytest.warns(UserWarning, match="2 of the 3 reference queries of eval cannot be run"):
        audit = audited(folder, [good(0), bad, good(1), bad], scored, bad_rows="skip")
    evaluation = about(audit)["eval"]
    assert evaluation.message.startswith("2 of the 3 reference queries of eval cannot be run: ")
    assert evaluation.message.endswith("; these rows are not scored")
    assert evaluation.details["errors"]["eval.jsonl:3"] == "no such column: absent"
    assert (train.level, evaluation.level) == ("warning", "warning")
    audit.raise_if_broken()


def test_rows_of_train_whose_query_fails_are_left_out_and_listed(folder: Path) -> None:
    queries = [good(0), "SELECT year(name) FROM item", good(1), ENDLESS]
    config = load_config(options(folder, queries, [good(2)], bad_rows="skip"))
    task, data = dataset.prepare(config, Text2SQL(config))
    assert [example.answer for example in data.train.examples] == [good(0), good(1), ENDLESS]  # a limit proves nothing
    assert [row.where for row in data.train.table] == ["train.jsonl:1", "train.jsonl:3", "train.jsonl:4"]
    assert data.train.table.info.skipped == 1
    audit = dataset.audit_rows(config, task, data)
    assert about(audit, "bad_rows")["train"].message == "1 row of train cannot be used and is skipped"
    [bad] = audit.bad_rows
    assert (bad.where, bad.found) == ("train.jsonl:2", "the query fails (no such function: year)")
    audit.raise_if_broken()


def test_a_train_split_of_failing_queries_alone_is_refused(folder: Path) -> None:
    config = load_config(options(folder, ["SELECT absent FROM item"] * 2, [good(2)], bad_rows="skip"))
    with pytest.raises(DataError, match=r"the query fails \(no such column: absent\)"):
        dataset.prepare(config, Text2SQL(config))


def test_a_renamed_table_is_refused_and_the_existing_tables_are_listed(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "dbs" / "shop.sqlite")) as connection:
        connection.executescript("CREATE TABLE clients (id INT); CREATE TABLE orders (id INT)")
    lost = ["SELECT name FROM items WHERE id = 1", "SELECT name FROM items"]
    with pytest.warns(UserWarning, match="2 of the 4 reference queries"):
        audit = audited(folder, [good(i) for i in range(8)], [*lost, good(8), good(9)])
    with pytest.raises(DataError) as caught:
        audit.raise_if_broken()
    message = str(caught.value)
    assert "2 of the 4 reference queries of eval cannot be run: no such table: items (2); more than 25%" in message
    assert "tables of shop are item, clients, orders (did you mean 'item'?)" in message
    assert "set data.bad_rows: skip to score the other rows" in message
    with pytest.warns(UserWarning, match="these rows are not scored"):
        audited(folder, [good(i) for i in range(8)], [*lost, good(8), good(9)], bad_rows="skip").raise_if_broken()


def test_a_quick_plan_subtracts_rows_that_are_not_scored(folder: Path) -> None:
    fakes.save("t5", folder / "base")
    raw = options(folder, [good(i) for i in range(8)], ["SELECT absent FROM item", *map(good, range(9))])
    with pytest.warns(UserWarning, match="1 of the 10 reference queries"):
        plan = pipeline.plan(raw | {"model": str(folder / "base")}, out=folder / "runs", quick=True)
    assert plan.detectable is not None
    assert plan.detectable.rows == 9
    assert "1 of the 10 evaluation rows cannot be scored: the audit says why." in plan.advice


def test_a_run_in_which_no_row_can_be_scored_is_refused(folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        audited(folder, [good(0)] * 4, ["SELECT year(name) FROM item"] * 3)
    text = str(caught.value)
    assert "none of the 3 reference queries of the rows to score can be run: no such function: year (3)" in text
    assert "eval.jsonl:1" in text
    with pytest.raises(DataError, match=r"longer than 0\.2 s \(2\).*raise evaluation\.sql_seconds"):
        audited(folder, [good(0)] * 4, [ENDLESS, ENDLESS + " LIMIT 1"])


def test_scorable_rows_of_valid_do_not_replace_those_of_eval(folder: Path) -> None:
    valid = write(folder / "valid.jsonl", [good(0)])
    with pytest.warns(UserWarning, match="none of the 2 reference queries"):
        audit = audited(folder, [good(0)] * 4, ["SELECT year(name) FROM item"] * 2, valid=valid)
    assert about(audit)["eval"].level == "error"
    with pytest.raises(DataError, match=r"none of the 2 reference queries of eval can be run.*no row can be scored"):
        audit.raise_if_broken()


def test_all_queries_of_train_are_run_unless_time_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    from fulltune.tasks.text2sql.execution import Result

    asked = []

    def run(example: Example) -> Result:
        asked.append(int(example.id))
        return Result()

    examples = [Example(str(i), "q", "SELECT 1") for i in range(2500)]
    complete = references.check("train", examples, run, all_rows=False)
    assert (complete.run, sorted(asked)) == (2500, list(range(2500)))
    assert references.finding(complete, scored=False) is None

    found = references.check("train", examples, run, all_rows=False, seconds=0)
    assert 0 < found.run < 2500
    told = references.finding(found, scored=False)
    assert told is not None
    assert told.level == "info"
    assert f"{found.run:,} of the 2,500 reference queries of train were run, and none failed" in told.message


def test_a_large_split_is_sampled_and_abandoned_when_many_queries_time_out() -> None:
    from fulltune.tasks.text2sql.execution import Result

    asked = []

    def run(example: Example) -> Result:
        asked.append(example.id)
        return Result(error="stopped: late", limit="time") if int(example.id) % 7 == 0 else Result()

    examples = [Example(str(i), "q", "SELECT 1") for i in range(2500)]
    found = references.check("train", examples, run, all_rows=False)
    assert asked == [str(i) for i in range(0, 3 * len(asked), 3)]
    assert (found.run, len(found.failed)) == (len(asked), references.STOPPED)
    message = references.finding(found, scored=False)
    assert message is not None
    assert f"of the {len(asked)} reference queries of train that were run (of 2,500)" in message.message
    assert references.check("train", [], run, all_rows=False).run == 0


def test_the_score_excludes_rows_whose_reference_fails(folder: Path) -> None:
    task = Text2SQL(load_config(options(folder, [good(0)], [good(0)])))
    path = str(folder / "dbs" / "shop.sqlite")
    scores = Accumulator(task.metrics)
    for number, gold in enumerate(["SELECT name FROM item", "SELECT absent FROM item", "SELECT id FROM item"]):
        example = Example(str(number), "q", gold, {"db_id": "shop", "database": path})
        made = task.prediction("tuned", example, Generated("SELECT name FROM item", 5, False))
        scores.add(made)
        if number == 1:
            assert (made.values["match"], made.values["empty"]) == (None, None)
            assert made.values["gold_error"] == "no such column: absent"
    found = scores.scores(resamples=100)
    assert (found["execution_accuracy"].value, found["execution_accuracy"].n) == (0.5, 2)
    assert (found["executes"].value, found["executes"].n) == (1.0, 3)


def test_all_kinds_of_errors_are_listed_with_their_rows() -> None:
    errors = ["no such table: a"] * 25 + ["no such column: b", "incomplete input"]
    failed = {f"q.csv:{n}": Result(error=error) for n, error in enumerate(errors)}
    check = references.Check("train", 90, 90, failed, {})
    first = ", ".join(f"q.csv:{n}" for n in range(20))
    assert check.kinds_with_rows == (
        f"no such table: a ({first} and 5 more), no such column: b (q.csv:25), incomplete input (q.csv:26)"
    )


def test_details_count_answers_that_hit_a_limit(folder: Path) -> None:
    task = Text2SQL(load_config(options(folder, [good(0)], [good(0)])))
    meta = {"db_id": "shop", "database": str(folder / "dbs" / "shop.sqlite")}
    rows = [("SELECT 1", ENDLESS), ("SELECT 1", "SELECT absent"), ("SELECT absent", "SELECT 1")]
    made = [
        task.prediction("tuned", Example(str(i), "q", gold, meta), Generated(answer, 5, False))
        for i, (gold, answer) in enumerate(rows)
    ]
    assert made[0].values["stopped_by"] == "time"
    counts = {"queries_stopped_at_a_limit": 1, "queries_with_unknown_values": 0, "rows_without_a_reference_result": 1}
    assert task.details(made) == counts


@pytest.mark.parametrize(("rule", "metric", "right"), [("strict", "execution_accuracy", False),
                                                      ("spider", "spider_execution_accuracy", True)])  # fmt: skip
def test_the_rule_of_matching_is_a_choice(folder: Path, rule: str, metric: str, right: bool) -> None:
    task = Text2SQL(load_config(options(folder, [good(0)], [good(0)], evaluation={"sql_match": rule})))
    meta = {"db_id": "shop", "database": str(folder / "dbs" / "shop.sqlite")}
    example = Example("0", "q", "SELECT id, name FROM item", meta)
    made = task.prediction("tuned", example, Generated("SELECT name, id FROM item", 5, False))
    assert made.values["match"] is right
    assert task.metrics[0].name == metric


def test_parts_of_a_database_that_cannot_be_read_are_a_finding(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "dbs" / "shop.sqlite")) as connection:
        connection.execute("CREATE VIEW v AS SELECT * FROM gone")
    audit = audited(folder, [good(0)] * 4, [good(1)])
    [finding] = [finding for finding in audit.findings if finding.kind == "database_faults"]
    assert "database shop: 1 parts cannot be read" in finding.message
    assert "view v: no such table: main.gone" in finding.message


def test_all_unreadable_databases_are_reported_at_once(folder: Path) -> None:
    for name in ("one", "two"):
        (folder / "dbs" / f"{name}.sqlite").write_bytes(b"no database at all" * 100)
    config = load_config(options(folder, [good(0)], [good(0)]))
    task = Text2SQL(config)
    rows = [Example(name, "q", "SELECT 1", {"db_id": name, "database": str(folder / "dbs" / f"{name}.sqlite")})
            for name in ("one", "two", "shop")]  # fmt: skip
    with pytest.raises(DataError) as caught:
        task = task.fit(rows, rows)
    assert [Path(problem.where).name for problem in caught.value.problems] == ["one.sqlite", "two.sqlite"]


@pytest.mark.parametrize("db_id", ["nowhere", "x" * 3000, "\x1b[31mx"])
def test_a_row_without_a_database_names_the_row_and_the_existing_databases(folder: Path, db_id: str) -> None:
    config = options(folder, [good(0)], [good(0)])
    config["data"]["eval"] = write(folder / "eval.jsonl", ["SELECT 1"], db_id)
    loaded = load_config(config)
    with pytest.raises(DataError) as caught:
        dataset.prepare(loaded, Text2SQL(loaded))
    text = str(caught.value)
    assert "eval.jsonl:1, field 'db_id'" in text
    assert text.isprintable()
    assert len(text) < 1000 + 2 * len(str(folder))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shop": "CREATE TABLE a (b); PRAGMA hard_heap_limit = 1"}, r"schemas\.json, schema of shop.*hard_heap_limit"),
        ({"shop": "CREATE TABLE a (b"}, r"schemas\.json, schema of shop.*incomplete input"),
        ({"shop": ""}, r"schemas\.json, schema of shop.*no table"),
        ('{"shop": "CREATE TABLE a (b)", "shop": "CREATE TABLE c (d)"}', r"schemas\.json: .*more than once: shop"),
        ("[" * 100_000, r"schemas\.json: the schemas cannot be read"),
    ],
)
def test_a_given_schema_that_cannot_be_used_names_its_database(folder: Path, given: Any, message: str) -> None:
    text = given if isinstance(given, str) else json.dumps(given)
    (folder / "schemas.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        audited(folder, [good(0)] * 4, [good(1)], schemas=str(folder / "schemas.json"))


def test_databases_without_a_given_schema_are_named(folder: Path) -> None:
    (folder / "schemas.json").write_text(json.dumps({"shpo": "CREATE TABLE a (b)"}), encoding="utf-8")
    with pytest.warns(UserWarning, match=r"schemas\.json has no schema for 1 of the 1 databases of the rows \(shop\)"):
        audited(folder, [good(0)] * 4, [good(1)], schemas=str(folder / "schemas.json"))


def test_a_missing_folder_of_databases_is_one_problem(folder: Path) -> None:
    config = load_config(options(folder, [good(0)] * 4, [good(1)], databases=str(folder / "absent")))
    with pytest.raises(ConfigError, match=r"absent does not exist") as caught:
        dataset.prepare(config, Text2SQL(config))
    assert [problem.field for problem in caught.value.problems] == ["data.databases"]


@pytest.mark.parametrize("name", ["company.db", "company.data"])
def test_one_database_needs_no_names_in_the_rows(name: str, folder: Path) -> None:
    (folder / "dbs" / "shop.sqlite").rename(folder / name)
    raw = options(folder, [good(0)] * 4, [good(1)], databases=str(folder / name))
    for split in ("train", "eval"):
        rows = [json.loads(line) for line in Path(raw["data"][split]).read_text(encoding="utf-8").splitlines()]
        lines = [json.dumps({key: row[key] for key in ("question", "sql")}) + "\n" for row in rows]
        Path(raw["data"][split]).write_text("".join(lines), encoding="utf-8")
    config = load_config(raw)
    task, data = dataset.prepare(config, Text2SQL(config))
    assert {example.meta["database"] for example in data.train.examples} == {str(folder / name)}
    assert isinstance(task, Text2SQL)
    assert "item(id int, name text)" in task.schema("company")
    for place in ("", "company", name):
        assert task.request({"question": "who?"}, place).meta["db_id"] == "company"
    with pytest.raises(ConfigError, match="no database 'shop'; expected company, the only one"):
        task.request({"question": "who?"}, "shop")


def test_an_answer_shows_one_row_per_line_and_whether_there_are_more() -> None:
    lines = _details({"rows": [["a\nb", "é", None]], "count": 10_000, "more": True})
    assert lines == ["a\\nb, é, None", "… more than 10,000 rows"]
    assert _details({"rows": [[1]], "count": 20, "more": False})[-1] == "… 20 rows"


def test_a_file_of_schemas_has_a_largest_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fulltune.tasks.text2sql.task.MAX_SCHEMAS", 10)
    (folder / "schemas.json").write_text(json.dumps({"shop": "CREATE TABLE a (b)"}), encoding="utf-8")
    with pytest.raises(DataError, match="schemas cannot be read"):
        audited(folder, [good(0)] * 4, [good(1)], schemas=str(folder / "schemas.json"))


def test_a_task_is_pickled_without_its_results(folder: Path) -> None:
    config = load_config(options(folder, [good(0)], [good(0)]))
    task = Text2SQL(config)
    task, data = dataset.prepare(config, task)
    other = pickle.loads(pickle.dumps(task))
    assert other._results._known == {}
    assert task._results._known != {}
    made = other.prediction("tuned", data.eval.examples[0], Generated(good(0), 5, False))
    assert made.values["match"]


def test_cached_baselines_are_valid_only_for_unchanged_databases(folder: Path) -> None:
    config = load_config(options(folder, [good(0)], [good(0)]))
    task, base = Text2SQL(config), fakes.bundle("t5")
    task, data = dataset.prepare(config, task)

    def key() -> str:
        return cache_key(cache_parts(task, config, base, data.train.table, data.eval.table))

    before = key()
    assert key() == before
    with closing(sqlite3.connect(folder / "dbs" / "shop.sqlite")) as connection:
        connection.execute("PRAGMA journal_mode = wal")
        connection.execute("INSERT INTO item VALUES (3, 'cat')")
        connection.commit()
        assert key() != before


@pytest.mark.filterwarnings("ignore:.*had no room for all")
def test_a_run_records_what_was_not_scored(folder: Path) -> None:
    fakes.save("t5", folder / "base")
    queries = [good(i) for i in range(5)]
    config = options(folder, queries * 2, ["SELECT absent FROM item", *queries])
    sentence = (
        "1 of the 6 reference queries of eval cannot be run: no such column: absent (1) "
        "(rows eval.jsonl:1); these rows are not scored"
    )
    with pytest.warns(UserWarning, match=re.escape(sentence)):
        record = fulltune.run(config | {"model": str(folder / "base")}, out=folder / "runs")
    assert any(sentence in text for text in record.warnings)
    with pytest.warns(UserWarning, match=re.escape(sentence)):
        again = fulltune.evaluate(record.run_id, out=folder / "runs")
    assert any(sentence in text for text in again.warnings)
    with pytest.warns(UserWarning, match=re.escape(sentence)):
        plan = pipeline.plan(config | {"model": str(folder / "base")}, out=folder / "runs")
    assert "1 of the 6 evaluation rows cannot be scored: the audit says why." in plan.advice
    assert "Only 5 rows decide: intervals will be wide." in plan.advice
    assert record.scores["tuned"]["execution_accuracy"].n == 5
    assert record.details["rows_without_a_reference_result"] == 1
    assert record.details["queries_stopped_at_a_limit"] == 0
    assert any("1 of the 6 reference queries of eval cannot be run" in text for text in record.data.audit.findings)
    page = (folder / "runs" / record.run_id / "report.html").read_text(encoding="utf-8")
    assert "reference queries" in page


def test_an_unknown_rule_of_matching_is_refused() -> None:
    with pytest.raises(ValueError, match="spider"):
        Config(model="m", task="text2sql", data={"train": "t"}, evaluation={"sql_match": "bird"})
