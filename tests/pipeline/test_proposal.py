"""``fulltune.init``: the task, columns and settings that are inferred from data, and the config that is written."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import fulltune
from fulltune.config import ForgettingConfig, load_config
from fulltune.errors import ConfigError, DataError
from fulltune.pipeline.proposal.base_models import HUB, LOCAL, BaseModel, language_gap
from fulltune.pipeline.proposal.language import language_of, texts_by_language
from fulltune.pipeline.proposal.propose import Proposal
from fulltune.training.advice import advice
from fulltune.training.defaults import learning_rate

THINGS = ("coffee", "service", "room", "view", "soup", "waiter", "price", "music", "garden", "bread", "tea", "staff")
GOOD = ("wonderful", "excellent", "very friendly", "fresh", "lovely")
BAD = ("terrible", "cold", "far too late", "rude", "dirty")


def reviews(n: int = 120) -> list[dict[str, Any]]:
    rows = []
    for i in range(n):
        word = (GOOD if i % 2 else BAD)[(i // 2) % 5]
        text = f"The {THINGS[i % 12]} at table {i} of the {THINGS[(i * 7) % 12]} bar was {word}, said guest {i * 13}."
        rows.append(
            {
                "id": f"r{i}",
                "written": f"2024-01-{i % 28 + 1:02}",
                "opinion": text,
                "verdict": "good" if i % 2 else "bad",
            }
        )
    return rows


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], delimiter: str = ",", encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def propose(data: Any, **options: Any) -> Proposal:
    return fulltune.init(data, output="config.yaml", force=True, **options)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def roles_of(found: Proposal) -> dict[str, str]:
    return {column.role: column.name for column in found.columns if column.role}


# ---- Tasks ----


def test_labeled_texts(folder: Path) -> None:
    found = propose(write_csv(Path("reviews.csv"), reviews(), ";"))
    assert found.task == "classification"
    assert roles_of(found) == {"text": "opinion", "label": "verdict"}
    assert found.language == "English"
    assert found.rows == {"train": 120}
    assert {one.name: one.kind for one in found.columns} == {
        "id": "id", "written": "date", "opinion": "text", "verdict": "category",
    }  # fmt: skip
    assert found.config["data"]["train"] == "reviews.csv"


@pytest.mark.parametrize("separator", ["; ", "|"])
def test_several_labels_in_a_cell(separator: str, folder: Path) -> None:
    names = ("late", "broken", "rude")
    rows = [
        {"note": row["opinion"], "tags": separator.join(names[i % 2 : i % 3 + 1])} for i, row in enumerate(reviews())
    ]
    found = propose(write_csv(folder / "notes.csv", [row for row in rows if row["tags"]]))
    assert found.config["data"]["labels"] == "tags"
    assert found.config["data"]["label_separator"] == separator.strip()


def test_texts_alone_and_texts_with_titles(folder: Path) -> None:
    rows = [
        {"title": f"Story {i} of the {THINGS[i % 12]}", "text": row["opinion"] * 9, "lang": "en"}
        for i, row in enumerate(reviews())
    ]
    found = propose(write_jsonl(folder / "tales.jsonl", rows))
    assert (found.task, roles_of(found)) == ("causal-lm", {"text": "text"})
    assert found.model == "starter:gpt2"


def test_columns_can_be_named(folder: Path) -> None:
    rows = [
        {"client": f"Client {i // 6}", "note": row["opinion"], "tags": f"tag {i}", "annotator": "abc"[i % 3]}
        for i, row in enumerate(reviews())
    ]
    file = write_csv(folder / "notes.csv", rows)
    by_content = propose(file)
    assert [note for note in by_content.notes if "--label" in note] == [
        "`annotator` could be the label: fulltune init … --label annotator"
    ]
    named = propose(file, text="tags", label="annotator")
    assert roles_of(named) == {"group": "client", "text": "tags", "label": "annotator"}
    assert named.task == "classification"


def test_a_column_of_0_and_1_for_each_class_is_noted(folder: Path) -> None:
    rows = [
        {"text": row["opinion"], "tax": i % 2, "rent": i * i % 3 % 2, "work": i // 3 % 2}
        for i, row in enumerate(reviews())
    ]
    found = propose(write_csv(folder / "flags.csv", rows))
    assert any("3 columns of 0 and 1 (`tax`, `rent`, `work`)" in note for note in found.notes)


def test_a_named_column_that_does_not_exist_lists_all(folder: Path) -> None:
    file = write_csv(folder / "reviews.csv", reviews())
    with pytest.raises(
        fulltune.ConfigError, match=r"(?s)no column 'Verdict'.*Did you mean 'verdict'\? The columns are:.*opinion: text"
    ):
        propose(file, label="Verdict")
    with pytest.raises(fulltune.ConfigError, match="a label for the task seq2seq"):
        propose(file, label="verdict", task="seq2seq")


@pytest.mark.parametrize(
    ("names", "task"),
    [
        (("question", "answer"), "seq2seq"),
        (("en", "cs"), "seq2seq"),
        (("prompt", "completion"), "causal-lm"),
        (("instruction", "output"), "causal-lm"),
    ],
)
def test_pairs_of_texts(names: tuple[str, str], task: str, folder: Path) -> None:
    rows = [{names[0]: row["opinion"], names[1]: row["opinion"].upper()} for row in reviews()]
    found = propose(write_jsonl(folder / "pairs.jsonl", rows))
    assert found.task == task
    assert list(roles_of(found).values()) == list(names)


def write_database(path: Path, rows: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE city (name TEXT, people INTEGER)")
        database.executemany("INSERT INTO city VALUES (?, ?)", [(f"town {i}", i) for i in range(rows)])
    database.close()
    return path


def questions(**more: Any) -> list[dict[str, Any]]:
    return [
        {
            "question": f"Which towns have more than {i} people?",
            "sql": f"SELECT name FROM city WHERE people > {i}",
            **more,
        }
        for i in range(60)
    ]


def test_questions_with_a_database_that_rows_name(folder: Path) -> None:
    write_database(folder / "sql" / "databases" / "towns.sqlite")
    write_jsonl(folder / "sql" / "rows.jsonl", questions(base="towns", executes=True))
    found = propose("sql")
    assert (found.task, found.model) == ("text2sql", "starter:t5")
    assert roles_of(found) == {"question": "question", "sql": "sql", "db_id": "base"}
    assert found.config["data"]["databases"] == "sql/databases"


def test_questions_of_a_few_templates_are_questions(folder: Path) -> None:
    write_database(folder / "towns.dat")
    found = propose([str(write_csv(folder / "rows.csv", questions()[:9] * 10)), "towns.dat"])
    assert (found.task, roles_of(found)) == ("text2sql", {"question": "question", "sql": "sql"})


def test_queries_without_a_database_are_compared_as_text(folder: Path) -> None:
    found = propose(write_jsonl(folder / "rows.jsonl", questions()))
    assert (found.task, roles_of(found)) == ("seq2seq", {"source": "question", "target": "sql"})
    assert "text2sql" in found.notes[0]
    with pytest.raises(DataError, match="no SQLite database for the queries"):
        propose("rows.jsonl", task="text2sql")


def test_one_database_beside_the_questions(folder: Path) -> None:
    write_database(folder / "firm" / "company.db")
    write_csv(folder / "firm" / "questions.csv", questions(), ";")
    found = propose("firm")
    assert found.config["data"]["databases"] == "firm/company.db"
    assert "db_id" not in found.config["data"]
    assert propose(["firm/company.db", "firm/questions.csv"]).config == found.config


@pytest.mark.parametrize(
    ("model", "form", "epochs"),
    # 42 rows of train: at most 60 epochs; a base that may know SQL gets the schema.
    [("starter:t5", "none", 60), ("google-t5/t5-small", "none", 20), ("Qwen/Qwen3-0.6B-Base", "full", 20)],
)
def test_one_database_is_learned_from_the_queries(model: str, form: str, epochs: int, folder: Path) -> None:
    write_database(folder / "firm" / "company.db")
    write_csv(folder / "firm" / "questions.csv", questions())
    found = propose("firm", model=model)
    assert (found.config["data"]["schema_in_prompt"], found.config["train"]["epochs"]) == (form, epochs)
    assert f"about {epochs * math.ceil(48 / 16)} steps" in found.why["train.epochs"]
    assert ("a few minutes on two cores" in found.why["train.epochs"]) == (form == "none" and "starter" in found.model)
    if form == "none":
        assert "full: to ask about tables that no query of train uses" in found.why["data.schema_in_prompt"]


def test_six_hundred_questions_take_minutes(folder: Path) -> None:
    write_database(folder / "firm" / "company.db")
    rows = [{**row, "question": f"{row['question']} {i} {n}"} for n in range(10) for i, row in enumerate(questions())]
    write_csv(folder / "firm" / "questions.csv", rows)
    assert len(rows) == 600
    found = propose("firm")
    assert found.config["train"]["epochs"] == 26  # of 27 steps
    assert "about 702 steps, a few minutes on two cores" in found.why["train.epochs"]


@pytest.mark.parametrize("name", ["company.db", "firm/companies.db", "nowhere/company.sqlite"])
def test_a_missing_database_is_named_with_those_that_exist(name: str, folder: Path) -> None:
    write_database(folder / "firm" / "company.db")
    write_csv(folder / "firm" / "questions.csv", questions())
    with pytest.raises(DataError) as caught:
        propose(["firm/questions.csv", name])
    [problem] = caught.value.problems
    assert (problem.where, problem.found, problem.expected) == (name, "there is no such database", "a SQLite file")
    assert problem.fix == "databases found there: firm/company.db"


def write_own_folders(folder: Path) -> None:
    """Write a registry and a run, each with files that are named like data."""
    write_database(folder / "registry" / "registry.sqlite")
    run = folder / "20260131-235959-causal-lm-gpt2-1f0a"
    write_jsonl(run / "train.jsonl", reviews())
    (run / "notes.txt").write_text("No text of the user.\n", encoding="utf-8")
    (run / "status.json").write_text("{}", encoding="utf-8")
    (run / ".lock").touch()


@pytest.mark.parametrize("runs", ["runs", "."])
def test_runs_and_the_registry_are_no_data(runs: str, folder: Path) -> None:
    write_own_folders(folder / runs)
    write_csv(folder / "questions.csv", questions())
    assert propose("questions.csv").task == "seq2seq"
    with pytest.raises(DataError, match="No SQLite database is next to it") as caught:
        propose(["questions.csv", "company.db"])
    assert "registry" not in str(caught.value)
    write_database(folder / "company.db")
    found = propose("questions.csv")
    assert (found.task, found.config["data"]["databases"]) == ("text2sql", "company.db")


def test_texts_in_runs_are_not_read(folder: Path) -> None:
    write_own_folders(folder / "books" / "runs")
    with pytest.raises(DataError, match="no file with rows or text"):
        propose("books")


def test_a_missing_database_without_others(folder: Path) -> None:
    write_csv(folder / "questions.csv", questions())
    with pytest.raises(DataError, match="No SQLite database is next to it"):
        propose(["questions.csv", "company.db"])


def test_tables_and_the_queries_that_run_on_them_are_named(folder: Path) -> None:
    write_database(folder / "firm" / "company.db")
    write_csv(folder / "firm" / "questions.csv", questions())
    [note] = propose("firm").notes
    assert note == "database firm/company.db: city; the queries of all 60 rows were run, and none failed"
    with sqlite3.connect(folder / "firm" / "company.db") as database:
        database.execute("ALTER TABLE city RENAME TO towns")
    database.close()
    tables, failing = propose("firm").notes
    assert tables == "database firm/company.db: towns"
    named = ", ".join(f"questions.csv:{n}" for n in range(2, 22))
    assert failing.startswith(
        f"60 of 60 queries cannot be run: no such table: city ({named} and 40 more). Rows of eval among them"
    )
    assert "bad_rows" not in propose("firm").config["data"]


def test_a_few_queries_that_fail_are_left_out(folder: Path) -> None:
    write_database(folder / "firm" / "company.db")
    rows = questions()
    rows[7]["sql"] = rows[7]["sql"].replace("city", "town")
    write_csv(folder / "firm" / "questions.csv", rows)
    found = propose("firm")
    assert found.config["data"]["bad_rows"] == "skip"
    assert found.why["data.bad_rows"] == "1 of 60 queries cannot be run: left out of train"
    assert "Rows of train among them are left out (data.bad_rows: skip), those of eval are not scored" in found.notes[1]


def test_several_databases_are_named_with_what_to_do(folder: Path) -> None:
    for name in ("company", "old"):
        write_database(folder / "firm" / f"{name}.db")
    write_csv(folder / "firm" / "questions.csv", questions())
    with pytest.raises(DataError) as caught:
        propose("firm")
    message = str(caught.value)
    assert "2 databases for the queries (firm/company.db, firm/old.db)" in message
    assert "Name the one that all queries are about (fulltune init ROWS firm/company.db)" in message
    assert propose(["firm/questions.csv", "firm/company.db"]).config["data"]["databases"] == "firm/company.db"


def test_a_file_with_the_ending_of_a_database_that_is_none(folder: Path) -> None:
    write_csv(folder / "questions.csv", questions())
    Path("notdb.db").write_text("CREATE TABLE city (name TEXT)", encoding="utf-8")
    with pytest.raises(DataError, match=r"notdb\.db: this is no SQLite database; expected a file that begins with"):
        propose(["questions.csv", "notdb.db"])


def test_schemas_of_several_databases_are_shown(folder: Path) -> None:
    for name in ("towns", "cities"):
        write_database(folder / "sql" / "databases" / f"{name}.sqlite")
    rows = [{**row, "base": ("towns", "cities")[i % 2]} for i, row in enumerate(questions())]
    write_jsonl(folder / "sql" / "rows.jsonl", rows)
    assert propose("sql").config["data"]["schema_in_prompt"] == "full"


def test_a_model_that_writes_only_sql_may_forget_prose(folder: Path) -> None:
    write_database(folder / "firm" / "company.db")
    write_csv(folder / "firm" / "questions.csv", questions())
    found = propose("firm")
    assert load_config("config.yaml").guards.forgetting == ForgettingConfig(keep=[])
    assert "reported, but blocks nothing" in found.why["guards.forgetting"]
    (folder / "firm" / "company.db").unlink()
    assert propose("firm").config["guards"] == {"forgetting": {"keep": []}}  # queries compared as text
    assert "guards" not in propose(write_csv(folder / "reviews.csv", reviews())).config


def test_the_task_can_be_chosen(folder: Path) -> None:
    write_csv(folder / "reviews.csv", reviews())
    found = propose("reviews.csv", task="causal-lm", model="gpt2")
    assert (found.task, found.model, roles_of(found)) == ("causal-lm", "gpt2", {"text": "opinion"})
    with pytest.raises(ConfigError, match="Did you mean 'classification'"):
        propose("reviews.csv", task="clasification")


def test_vectors_get_names_to_be_replaced(folder: Path) -> None:
    rows = [{"text": row["opinion"], "labels": [i % 2, int(i % 3 == 0), 1]} for i, row in enumerate(reviews())]
    found = propose(write_jsonl(folder / "v.jsonl", rows))
    assert found.config["data"]["label_names"] == ["class 1", "class 2", "class 3"]
    assert found.rows == {"train": 120}
    assert "data.label_names" in found.notes[0]


def test_further_texts_beside_prompts_are_noted(folder: Path) -> None:
    rows = [
        {
            "instruction": f"Explain rule {i} of chess.",
            "input": f"The game number {i} is new.",
            "output": row["opinion"],
        }
        for i, row in enumerate(reviews())
    ]
    found = propose(write_jsonl(folder / "a.jsonl", rows))
    assert roles_of(found) == {"prompt": "instruction", "completion": "output"}
    assert "`input` is not read" in found.notes[0]


@pytest.mark.parametrize("base", [*LOCAL, *HUB], ids=lambda one: one.name)
def test_a_plan_has_no_objection_to_a_proposed_rate(base: BaseModel) -> None:
    config = load_config(
        {"model": "m", "task": "seq2seq", "data": {"train": "t"}, "train": {"learning_rate": learning_rate(base.kind)}}
    )
    is_encoder_decoder = base.family == "encoder-decoder"
    lines = advice(config, 400, base.parameters, is_encoder_decoder=is_encoder_decoder)
    assert [line for line in lines if "learning_rate" in line] == []


# ---- What cannot be chosen ----


def test_data_without_labels_lists_what_every_column_holds(folder: Path) -> None:
    rows = [{"id": row["id"], "opinion": row["opinion"], "price": 1.5 * i} for i, row in enumerate(reviews())]
    with pytest.raises(DataError) as caught:
        propose(write_csv(folder / "x.csv", rows), task="classification")
    message = str(caught.value)
    assert message.startswith("no column of labels")
    assert "  id: id, 120 distinct in 120 rows, such as 'r0'" in message
    assert "  opinion: text, 120 distinct in 120 rows, such as 'The coffee at table 0" in message
    assert "  price: number, 120 distinct in 120 rows, such as '0.0'" in message
    assert not (folder / "config.yaml").exists()


def test_numbers_alone_fit_no_task(folder: Path) -> None:
    with pytest.raises(DataError, match="no column of text; expected texts, texts with labels, or pairs of texts"):
        propose(write_csv(folder / "x.csv", [{"a": i, "b": i / 7} for i in range(99)]))


def test_shapes_that_no_task_reads_are_named(folder: Path) -> None:
    rows: list[dict[str, Any]] = [{"tokens": ["Ann", "sings", str(i)], "tags": ["B-PER", "O", "O"]} for i in range(30)]
    with pytest.raises(DataError, match="lists of tokens with one tag each"):
        propose(write_jsonl(folder / "ner.jsonl", rows))
    rows = [{"premise": r["opinion"], "hypothesis": r["opinion"].upper(), "label": r["verdict"]} for r in reviews()]
    with pytest.raises(DataError, match="pairs of texts with a label"):
        propose(write_jsonl(folder / "pairs.jsonl", rows))


def test_chats_are_learned_by_a_decoder_or_as_asked_for(folder: Path) -> None:
    rows = [
        {"conversations": [{"from": "human", "value": f"hi {i}"}, {"from": "gpt", "value": f"you are {i}"}]}
        for i in range(30)
    ]
    file = write_jsonl(folder / "shared.jsonl", rows)
    proposal = propose(file)
    assert (proposal.task, proposal.config["data"]["messages"]) == ("causal-lm", "conversations")
    assert proposal.rows == {"train": 30}
    assert propose(file, task="seq2seq").config["data"]["messages"] == "conversations"


def test_too_few_rows_to_hold_one_out(folder: Path) -> None:
    Path("novel.txt").write_text("It was a dark and stormy night. " * 99, encoding="utf-8")
    with pytest.raises(DataError, match=r"1 row; expected at least 8.*divide long texts into several"):
        propose("novel.txt")
    uneven = [{f"column {number}": "It was dark and stormy.", "n": number} for number in range(20)]
    with pytest.raises(DataError, match=r"1 row that can be used; expected(.|\n)*uneven.jsonl:2.*and 16 more, field"):
        propose(write_jsonl(folder / "uneven.jsonl", uneven))


def test_a_row_in_place_of_the_column_names(folder: Path) -> None:
    Path("rows.csv").write_text("\n".join(f"{row['opinion']};{row['verdict']}" for row in reviews()), encoding="utf-8")
    with pytest.raises(DataError, match=r"the first line is a row.*Add a header"):
        propose("rows.csv")


# ---- Sources ----


def test_files_are_splits_by_their_names(folder: Path) -> None:
    rows = reviews(180)
    for name, part in {"train": rows[:120], "dev": rows[120:150], "test": rows[150:]}.items():
        write_jsonl(folder / "data" / f"reviews.{name}.jsonl", part)
    write_jsonl(folder / "data" / "small.jsonl", rows[:20])
    (folder / "data" / "schemas.json").write_text("{}")
    found = propose("data")
    assert found.rows == {"train": 120, "valid": 30, "eval": 30}
    assert [found.config["data"][name] for name in ("train", "valid", "eval")] == [
        f"data/reviews.{name}.jsonl" for name in ("train", "dev", "test")
    ]
    assert found.notes[-1] == "another data set there: fulltune init data/small.jsonl"
    named = propose(["data/reviews.train.jsonl", "data/reviews.dev.jsonl"])
    assert named.config["data"]["eval"] == "data/reviews.dev.jsonl"
    assert propose("data/reviews.*.jsonl").rows == found.rows


@pytest.mark.parametrize(("rows", "limit"), [(600, None), (601, 500)])
def test_a_limit_of_scored_rows_leaves_out_more_than_a_few(rows: int, limit: int | None, folder: Path) -> None:
    write_csv(folder / "d" / "train.csv", reviews())
    write_csv(folder / "d" / "test.csv", reviews(rows))
    assert propose("d").config["data"].get("eval_limit") == limit


def test_shards_are_one_source(folder: Path) -> None:
    for i in range(3):
        write_jsonl(folder / f"rows-{i}.jsonl", reviews()[i::3])
    assert propose("rows-*.jsonl").config["data"]["train"] == ["rows-0.jsonl", "rows-1.jsonl", "rows-2.jsonl"]


def test_rows_of_eval_that_are_in_train_are_allowed_and_reported(folder: Path) -> None:
    write_jsonl(folder / "d" / "train.jsonl", reviews())
    write_jsonl(
        folder / "d" / "test.jsonl",
        reviews()[:3]
        + [{**row, "opinion": f"Nothing about {i}: {i * 7} of {i + 3} agree"} for i, row in enumerate(reviews(20))],
    )
    found = propose("d")
    assert found.config["data"]["allow_leaks"] is True
    assert found.notes[-1].startswith("3 of 23 rows of eval are also in train")


def test_rows_that_repeat_between_groups_are_left_out_as_in_a_run(folder: Path) -> None:
    rows = [{**row, "hotel": f"Hotel {i // 6}"} for i, row in enumerate(reviews(180))]
    for place in range(0, 180, 5):  # every fifth row is that of another hotel
        rows[place]["opinion"] = "Breakfast is served from seven to ten, on the terrace above the garden."
        rows[place]["verdict"] = "good"
    found = propose(write_csv(folder / "r.csv", rows))
    assert found.config["data"]["group"] == "hotel"
    assert "allow_leaks" not in found.config["data"]
    leaks = fulltune.plan(found.file, quick=True).data.leaks
    assert leaks is not None
    assert leaks.rows > 0.05 * leaks.of
    assert not leaks.counted
    assert f"{leaks.rows} of {leaks.of} rows of eval are also in train: they are left out of the scores" in found.notes


def test_spellings_of_a_label_are_shown_and_merged(folder: Path) -> None:
    rows = reviews()
    for place, label in ((3, "Good "), (7, "Good "), (4, "BAD")):
        rows[place]["verdict"] = label
    found = propose(write_csv(folder / "r.csv", rows))
    assert found.config["data"]["merge_labels"] is True
    assert found.why["task"] == "`verdict` has 2 values in 120 rows, if spellings are merged"
    assert found.why["data.label"] == "2 labels: bad (60), good (60)"
    assert found.why["data.merge_labels"].startswith("one label in several spellings: 'BAD' = 'bad'; 'Good ' = 'good'.")
    [warning] = found.warnings
    assert "'good' (58 rows: r.csv:" in warning
    assert "and 'Good ' (2 rows: r.csv:5, r.csv:9) as 'good'" in warning
    assert "data.merge_labels is set" in warning
    assert fulltune.plan(found.file, quick=True).data.labels.distinct == 2
    [line] = [line for line in (folder / "config.yaml").read_text().splitlines() if "'Good '" in line]
    assert line.lstrip().startswith("#")


def test_spellings_that_no_key_merges_are_shown(folder: Path) -> None:
    rows = reviews()
    rows[3]["verdict"] = "go\u043ed"
    found = propose(write_csv(folder / "r.csv", rows))
    assert "merge_labels" not in found.config["data"]
    [warning] = found.warnings
    assert warning.startswith("one label in several spellings? 'good' (59 rows: r.csv:3, ")
    assert "and 'go\\u043ed' (1 row: r.csv:5): if so, write it in one way" in warning


def test_a_group_stays_together(folder: Path) -> None:
    rows = [{**row, "hotel": f"Hotel {i // 6}"} for i, row in enumerate(reviews(180))]
    found = propose(write_csv(folder / "r.csv", rows))
    assert found.config["data"]["group"] == "hotel"
    assert found.notes == ()


def test_a_few_rows_without_a_group_are_left_out_instead_of_the_group(folder: Path) -> None:
    rows = [{**row, "hotel": f"Hotel {i // 6}" if i != 40 else ""} for i, row in enumerate(reviews(180))]
    found = propose(write_csv(folder / "r.csv", rows))
    assert (found.config["data"]["group"], found.config["data"]["bad_rows"]) == ("hotel", "skip")
    assert any("1 row" in note for note in (*found.notes, *found.warnings))
    assert sum(fulltune.plan(found.file, quick=True).rows.values()) == 179


def test_folders_of_texts(folder: Path) -> None:
    for i in range(30):
        path = folder / "tales" / f"{i:02}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{reviews()[i]['opinion']} " * 9, encoding="utf-8")
    found = propose("tales")
    assert (found.task, found.rows, found.config["data"]["train"]) == ("causal-lm", {"train": 30}, "tales")
    assert (found.config["train"]["learning_rate"], found.config["regularize"]) == (4e-4, {"l2_sp": 0.02})
    assert "the last step is kept" in found.why["train.epochs"]
    assert "best step" not in (folder / "config.yaml").read_text()
    [limit] = found.notes
    assert limit.startswith("A model of 4.9M parameters learns to predict such texts (fewer bits per byte), but not to")
    assert re.search("choose a larger base, such as .* parameters\\)$", limit)
    assert not [line for line in fulltune.plan(found.file, quick=True).advice if "l2_sp" in line]
    assert propose("tales", model="openai-community/gpt2").notes == ()
    for name in ("a.docx", "b.docx", "old/c.md"):
        (folder / "tales" / name).parent.mkdir(exist_ok=True)
        (folder / "tales" / name).write_text("unread")
    told = "tales: 3 files (2 .docx, 1 .md) are not read, because only .txt files are documents"
    again = propose("tales")
    assert (again.notes, again.read) == ((limit, told), found.read)
    assert told in fulltune.plan(again.file, quick=True).warnings
    for path in (folder / "tales").glob("*.txt"):
        path.unlink()
    for read in (propose, lambda _: fulltune.plan(again.file, quick=True)):
        with pytest.raises(DataError, match=r"it has 3 files \(2 \.docx, 1 \.md\): a\.docx, b\.docx, old/c\.md"):
            read("tales")


def test_steps_and_epochs_count_the_windows_of_long_documents(folder: Path) -> None:
    long = [{"text": f"Tale {i}. " + " ".join(f"{word}{(i * n) % 97}" for n in range(90) for word in THINGS)}
            for i, _ in enumerate(reviews(40))]  # fmt: skip
    write_jsonl(folder / "train.jsonl", long)
    write_jsonl(folder / "test.jsonl", [{"text": f"{row['opinion']} The end."} for row in reviews(8)])
    found = propose(["train.jsonl", "test.jsonl"], task="causal-lm")
    planned = fulltune.plan(found.file, quick=True)
    assert planned.total_steps > 5 * 40
    assert f"about {planned.total_steps:,} steps" in found.why["train.epochs"]
    assert found.config["train"]["epochs"] == 4


def test_languages_of_a_folder_are_counted_whatever_comes_first(folder: Path) -> None:
    texts = {
        "a_english": (12, "The old miller went to the river and found that the goose was not there for him. "),
        "b_czech": (
            11,
            "Starý mlýnář šel k řece a na břehu se mu zjevil vodník, který je jako jeho bratr, ale menší. ",
        ),
        "c_russian": (40, "Жили-были старик со старухой, и не было у них никого, кроме внучки, и она как все пела. "),
    }
    for name, (count, text) in texts.items():
        for i in range(count):
            path = folder / "tales" / name / f"{i:02}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{i} {text}" * 50, encoding="utf-8")
    found = propose("tales", task="causal-lm")
    assert (found.language, found.languages) == ("Russian", {"Russian": 40, "English": 12, "Czech": 11})
    assert "in Russian 40, English 12, Czech 11." in " ".join((folder / "config.yaml").read_text("utf-8").split())
    assert found.why["model"].endswith("pretrained on English and Russian, not on Czech")
    named = ", ".join(str(Path("b_czech", f"{i:02}.txt")) for i in range(3))
    assert (
        f"11 of 63 texts are in languages that starter:gpt2 was not pretrained on: Czech, such as {named}"
    ) in found.notes
    text = [texts["a_english"][1] * 20] * 30 + [texts["c_russian"][1] * 20] * 99
    assert language_of(text) == "Russian"


@pytest.mark.parametrize(("ukrainian", "named"), [(3, {}), (12, {"Russian": 90, "Ukrainian": 12})])
def test_a_few_texts_that_read_like_a_related_language_are_a_dialect(ukrainian: int, named: dict[str, int]) -> None:
    russian = "Жили-были старик со старухой, и не было у них никого, кроме внучки, и она как все пела. " * 5
    other = "Жив у лісі дід, що не мав нікого, і він був як у казці, але за рікою його чекала внучка до ранку. " * 5
    found = texts_by_language([russian] * 90 + [other] * ukrainian)
    assert {language: len(numbers) for language, numbers in found.items()} == named


@pytest.mark.parametrize(("size", "task"), [(9, "classification"), (90, "causal-lm")])
def test_folders_in_a_folder_are_labels_of_short_texts(size: int, task: str, folder: Path) -> None:
    for i, row in enumerate(reviews(60)):
        path = folder / "texts" / row["verdict"] / f"{i}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{row['opinion']} " * size, encoding="utf-8")
    found = propose("texts")
    assert (found.task, found.rows) == (task, {"train": 60})
    assert found.config["data"].get("label") == ("folder" if size == 9 else None)


def test_splits_in_one_file(folder: Path) -> None:
    rows = reviews(150)
    Path("all.json").write_text(json.dumps({"train": rows[:100], "dev": rows[100:120], "test": rows[120:]}))
    found = propose("all.json")
    assert found.rows == {"train": 100, "valid": 20, "eval": 30}
    assert [found.config["data"][name] for name in ("train", "valid", "eval")] == ["all.json"] * 3


def test_folders_by_split(folder: Path) -> None:
    for i, row in enumerate(reviews(60)):
        path = folder / "texts" / ("test" if i % 4 == 0 else "train") / f"{i}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(row["opinion"], encoding="utf-8")
    found = propose("texts")
    assert found.rows == {"train": 45, "eval": 15}
    assert (found.config["data"]["train"], found.config["data"]["eval"]) == ("texts/train", "texts/test")


def test_how_files_were_read_is_written_and_noted(folder: Path) -> None:
    rows = [
        {
            "Znění": f"Káva číslo {i} byla {'skvělá' if i % 2 else 'hořká'} a příště půjdu jinam.",
            "Závěr": "ano" if i % 2 else "ne",
        }
        for i in range(90)
    ]
    found = propose(write_csv(folder / "recenze.csv", rows, ";", "cp1250"))
    assert (found.config["data"]["encoding"], found.config["data"]["delimiter"]) == ("cp1250", ";")
    assert found.language == "Czech"
    assert found.config["data"]["label"] == "Závěr"
    assert any("read as cp1250" in note for note in found.notes)
    assert "`;` between cells, cp1250" in found.read


def test_a_missing_file_and_an_existing_config_are_one_report(folder: Path) -> None:
    write_csv(folder / "smlouvy.csv", reviews())
    (folder / "config.yaml").write_text("task: t")
    with pytest.raises(ConfigError) as caught:
        fulltune.init("smlovy.csv")
    assert [problem.where for problem in caught.value.problems] == ["config.yaml", "smlovy.csv"]
    assert "Did you mean 'smlouvy.csv'?" in str(caught.value)
    with pytest.raises(DataError, match="there is no such file or folder"):
        fulltune.init(["smlouvy.csv", "other.csv"], output="new.yaml")
    assert not (folder / "new.yaml").exists()


def test_a_limit_and_a_tokenizer_that_do_not_suit_the_texts_are_named(folder: Path) -> None:
    words = ("smlouvu", "nájemník", "který", "odstoupení", "je", "se", "na", "že", "nebo", "podle", "zákona")
    texts = [" ".join(words[(i * n) % 11] for n in range(1, 20 + 2 * i)) for i in range(90)]
    rows = [{"znění": text, "typ": "ab"[i % 2]} for i, text in enumerate(texts)]
    found = propose(write_csv(folder / "smlouvy.csv", rows), model="starter:bert")
    assert found.language == "Czech"
    assert found.config["data"]["max_length"] == 256
    why = found.why["data.max_length"]
    assert re.search(r"; [1-9][0-9.]*% of the texts are cut: the model reads at most 256$", why)
    [note] = [note for note in found.notes if "tokens per word" in note]
    assert note.endswith(
        "of the texts are cut: the tokenizer of starter:bert was not made for Czech; "
        "a model for this language reads more of each text"
    )


def test_a_column_that_marks_splits(folder: Path) -> None:
    rows = [{**row, "set": "train" if i < 100 else "dev" if i < 120 else "test"} for i, row in enumerate(reviews(150))]
    found = propose(write_csv(folder / "r.csv", rows))
    assert found.rows == {"train": 100, "valid": 20, "eval": 30}
    assert found.config["data"]["split"] == "set"
    assert not {"valid", "eval"} & found.config["data"].keys()
    two = propose(write_csv(folder / "r.csv", [{**row, "set": row["set"].replace("test", "dev")} for row in rows]))
    assert two.rows == {"train": 100, "eval": 50}
    assert two.config["data"]["valid"] == 0.1


def test_bad_rows_are_left_out_and_shown(folder: Path) -> None:
    rows = [{**row, "opinion": "" if i % 20 == 0 else row["opinion"]} for i, row in enumerate(reviews())]
    rows[20]["verdict"] = ""  # two problems of one row
    found = propose(write_csv(folder / "r.csv", rows))
    assert (found.rows, found.bad_rows) == ({"train": 114}, 6)
    assert found.config["data"]["bad_rows"] == "skip"
    assert found.notes[0].startswith(
        "6 rows are left out (data.bad_rows), such as r.csv:2, field 'opinion': empty text"
    )


def test_rows_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FULLTUNE_CACHE", str(folder / "cache"))
    found = propose(reviews())
    assert found.task == "classification"
    assert Path(found.config["data"]["train"]).is_file()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["nothing.csv"], "there is no such file or folder"),
        ([], "an empty list"),
        (["towns.db"], "a database without questions"),
        (["empty"], "no file with rows or text"),
        (["pipe.csv"], "a named pipe"),
        (5, "5; expected a path"),
        ([" "], "an empty path"),
    ],
)
def test_sources_that_cannot_be_read(names: Any, message: str, folder: Path) -> None:
    write_database(folder / "towns.db")
    os.mkfifo(folder / "pipe.csv")
    (folder / "empty").mkdir()
    with pytest.raises((DataError, ConfigError), match=message):
        propose(names)


# ---- The written config ----


def test_every_line_is_explained_and_the_config_is_the_returned_one(folder: Path) -> None:
    found = propose(write_csv(Path("reviews.csv"), reviews()))
    lines = Path("config.yaml").read_text(encoding="utf-8").splitlines()
    config = fulltune.load_config("config.yaml")
    assert config == fulltune.load_config(found.config)
    assert max(map(len, lines)) <= 120
    for number, line in enumerate(lines):
        if line and not line.endswith(":") and not line.lstrip().startswith("#"):
            assert "# " in line or lines[number - 1].lstrip().startswith("# "), line
    assert set(found.why) == {
        "model",
        "task",
        *(f"data.{k}" for k in found.config["data"]),
        *(f"train.{k}" for k in found.config["train"]),
    }


def test_the_written_config_runs_as_it_is(folder: Path) -> None:
    write_csv(folder / "in" / "reviews.csv", reviews())
    found = fulltune.init("in/reviews.csv", model="starter:bert", output="configs/c.yaml")
    assert found.config["data"]["train"] == "../in/reviews.csv"
    record = fulltune.run(
        "configs/c.yaml",
        overrides=[
            *("train.max_steps=2", "evaluation.resamples=100", "baselines.few_shot=1", "guards.forgetting.limit=8")
        ],
    )
    assert record.outcome in ("accepted", "rejected", "undecided")


def test_no_file_is_replaced_without_force(folder: Path) -> None:
    write_csv(folder / "reviews.csv", reviews())
    Path("config.yaml").write_text("mine")
    with pytest.raises(ConfigError, match=r"exists already.*--force"):
        fulltune.init("reviews.csv")
    assert Path("config.yaml").read_text() == "mine"
    fulltune.init("reviews.csv", force=True)
    assert "task: classification" in Path("config.yaml").read_text()
    with pytest.raises(ConfigError, match=r"ends in \.yaml"):
        fulltune.init("reviews.csv", output="config.json")


def test_values_of_the_data_cannot_break_the_file(folder: Path) -> None:
    rows = [
        {"my: text #1": row["opinion"], "la\nbel": f"{row['verdict']}\n# no: comment \x1b[31m"} for row in reviews()
    ]
    found = propose(write_jsonl(folder / "odd.jsonl", rows))
    config = fulltune.load_config("config.yaml")
    assert (config.data.text, config.data.label) == ("my: text #1", "la\nbel")
    assert "\x1b" not in Path("config.yaml").read_text(encoding="utf-8")
    assert found.task == "classification"


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("English", "The supplier shall not be liable for the delay of the delivery."),
        ("Czech", "Skvělá kavárna s milou obsluhou, jsem rád, že se sem vrátím, protože tu je klid a káva jako nikde."),
        ("Czech", "Je-li nájemce v prodlení, zaniká nárok do tří dnů od doručení; to i pro druhou stranu ze smlouvy."),
        ("Slovak", "Ak je nájomca v omeškaní, zaniká nárok do troch dní; to sa týka i kľúčov ku hále a dĺžky nájmu."),
        ("Polish", "Nie wiem, jak to się stało, że nie było go na miejscu i nie ma go do dziś."),
        ("Russian", "Жили-были старик со старухой, и не было у них никого, кроме внучки."),
        ("German", "Der Kläger hat die Kosten des Verfahrens zu tragen, und das war nicht strittig."),
        ("Japanese", "東京は日本の首都であり、多くの人が住んでいます。"),
        ("", "ok fine 17"),
        ("", ""),
    ],
)
def test_the_language_is_recognized_by_its_frequent_words(language: str, text: str) -> None:
    assert language_of([text] * 3) == language


def test_a_base_of_other_languages_is_told_from_one_of_the_same() -> None:
    gap = language_gap("starter:bert", "encoder", "Czech")

    assert gap is not None
    assert (gap.data, gap.base) == ("Czech", ("English", "Russian"))
    assert language_gap("starter:bert", "encoder", "Russian") is None
    assert language_gap("starter:bert", "encoder", "") is None
    assert language_gap("a-model-of-mine", "encoder", "Czech") is None
