"""Baselines that answer with texts that exist already: copies, first sentences, nearest rows, swapped values."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from fulltune.config import Config
from fulltune.evaluation.baselines.base import Given
from fulltune.evaluation.baselines.catalog import answers
from fulltune.evaluation.baselines.texts import with_values
from fulltune.tasks.base import Example
from fulltune.tasks.seq2seq import Seq2Seq
from fulltune.tasks.text2sql.task import Text2SQL

PARTS = ("A fox ran.", "It was red!", "The king saw it, and the cat did not.", "All slept.")


def given(train: list[Example]) -> Given:
    config = Config(model="m", task="seq2seq", data={"train": "t"})
    return Given(Seq2Seq(config), None, config.baselines, train)  # type: ignore[arg-type]


def outputs(name: str, what: Given, asked: list[Example]) -> list[object]:
    return [one.output for one in answers(name, what, asked).predictions]


@pytest.mark.parametrize("count", [1, 2, 3], ids=str)
def test_lead_takes_as_many_sentences_as_score_best_on_train(count: int) -> None:
    text = " ".join(PARTS)
    what = given([Example(f"t:{n}", text, " ".join(PARTS[:count])) for n in range(5)])
    asked = [Example("e:0", "One. Two. Three. Four.", "?"), Example("e:1", "no end mark", "?")]
    assert outputs("lead", what, asked) == ["One. Two. Three. Four."[: [4, 9, 16][count - 1]], "no end mark"]
    found = answers("lead", what, asked)
    words = "the first sentence" if count == 1 else f"the first {count} sentences"
    assert found.setting == f"{words} (rougeLsum on 5 rows of train)"


def test_copy_and_nearest() -> None:
    train = [Example("t:0", "the fox and the king", "tale"), Example("t:1", "the law of the court", "law")]
    asked = [Example("e:0", "a law of a state", "?"), Example("e:1", "king and fox", "?")]
    assert outputs("copy", given(train), asked) == ["a law of a state", "king and fox"]
    assert outputs("nearest", given(train), asked) == ["law", "tale"]


@pytest.mark.parametrize(
    ("query", "known", "asked", "expected"),
    [
        ("SELECT a FROM t WHERE s = 'texas'", "what is the capital of texas", "what is the capital of new york",
         "SELECT a FROM t WHERE s = 'new york'"),
        ('SELECT a FROM t WHERE s = "ohio"', "rivers in ohio", "rivers in Utah?", 'SELECT a FROM t WHERE s = "utah"'),
        ("SELECT a FROM t WHERE n > 5 LIMIT 1", "more than 5 items", "more than 12 items",
         "SELECT a FROM t WHERE n > 12 LIMIT 1"),
        ("SELECT a WHERE s = 'Al Ma' AND n = 3", "Al Ma has 3", "Bo O'Hara has 4",
         "SELECT a WHERE s = 'Bo O''Hara' AND n = 4"),
        ("SELECT n WHERE s = 'Hotel Dörr' AND y = 2024", "orders of Hotel Dörr in 2024",
         "orders of Hotel Lehmann in 2025", "SELECT n WHERE s = 'Hotel Lehmann' AND y = 2025"),
        ("SELECT n WHERE s = 'Haus am See'", "what did Haus am See order", "what did Café am Markt order",
         "SELECT n WHERE s = 'Café am Markt'"),
        ("SELECT a WHERE n > 5", "more than 5 items", "more than some items", "SELECT a WHERE n > 5"),
        ("SELECT a WHERE s = 'kept'", "what is it", "what was that", "SELECT a WHERE s = 'kept'"),
        ("SELECT a WHERE s = ''", "", "", "SELECT a WHERE s = ''"),
    ],
    ids=["longer", "double-quotes", "number", "two", "first-word", "inner-word", "no-number", "not-there", "empty"],
)  # fmt: skip
def test_values_are_swapped_for_those_of_the_new_question(query: str, known: str, asked: str, expected: str) -> None:
    assert with_values(query, known, asked) == expected


def test_a_longer_known_value_is_swapped_in_as_one() -> None:
    train = [
        Example("t:0", "what did Hotel Dörr order", "SELECT n WHERE s = 'Hotel Dörr'"),
        Example("t:1", "who runs Hotel Dörr Garni", "SELECT p WHERE s = 'Hotel Dörr Garni'"),
    ]
    asked = [Example("e:0", "what did Hotel Dörr Garni order", "?")]
    assert outputs("nearest_values", given(train), asked) == ["SELECT n WHERE s = 'Hotel Dörr Garni'"]


def test_values_of_the_database_are_swapped_as_it_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "shop.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "CREATE TABLE client (name TEXT, city TEXT, note TEXT);"
            "INSERT INTO client VALUES ('Dörr', 'Brno', 'many'), ('Lehmann GmbH', 'BÍLÁ HORA', 'clients')"
        )

    def example(name: str, question: str, sql: str) -> Example:
        return Example(name, question, sql, {"db_id": "shop", "database": str(path)})

    train = [
        example("t:0", "how many clients are in Brno", "SELECT count(*) FROM client WHERE city = 'Brno'"),
        example("t:1", "who lives in Brno", "SELECT name FROM client WHERE city = 'Brno'"),
    ]
    # Two words that no row of train has, in another case; `many` and `clients` are plain words of questions.
    asked = [
        example("e:0", "how many clients are in Bílá Hora", "SELECT count(*) FROM client WHERE city = 'BÍLÁ HORA'"),
        example("e:1", "who lives in bílá hora", "SELECT name FROM client WHERE city = 'BÍLÁ HORA'"),
    ]
    config = Config(model="m", task="text2sql", data={"train": "t", "databases": str(path)})
    task = Text2SQL(config).fit(train, asked)
    assert task.named_values(asked)["bílá hora"] == "BÍLÁ HORA"
    what = Given(task, None, config.baselines, train)  # type: ignore[arg-type]
    assert outputs("nearest_values", what, asked) == [one.answer for one in asked]


def test_the_nearest_question_is_one_of_the_same_database(tmp_path: Path) -> None:
    for name in ("shop", "zoo"):
        with closing(sqlite3.connect(tmp_path / f"{name}.sqlite")) as connection:
            connection.execute("CREATE TABLE item (name TEXT, n INT)")
            connection.execute("INSERT INTO item VALUES ('cat', 1), ('dog', 2)")
            connection.commit()

    def example(name: str, question: str, sql: str, db: str) -> Example:
        return Example(name, question, sql, {"db_id": db, "database": str(tmp_path / f"{db}.sqlite")})

    train = [
        example("t:0", "how many is cat", "SELECT n FROM item WHERE name = 'cat'", "shop"),
        example("t:1", "how many is the dog", "SELECT 7", "zoo"),
    ]
    asked = [example("e:0", "how many is dog", "SELECT n FROM item WHERE name = 'dog'", "shop")]
    config = Config(model="m", task="text2sql", data={"train": "t", "databases": str(tmp_path)})
    what = Given(Text2SQL(config).fit(train, asked), None, config.baselines, train)  # type: ignore[arg-type]
    [copied] = answers("nearest", what, asked).predictions
    [swapped] = answers("nearest_values", what, asked).predictions
    assert (copied.output, copied.values["match"]) == ("SELECT n FROM item WHERE name = 'cat'", False)
    assert (swapped.output, swapped.values["match"]) == ("SELECT n FROM item WHERE name = 'dog'", True)
