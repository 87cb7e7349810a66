"""``fulltune init``: what it prints, its JSON, and its errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fulltune.cli.main import app
from fulltune.config import load_config


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    lines = ["ref;complaint;department;note"]
    for i in range(90):
        place = ("billing", "delivery", "returns")[i % 3]
        lines.append(f"T{i:03};Order {i * 7} has not been handled by {place} for {i % 9} weeks, please help;{place};")
    path = Path("tickets.csv")
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def init(*words: str | Path) -> Any:
    return CliRunner().invoke(app, ["init", *map(str, words)])


def test_what_was_inferred_is_printed_in_80_columns(rows: Path) -> None:
    shown = init(rows)
    assert shown.exit_code == 0
    assert shown.stderr == ""
    lines = shown.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) < 20
    assert lines[0] == "90 rows of tickets.csv (CSV with `;` between cells, utf-8); English"
    assert any(line.split()[:2] == ["complaint", "text"] and line.split()[-1] == "text" for line in lines)
    assert any(line.split()[:2] == ["department", "category"] and line.split()[-1] == "label" for line in lines)
    assert "  fulltune plan config.yaml" in lines
    assert "  fulltune run config.yaml" in lines
    assert load_config("config.yaml").task == "classification"


def test_one_json_object(rows: Path) -> None:
    found = json.loads(init(rows, "--json", "-o", "c.yaml", "--model", "starter:bert", "--quiet").stdout)
    assert found["file"] == "c.yaml"
    assert found["config"]["model"] == "starter:bert"
    assert found["rows"] == {"train": 90}
    assert [(one["name"], one["kind"], one["role"]) for one in found["columns"]] == [
        ("ref", "id", ""), ("complaint", "text", "text"), ("department", "category", "label"), ("note", "empty", ""),
    ]  # fmt: skip
    assert found["why"]["data.label"].startswith("3 labels: ")
    assert found["next"] == ["fulltune plan c.yaml", "fulltune run c.yaml"]


def test_names_and_examples_of_any_length_and_characters(rows: Path) -> None:
    lines = [{"body": f"Order {i * 7} has not been handled, please help", "kind": "ab"[i % 2]} for i in range(60)]
    for row in lines[::3]:
        row |= {"body": "cut off \ud83d", "n" * 5000: "x", "\ud83d": "y"}
    path = Path("rows.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    shown = init(path, "--output", "rows.yaml")
    assert shown.exit_code == 0
    assert len(shown.stdout) < 2000
    found = json.loads(init(path, "--output", "other.yaml", "--json").stdout)
    assert [column["name"][:10] for column in found["columns"]] == ["body", "kind", "n" * 10, "\\ud83d"]
    assert found["columns"][0]["example"] == "cut off \\ud83d"
    refused = CliRunner().invoke(app, ["plan", "rows.yaml", "--quick", "--set", "data.text=boody"])
    assert "no column 'boody'; expected one of body, kind" in refused.stderr
    assert len(refused.stderr) < 2000


def test_an_existing_config_and_unusable_data_are_errors(rows: Path) -> None:
    assert init(rows).exit_code == 0
    again = init(rows)
    assert again.exit_code == 1
    assert again.stderr.startswith("error: config.yaml: this file exists already")
    assert init(rows, "--force").exit_code == 0
    Path("folder.yaml").mkdir()
    assert "folder.yaml: this is a folder" in init(rows, "--force", "--output", "folder.yaml").stderr
    assert "choose another file with --output" in init(rows, "--output", "config.yaml/a.yaml").stderr
    failed = init(rows, "--task", "text2sql", "--output", "sql.yaml", "--json")
    assert failed.exit_code == 1
    assert "ref: id, 90 distinct in 90 rows, such as 'T000'" in json.loads(failed.stdout)["error"]["message"]
    assert not Path("sql.yaml").exists()
