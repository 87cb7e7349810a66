"""Generated databases and questions: repeatable, all queries run, templates are not shared between splits."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from collections import Counter, defaultdict
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from demo import make
from demo.databases import DATABASES
from demo.text2sql import make_text2sql
from fulltune.data.demo.__main__ import main
from fulltune.tasks.text2sql.execution import Database, is_ordered, match
from fulltune.tasks.text2sql.schema import find_database, schema_of_file

Splits = dict[str, list[dict[str, str]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("databases")


@pytest.fixture(scope="module")
def splits(folder: Path) -> Splits:
    return make_text2sql(folder)


def test_there_are_enough_questions_of_many_templates(splits: Splits) -> None:
    assert len(splits["train"]) > 800
    assert 120 < len(splits["eval"]) < 250
    assert len({row["template"] for row in splits["eval"]}) > 50
    assert set(splits["train"][0]) == {"question", "sql", "db_id", "template"}


def test_every_query_runs_and_returns_something(splits: Splits, folder: Path) -> None:
    rows = splits["train"] + splits["eval"]
    databases = {name: Database(find_database(folder, name)) for name in {row["db_id"] for row in rows}}
    assert len(databases) == 3
    for row in rows:
        result = databases[row["db_id"]].execute(row["sql"])
        assert result.rows, (row, result.error)
        assert match(result, result, ordered=is_ordered(row["sql"]))
    for database in databases.values():
        database.close()


def test_a_limit_never_cuts_between_equal_rows(splits: Splits, folder: Path) -> None:
    """Reading the rows in the opposite direction gives the same answer."""
    limited = [row for row in splits["train"] + splits["eval"] if "LIMIT" in row["sql"]]
    assert len(limited) > 50
    for row in limited:
        with closing(sqlite3.connect(find_database(folder, row["db_id"]))) as connection:
            first = connection.execute(row["sql"]).fetchall()
            connection.execute("PRAGMA reverse_unordered_selects = 1")
            assert connection.execute(row["sql"]).fetchall() == first


def test_no_template_and_no_query_is_in_both_splits(splits: Splits) -> None:
    for key in ("template", "sql", "question"):
        assert not {row[key] for row in splits["train"]} & {row[key] for row in splits["eval"]}
    forms = {name: {row["template"].split("/")[1] for row in splits[name]} for name in splits}
    assert forms["eval"] <= forms["train"]
    assert len(forms["train"]) >= 30


def test_questions_differ_and_are_clean(splits: Splits) -> None:
    rows = splits["train"] + splits["eval"]
    assert len({(row["db_id"], row["question"]) for row in rows}) == len(rows)
    for row in rows:
        assert re.fullmatch(r"[A-Z].*[.?]", row["question"])
        assert not re.search(r"[{}]|  |\ba [aeio]", row["question"]), row["question"]


def test_templates_come_in_several_phrasings(splits: Splits) -> None:
    asked = defaultdict(set)
    for row in splits["train"] + splits["eval"]:
        asked[row["sql"]].add(row["question"])
    assert Counter(len(questions) > 1 for questions in asked.values())[True] > 150


def test_sql_has_joins_groups_nesting_and_order(splits: Splits) -> None:
    queries = [row["sql"] for row in splits["train"]]
    for word, least in (("JOIN", 150), ("GROUP BY", 80), ("ORDER BY", 60), ("(SELECT", 15), ("HAVING", 15)):
        assert sum(word in sql for sql in queries) >= least, word


def test_the_same_seed_gives_the_same_in_every_process(splits: Splits, folder: Path, tmp_path: Path) -> None:
    script = """
import json, sys
from demo.text2sql import make_text2sql
print(json.dumps(make_text2sql(sys.argv[1])))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", script, str(tmp_path)]
    made = json.loads(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
    assert made == splits
    assert len(DATABASES) == 3
    for database in DATABASES:
        assert dump(tmp_path / f"{database.name}.sqlite") == dump(folder / f"{database.name}.sqlite")


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


def test_foreign_keys_hold_between_three_tables(splits: Splits, folder: Path) -> None:
    for database in DATABASES:
        with closing(sqlite3.connect(folder / f"{database.name}.sqlite")) as connection:
            assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        assert len(schema_of_file(folder / f"{database.name}.sqlite").line.split(" | ")) == 3


def test_another_seed_gives_other_databases_and_files_are_replaced(tmp_path: Path) -> None:
    first = make_text2sql(tmp_path, seed=1)
    before = dump(tmp_path / "library.sqlite")
    second = make_text2sql(tmp_path, seed=2)
    assert first != second
    rows = [row for splits in (first, second) for split in splits.values() for row in split]
    assert any("''" in row["sql"] and "'" in row["question"] for row in rows)
    assert dump(tmp_path / "library.sqlite") != before


def test_the_command_writes_the_generated_rows_and_databases(splits: Splits, folder: Path, tmp_path: Path) -> None:
    main(["text2sql", str(tmp_path / "out")])
    for name, generated in splits.items():
        assert (tmp_path / "out" / f"{name}.jsonl").read_bytes() == make.lines(generated)
    for database in DATABASES:
        name = f"{database.name}.sqlite"
        assert dump(tmp_path / "out" / "databases" / name) == dump(folder / name)
    rows: list[dict[str, Any]] = [
        json.loads(line) for line in (tmp_path / "out" / "eval.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert rows
    assert all(find_database(tmp_path / "out" / "databases", row["db_id"]).is_file() for row in rows)
