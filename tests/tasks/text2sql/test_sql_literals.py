"""Values of a predicted query that occur neither in the question nor in their column are named, and no others."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from fulltune.config import Config
from fulltune.models.inference import Generated
from fulltune.records.run import Prediction
from fulltune.report import examples
from fulltune.report import task as sections
from fulltune.tasks.base import Example
from fulltune.tasks.text2sql.execution import Results
from fulltune.tasks.text2sql.literals import warning
from fulltune.tasks.text2sql.task import Text2SQL


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dbs") / "shop.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "CREATE TABLE city (id INT, name TEXT, people INT, founded TEXT, rate REAL);"
            "INSERT INTO city VALUES (1, 'Brno', 400000, '1243-05-01', 0.25), (2, 'ŽĎÁR', 20000, '1252-01-01', 7.5);"
            "CREATE TABLE sale (city_id INT, article TEXT, price TEXT);"
            "INSERT INTO sale VALUES (1, 'tea', '12'), (2, 'it''s', '9.50')"
        )
    return path


#: Queries to "How many people live in Nantes, in 2 million or 1.500 cities since 2010, over 5%?", and what is unknown.
QUERIES = [
    # a text of the column in any case, or of the question
    ("SELECT people FROM city WHERE name = 'brno'", ""),
    ("SELECT people FROM city WHERE name = 'Nantes'", ""),
    ("SELECT people FROM city WHERE name = 'Lyon'", "'Lyon' (city.name)"),
    ("SELECT people FROM city WHERE name = 'Žďár'", ""),
    ("SELECT people FROM city WHERE lower(name) = lower('LYON')", "'LYON' (city.name)"),
    ('SELECT people FROM city WHERE name = "Lyon"', "'Lyon' (city.name)"),
    ('SELECT people FROM city WHERE "id" = "people"', ""),
    # the column of another table does not count; aliases and columns without a table are resolved
    ("SELECT 1 FROM city c JOIN sale s ON s.city_id = c.id WHERE s.article = 'Brno'", "'Brno' (sale.article)"),
    ("SELECT 1 FROM city JOIN sale ON city_id = id WHERE article = 'coffee'", "'coffee' (sale.article)"),
    ("SELECT 1 FROM sale WHERE city_id IN (SELECT id FROM city WHERE name IN ('Brno', 'Oslo'))", "'Oslo' (city.name)"),
    ("WITH c AS (SELECT name AS n FROM city) SELECT * FROM c WHERE n = 'Oslo'", ""),
    # numbers by their value, however the question or the column writes them
    ("SELECT name FROM city WHERE people > 2000000", ""),
    ("SELECT name FROM city WHERE people > 1500", ""),
    ("SELECT name FROM city WHERE people = 20000.0", ""),
    ("SELECT name FROM city WHERE rate > 0.05", ""),
    ("SELECT name FROM city WHERE people = 7", "7 (city.people)"),
    ("SELECT name FROM city WHERE people BETWEEN 2010 AND 2012", "2012 (city.people)"),
    ("SELECT article FROM sale WHERE price = 9.5", ""),
    ("SELECT article FROM sale WHERE price = '12'", ""),
    # limits of dates, patterns
    ("SELECT name FROM city WHERE founded >= '2010-01-01'", ""),
    ("SELECT name FROM city WHERE founded >= '1990-01-01'", "'1990-01-01' (city.founded)"),
    ("SELECT name FROM city WHERE name LIKE '%rno'", ""),
    ("SELECT name FROM city WHERE name LIKE '%ant%'", ""),
    ("SELECT name FROM city WHERE name LIKE 'Os%'", "'Os%' (city.name)"),
    # not examined: 0 and 1, limits of rows, counts, functions, what cannot be parsed
    ("SELECT name FROM city WHERE id = 1 AND people <> 0 ORDER BY people DESC LIMIT 3", ""),
    ("SELECT name FROM city GROUP BY name HAVING count(*) > 4", ""),
    ("SELECT name FROM city WHERE substr(founded, 1, 4) = '1243'", ""),
    ("SELECT 'Lyon', 5 FROM city", ""),
    ("SELECT name FROM city WHERE", ""),
    ("DELETE FROM city WHERE name = 'Lyon'", ""),
    ("SELECT name FROM town WHERE name = 'Lyon'", ""),
]


@pytest.mark.parametrize(("query", "unknown"), QUERIES)
def test_values_from_nowhere_are_named(query: str, unknown: str, shop: Path) -> None:
    question = "How many people live in Nantes, in 2 million or 1.500 cities since 2010, over 5%?"
    message = f"{unknown} occurs neither in the question nor in the column" if unknown else ""
    assert warning(Results(5.0), shop, question, query) == message


def test_several_values_are_abridged_and_named_once(shop: Path) -> None:
    names = ", ".join(f"'{letter * 3}'" for letter in "vwxyzz")
    found = warning(Results(5.0), shop, "which?", f"SELECT * FROM city WHERE name IN ({names})")
    assert found.startswith("'vvv' (city.name), 'www' (city.name), 'xxx' (city.name) and 2 more occur neither")


def test_a_value_that_cannot_be_looked_up_is_not_named(shop: Path) -> None:
    class Slow(Results):
        def execute(self, database: str, sql: str) -> object:  # type: ignore[override]
            return super().execute(database, sql if "LIMIT 0" in sql else "SELECT missing")

    assert warning(Slow(5.0), shop, "which?", "SELECT * FROM city WHERE name = 'Lyon'") == ""


def test_predictions_have_the_warning_and_the_report_shows_it(shop: Path) -> None:
    data = {"train": "t.jsonl", "databases": str(shop)}
    task = Text2SQL(Config(model="m", task="text2sql", data=data, evaluation={"sql_seconds": 5}))
    gold = "SELECT people FROM city WHERE name = 'Brno'"
    row = Example("q:0", "How many people live in Brno?", gold, {"db_id": "shop", "database": str(shop)})

    def made(system: str, query: str) -> Prediction:
        return task.prediction(system, row, Generated(query, 9, False))

    wrong = made("tuned", gold.replace("Brno", "Lyon"))
    assert wrong.values["warning"] == "'Lyon' (city.name) occurs neither in the question nor in the column"
    failing = made("tuned", "SELECT heads FROM city WHERE name = 'Lyon'")
    assert failing.values["warning"] == ""
    assert task.details([wrong, failing])["queries_with_unknown_values"] == 1
    gallery = examples.gallery("text2sql", [made("zero_shot", gold), wrong], 5)
    assert gallery.examples is not None
    [case] = (case for group in gallery.examples.groups for case in group.cases)
    assert [answer.warning for answer in case.answers] == ["", wrong.values["warning"]]
    assert [(one.system, one.doubtful) for one in sections.queries(gallery.survey)] == [("Zero-shot", 0), ("Tuned", 1)]
