"""Finished runs, made once for all tests that ask their models."""

from __future__ import annotations

import sqlite3

import pytest
from answering import Run, execute, sentence


@pytest.fixture(scope="session")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Run:
    rows = [{"body": sentence(i), "label": ("law", "film", "tale")[i % 3]} for i in range(44)]
    return execute(tmp_path_factory.mktemp("classes") / "job", "bert", "classification", rows, text="body")


@pytest.fixture(scope="session")
def several(tmp_path_factory: pytest.TempPathFactory) -> Run:
    rows = [{"text": sentence(i), "labels": [name for name in ("law", "film") if len(name) * i % 3]} for i in range(36)]
    return execute(tmp_path_factory.mktemp("several") / "job", "bert", "classification", rows)


@pytest.fixture(scope="session")
def queries(tmp_path_factory: pytest.TempPathFactory) -> Run:
    place = tmp_path_factory.mktemp("queries")
    folder = place / "databases"
    folder.mkdir()
    for name in ("zoo", "park"):
        with sqlite3.connect(folder / f"{name}.sqlite") as connection:
            connection.execute(f"CREATE TABLE {name} (name TEXT, legs INTEGER)")
        connection.close()
    rows = [
        {"question": f"{sentence(i)}?", "sql": f"SELECT name FROM {db} WHERE legs = {i}", "db_id": db}
        for i, db in ((i, ("zoo", "park")[i % 2]) for i in range(36))
    ]
    return execute(place / "job", "t5", "text2sql", rows, databases=str(folder))


@pytest.fixture(scope="session")
def tales(tmp_path_factory: pytest.TempPathFactory) -> Run:
    rows = [{"text": f"{i}: {sentence(i)}. " * 3} for i in range(32)]
    return execute(tmp_path_factory.mktemp("tales") / "job", "gpt2", "causal-lm", rows)
