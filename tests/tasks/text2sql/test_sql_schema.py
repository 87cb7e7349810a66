"""The one-line form of a schema, and the lookup of a database file."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from fulltune.errors import DataError
from fulltune.tasks.text2sql.schema import find_database, from_create, schema_of_file

CREATE = """
CREATE TABLE state (id INTEGER PRIMARY KEY, name VARCHAR(20) NOT NULL);
CREATE TABLE "city map" (
    "the name" TEXT DEFAULT '(none), x', "order" INT, state_id INT, plain,
    FOREIGN KEY (state_id) REFERENCES state (id)
);
CREATE TABLE road (a INT REFERENCES state, b INT REFERENCES state (id), "say ""hi"" x" REAL);
CREATE INDEX i ON road (a);
CREATE VIEW big AS SELECT name FROM state;
"""
LINE = (
    "state(id integer, name varchar(20))"
    ' | "city map"("the name" text, "order" int, state_id int, plain; state_id = state.id)'
    ' | road(a int, b int, "say ""hi"" x" real; a = state.id, b = state.id)'
    " | big(name varchar(20))"
)


def make(path: Path, statements: str = CREATE) -> Path:
    path.parent.mkdir(exist_ok=True)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(statements)
    return path


NAMES = 'state(id, name) | "city map"("the name", "order", state_id, plain) | road(a, b, "say ""hi"" x") | big(name)'


def test_a_file_and_its_statements_give_the_same_lines(tmp_path: Path) -> None:
    for schema in (from_create(CREATE), schema_of_file(make(tmp_path / "a b?.sqlite"))):
        assert (schema.line, schema.names) == (LINE, NAMES)


def test_a_foreign_key_to_a_missing_table_is_kept() -> None:
    assert from_create("CREATE TABLE a (b INT REFERENCES gone)").line == "a(b int; b = gone)"


def test_internal_tables_are_left_out() -> None:
    assert from_create("CREATE TABLE a (id INTEGER PRIMARY KEY AUTOINCREMENT)").line == "a(id integer)"


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        ("", "no table"),
        ("CREATE TABLE a (b INT) ENGINE=InnoDB", "cannot be read"),
        ("ATTACH 'x.sqlite' AS x", "not authorized"),
        ("CREATE VIRTUAL TABLE a USING dbstat", "CREATE VIRTUAL TABLE is not allowed"),
        ("CREATE TABLE a (b)\0", "null character"),
    ],
)
def test_statements_that_are_not_a_schema(
    statements: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        from_create(statements)
    assert not list(tmp_path.iterdir())


def test_an_empty_database_has_no_schema(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"empty\.sqlite.*no table"):
        schema_of_file(make(tmp_path / "empty.sqlite", ""))


@pytest.mark.parametrize("name", ["shop.sqlite", "shop/shop.sqlite", "shop.db", "shop/shop.db"])
def test_a_database_is_found_by_its_id(tmp_path: Path, name: str) -> None:
    path = make(tmp_path / name)
    assert find_database(tmp_path, "shop") == path


def test_a_missing_database_lists_the_existing_ones(tmp_path: Path) -> None:
    for index in range(12):
        make(tmp_path / f"d{index:02}.sqlite")
    make(tmp_path / "a" / "a.db")
    with pytest.raises(DataError, match=r"no database 'clinic'.*The folder has a, d00, .*d08 and 3 more"):
        find_database(tmp_path, "clinic")


def test_a_folder_that_is_empty_or_is_none_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no \.sqlite or \.db file"):
        find_database(tmp_path, "x")
    with pytest.raises(DataError, match=r"data\.databases must name a folder"):
        find_database(tmp_path / "none", "x")


@pytest.mark.parametrize("db_id", ["", ".", "..", "../x", "a/b", "a\\b", "/etc/passwd"])
def test_an_id_that_is_a_path_is_refused(tmp_path: Path, db_id: str) -> None:
    with pytest.raises(DataError, match="not a path"):
        find_database(tmp_path, db_id)
