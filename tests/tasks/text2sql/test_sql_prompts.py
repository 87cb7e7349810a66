"""What prompts show of a schema: the same in training, baselines and answers, and advice against a constant one."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import fakes
import pytest

from fulltune.config import load_config
from fulltune.evaluation.baselines.cache import cache_parts
from fulltune.pipeline import run as pipeline
from fulltune.pipeline.job import prepare_job
from fulltune.pipeline.planning.measured_plan import counted_plan
from fulltune.store.cache import cache_key
from fulltune.tasks import dataset
from fulltune.tasks.text2sql.task import Text2SQL

SCHEMA = {
    "full": "Schema: city(a text, b int; b = d.e) | d(e integer)\n\n",
    "names": "Schema: city(a, b) | d(e)\n\n",
    "none": "",
}


def config(place: Path, databases: Sequence[str] = ("geo",), **data: Any) -> dict[str, Any]:
    folder = place / "databases"
    folder.mkdir()
    for name in databases:
        with closing(sqlite3.connect(folder / f"{name}.sqlite")) as connection:
            connection.executescript(
                "CREATE TABLE city (a TEXT, b INT REFERENCES d); CREATE TABLE d (e INTEGER PRIMARY KEY)"
            )
    rows = [
        {
            "question": f"city {i}?",
            "sql": f"SELECT a FROM city WHERE {i} = {i}",
            "db_id": databases[i % len(databases)],
        }
        for i in range(16)
    ]
    for name, part in (("train", rows[:12]), ("eval", rows[12:])):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    files = {"train": str(place / "train.jsonl"), "eval": str(place / "eval.jsonl"), "databases": str(folder)}
    fakes.save("t5", place / "base")
    return {
        "model": str(place / "base"),
        "task": "text2sql",
        "data": {**files, "allow_leaks": True, **data},
        "train": {"batch_size": 4, "epochs": 1, "evaluations": 1},
    }


@pytest.mark.parametrize("form", SCHEMA)
def test_training_baselines_and_answers_show_the_same_form_of_the_schema(form: str, tmp_path: Path) -> None:
    loaded = load_config(config(tmp_path, schema_in_prompt=form))
    task, data = dataset.prepare(loaded, Text2SQL(loaded))
    bundle = fakes.bundle("gpt2")
    example, *shots = data.train.examples[:3]
    [learned] = task.encode(example, bundle)
    asked = task.request({"question": example.input})  # type: ignore[call-arg]
    prompt = f"{SCHEMA[form]}Question: city 0?\nSQL:"
    assert bundle.tokenizer.decode(learned.input_ids).startswith(prompt)
    assert bundle.tokenizer.decode(task._prompt(asked, bundle).ids) == prompt  # type: ignore[attr-defined]
    few = bundle.tokenizer.decode(task._prompt(example, bundle, shots[:1]).ids)  # type: ignore[attr-defined]
    assert few.count("Schema:") == prompt.count("Schema:")


def test_the_form_of_the_schema_is_part_of_the_key_of_cached_baselines(tmp_path: Path) -> None:
    raw = config(tmp_path)
    keys = set()
    for form in SCHEMA:
        loaded = load_config({**raw, "data": {**raw["data"], "schema_in_prompt": form}})
        task, data = dataset.prepare(loaded, Text2SQL(loaded))
        keys.add(cache_key(cache_parts(task, loaded, fakes.bundle("t5"), data.train.table, data.eval.table)))
    assert len(keys) == len(SCHEMA)


def advice(raw: dict[str, Any], quick: bool) -> list[str]:
    out = Path(raw["model"]).parent / "runs"
    plan = pipeline.plan(raw, out=out, quick=True) if quick else counted_plan(prepare_job(load_config(raw), out))
    return [line for line in plan.advice if "schema" in line]


@pytest.mark.parametrize("quick", [True, False])
def test_a_plan_advises_against_a_schema_that_is_most_of_all_rows(quick: bool, tmp_path: Path) -> None:
    raw = config(tmp_path)
    [line] = advice(raw, quick)
    assert "% of the tokens are the schema of the only database" in line
    assert "data.schema_in_prompt: none" in line
    assert advice({**raw, "data": {**raw["data"], "schema_in_prompt": "none"}}, quick) == []


def test_schemas_of_several_databases_are_needed(tmp_path: Path) -> None:
    raw = config(tmp_path, ("geo", "map"))
    assert advice(raw, quick=True) == []
    plan = pipeline.plan({**raw, "data": {**raw["data"], "schema_in_prompt": "none"}}, out=tmp_path, quick=True)
    [warning] = [text for text in plan.warnings if "schema_in_prompt" in text]
    assert "rows are about 2 databases, and prompts do not show which" in warning
