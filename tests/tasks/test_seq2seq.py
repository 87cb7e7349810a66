"""seq2seq by encoder-decoders and decoders, and text2sql on a real SQLite file."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path

import fakes
import pytest

from fulltune.config import Config
from fulltune.errors import ConfigError, DataError
from fulltune.models.inference import Generated
from fulltune.tasks.base import Example
from fulltune.tasks.seq2seq import Seq2Seq
from fulltune.tasks.text2sql.task import Text2SQL

ROWS = [Example("r:0", "abc", "xyz"), Example("r:1", "a longer source", "tt"), Example("r:2", "d", "uvw")]


def make(**data: object) -> Seq2Seq:
    options = {"train": "t.jsonl"} | data
    return Seq2Seq(Config(model="m", task="seq2seq", data=options, evaluation={"batch_size": 2, "max_new_tokens": 4}))


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_an_encoder_decoder_learns_the_target_from_the_source(kind: str) -> None:
    bundle = fakes.bundle(kind)
    [item] = make().encode(ROWS[0], bundle)
    assert item.input_ids == bundle.tokenizer("abc").input_ids
    assert item.labels == bundle.tokenizer("xyz").input_ids
    assert item.labels[-1] == bundle.tokenizer.eos_token_id
    assert item.truncated == 0


def test_truncation_of_both_sides_is_counted_and_the_source_keeps_its_end_token() -> None:
    bundle = fakes.bundle("t5")
    [item] = make(max_length=8, max_target_length=2).encode(Example("r", "a" * 20, "xyz"), bundle)
    assert len(item.input_ids) == 8
    assert item.input_ids[-1] == bundle.tokenizer.eos_token_id
    assert len(item.labels) == 2
    assert item.truncated == (21 - 8) + (4 - 2)


def test_a_decoder_is_trained_with_the_prompt_of_inference() -> None:
    bundle, task = fakes.bundle("gpt2"), make(instruction="Say it back.")
    [item] = task.encode(ROWS[0], bundle)
    text = bundle.tokenizer.decode(item.input_ids, skip_special_tokens=True)
    assert text == "Say it back.\n\nInput: abc\nOutput: xyz"
    learned = [label for label in item.labels if label != -100]
    assert learned == [*bundle.tokenizer(" xyz").input_ids, bundle.tokenizer.eos_token_id]
    asked = task._prompt(ROWS[0], bundle).ids
    assert item.input_ids[: len(asked)] == asked


@pytest.mark.parametrize("kind", ["t5", "bart", "gpt2", "llama"])
def test_predictions_keep_the_order_and_have_the_values_of_the_metrics(kind: str) -> None:
    bundle, task = fakes.bundle(kind), make()
    for system, shots in (("zero_shot", ()), ("few_shot", ROWS[:1])):
        predictions = list(task.predictor(bundle, system, shots)(ROWS))
        assert [prediction.id for prediction in predictions] == [row.id for row in ROWS]
        assert all(set(prediction.values) >= {"capped", "tokens"} for prediction in predictions)
        assert all(len(metric.statistics(predictions[0])) > 0 for metric in task.metrics)  # type: ignore[arg-type]


def test_shots_are_separated_from_the_question() -> None:
    bundle, task = fakes.bundle("t5"), make()
    prompt = task._prompt(ROWS[0], bundle, ROWS[1:2])
    text = bundle.tokenizer.decode(prompt.ids, skip_special_tokens=True)
    assert text == "Input: a longer source\nOutput: tt\n\nInput: abc\nOutput:"
    assert prompt.shots == 1


@pytest.fixture
def databases(tmp_path: Path) -> Path:
    connection = sqlite3.connect(tmp_path / "zoo.sqlite")
    connection.executescript(
        "CREATE TABLE animal (name TEXT, legs INTEGER); INSERT INTO animal VALUES ('fox', 4), ('hen', 2), ('cat', 4);"
    )
    connection.close()
    return tmp_path


def sql_task(databases: Path, **data: object) -> Text2SQL:
    options = {"train": "t.jsonl", "databases": str(databases)} | data
    return Text2SQL(Config(model="m", task="text2sql", data=options, evaluation={"sql_seconds": 0.5}))


def question(gold: str, databases: Path) -> Example:
    return Example("q:0", "which?", gold, {"db_id": "zoo", "database": str(databases / "zoo.sqlite")})


@pytest.mark.parametrize(
    ("gold", "answer", "match", "executes", "exact"),
    [
        ("SELECT name FROM animal WHERE legs = 4", "select NAME from animal where legs=4", True, True, True),
        ("SELECT name FROM animal WHERE legs = 4", "SELECT name FROM animal WHERE legs > 2", True, True, False),
        ("SELECT name FROM animal WHERE legs = 4", "SELECT name FROM animal WHERE legs = 2", False, True, False),
        ("SELECT name FROM animal", "```sql\nSELECT name FROM animal;\n```", True, True, True),
        ("SELECT name FROM animal", "SELECT nme FROM animal", False, False, False),
        ("SELECT name FROM animal", "", False, False, False),
        ("SELECT name FROM animal", "DROP TABLE animal", False, False, False),
        ("SELECT name FROM animal ORDER BY name", "SELECT name FROM animal ORDER BY name DESC", False, True, False),
    ],
)
def test_an_answer_is_right_when_it_returns_what_the_gold_returns(
    gold: str, answer: str, match: bool, executes: bool, exact: bool, databases: Path
) -> None:
    task = sql_task(databases)
    prediction = task.prediction("tuned", question(gold, databases), Generated(answer, 9, False))
    assert (prediction.values["match"], prediction.values["executes"], prediction.values["exact"]) == (
        match,
        executes,
        exact,
    )
    with sqlite3.connect(databases / "zoo.sqlite") as connection:
        assert connection.execute("SELECT count(*) FROM animal").fetchone() == (3,)


def test_a_question_without_a_target_goes_through_the_request_of_the_task() -> None:
    class Placed(Seq2Seq):
        def request(self, row: Mapping[str, str], place: str = "") -> Example:
            return Example("asked", f"{row['source']} in {place}", "")

    task = Placed(make().config)
    assert task.ask(fakes.bundle("t5"), "tuned", "who", "Rome").input == "who in Rome"


def test_two_empty_results_are_counted_separately(databases: Path) -> None:
    gold = "SELECT name FROM animal WHERE legs = 9"
    answer = Generated("SELECT name FROM animal WHERE legs = 8", 9, False)
    values = sql_task(databases).prediction("tuned", question(gold, databases), answer).values
    assert values["match"]
    assert values["empty"]


def test_the_schema_of_the_file_is_given_once_before_the_question(databases: Path) -> None:
    task, bundle = sql_task(databases), fakes.bundle("t5")
    example = question("SELECT 1", databases)
    ids = task._prompt(example, bundle, [example]).ids
    text = bundle.tokenizer.decode(ids, skip_special_tokens=True)
    assert text.count("animal") == 1
    assert text.endswith("Question: which?\nSQL: SELECT 1\n\nQuestion: which?\nSQL:")


def test_given_schemas_replace_those_of_the_databases(databases: Path) -> None:
    given = databases / "schemas.json"
    given.write_text(json.dumps({"zoo": "CREATE TABLE beast (title TEXT)"}))
    assert "beast" in sql_task(databases, schemas=str(given)).schema("zoo")
    given.write_text("[1")
    with pytest.raises(DataError, match="schemas cannot be read"):
        sql_task(databases, schemas=str(given)).schema("zoo")


def test_a_missing_database_column_or_file_is_reported(databases: Path) -> None:
    with pytest.raises(ConfigError, match=r"Set data\.databases"):
        Text2SQL(Config(model="m", task="text2sql", data={"train": "t"}))
