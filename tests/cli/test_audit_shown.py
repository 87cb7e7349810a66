"""The audit's warnings are shown before training, once; no file is mentioned that was not written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fakes
import pytest
from typer.testing import CliRunner

from fulltune.cli.main import app
from fulltune.runtime.config_file import to_yaml

LABELS = ("spam", "Spam", "spam ", "ham", "nan", "\x1b[31mred", "\x1b[31mRed")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fakes.save("bert", tmp_path_factory.mktemp("base") / "bert")


def call(folder: Path, base: Path, verb: str, rows: list[dict[str, Any]], *options: str) -> Any:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "model": str(base),
        "task": "classification",
        "data": {"train": str(folder / "rows.jsonl"), "eval": 0.25},
        "train": {"max_steps": 1, "evaluations": 0},
        "guards": {"forgetting": None},
        "evaluation": {"resamples": 100},
        "baselines": {"few_shot": 1},
    }
    (folder / "config.yaml").write_text(to_yaml(config))
    return CliRunner().invoke(app, [verb, str(folder / "config.yaml"), "--out", str(folder / "runs"), *options])


def rows() -> list[dict[str, Any]]:
    words = list(fakes.WORDS[:50])
    return [{"text": " ".join(words[n : n + 8]), "label": LABELS[n % len(LABELS)]} for n in range(42)]


def unwrapped(output: str) -> str:
    """Return the output without the line breaks of a narrow terminal."""
    return " ".join(output.split())


def test_plan_shows_the_warnings(base: Path, tmp_path: Path) -> None:
    found = call(tmp_path, base, "plan", rows())
    assert found.exit_code == 0, found.output
    assert "Audit: 2 labels are spelled in several ways" in unwrapped(found.stdout)
    assert "'nan'" in unwrapped(found.stdout)
    assert "\x1b" not in found.output
    assert "audit.json" not in found.output
    assert "\\x1b[31m" in found.output


@pytest.mark.parametrize("options", [(), ("--quiet",)], ids=str)
def test_run_shows_the_warnings_once(base: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    found = call(tmp_path, base, "run", rows(), *options)
    shown = unwrapped(found.stderr + found.stdout)
    assert shown.count("Audit: 2 labels are spelled in several ways") == 1
    [record] = tmp_path.glob("runs/*/record.json")
    count = json.loads(record.read_text())["data"]["audit"]["warnings"]
    assert (f"Audit: {count} warnings, listed above and in audit.json" in unwrapped(found.stdout)) == (not options)
    assert "\x1b" not in found.output


def test_plan_of_bad_rows_names_no_file_and_lists_all_problems_as_json(base: Path, tmp_path: Path) -> None:
    bad = [*rows(), *({"text": "", "label": "ham"} for _ in range(30))]
    found = call(tmp_path, base, "plan", bad, "--json")
    assert found.exit_code == 1
    assert "audit.json" not in found.output
    assert "and 27 more" in found.stderr
    assert len(json.loads(found.stdout)["error"]["problems"]) >= 30
    assert list(tmp_path.rglob("audit.json")) == []
    assert "audit.json" in call(tmp_path, base, "run", bad).stderr
    assert len(list(tmp_path.rglob("audit.json"))) == 1
