"""Tiny models, loaded once for all tests that serve them."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import fakes
import pytest
from answering import sentence
from serving import rows_file

import fulltune
from fulltune.pipeline.loaded_model import LoadedModel

LABELS = ("film", "law", "tale")


def load(folder: Path, **config: Any) -> LoadedModel:
    """Load the model of a folder with a config."""
    model = str(folder / "model")
    return fulltune.load(model, {"model": model, **config}, out=folder / "runs")


@pytest.fixture(scope="session")
def classifier_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    fakes.save("bert", folder / "model", head="classification", labels=LABELS)
    rows_file(folder / "rows.jsonl", [{"body": sentence(i), "label": LABELS[i % 3]} for i in range(12)])
    return folder


@pytest.fixture
def classifier(classifier_folder: Path) -> LoadedModel:
    """Return a model that a test may change."""
    return _classifier(classifier_folder)


@pytest.fixture(scope="session")
def shared_classifier(classifier_folder: Path) -> LoadedModel:
    return _classifier(classifier_folder)


def _classifier(folder: Path) -> LoadedModel:
    rows = str(folder / "rows.jsonl")
    return load(
        folder,
        task="classification",
        data={"train": rows, "eval": rows, "text": "body", "allow_leaks": True},
        evaluation={"batch_size": 4},
    )


@pytest.fixture(scope="session")
def writer(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """Return a decoder without a chat template."""
    folder = tmp_path_factory.mktemp("writer")
    fakes.save("gpt2", folder / "model")
    rows = str(rows_file(folder / "rows.jsonl", [{"text": sentence(i)} for i in range(4)]))
    data = {"train": rows, "eval": rows, "allow_leaks": True}
    return load(folder, task="causal-lm", data=data, evaluation={"batch_size": 4, "max_new_tokens": 12})


TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)


@pytest.fixture(scope="session")
def talker(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """Return a decoder with a chat template, trained on prompts."""
    folder = tmp_path_factory.mktemp("talker")
    model, tokenizer = fakes.llama()
    tokenizer.chat_template = TEMPLATE
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = str(rows_file(folder / "rows.jsonl", [{"prompt": sentence(i), "completion": "yes"} for i in range(4)]))
    data = {"train": rows, "eval": rows, "allow_leaks": True}
    return load(folder, task="causal-lm", data=data, evaluation={"batch_size": 4, "max_new_tokens": 12})


@pytest.fixture(scope="session")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("databases")
    for name in ("zoo", "park"):
        with sqlite3.connect(folder / f"{name}.sqlite") as connection:
            connection.execute(f"CREATE TABLE {name} (name TEXT, legs INTEGER, photo BLOB)")
            connection.executemany(f"INSERT INTO {name} VALUES (?, ?, ?)", [("crane", 2, b"\x01"), ("ant", 6, None)])
        connection.close()
    return folder


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory, databases: Path) -> LoadedModel:
    folder = tmp_path_factory.mktemp("questions")
    fakes.save("t5", folder / "model")
    row = {"question": "How many?", "sql": "SELECT count(*) FROM zoo", "db_id": "zoo"}
    rows = str(rows_file(folder / "rows.jsonl", [row]))
    return load(
        folder,
        task="text2sql",
        data={"train": rows, "eval": rows, "databases": str(databases), "allow_leaks": True},
        evaluation={"batch_size": 4, "max_new_tokens": 6, "sql_seconds": 0.2},
    )
