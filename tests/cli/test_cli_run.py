"""Complete runs from the command line, with a two-layer model and sixty rows."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import fakes
import pytest
from typer.testing import CliRunner

from fulltune.cli.main import app
from fulltune.records.run import read_record
from fulltune.runtime.config_file import to_yaml
from fulltune.store.runs import resolve, status

WORDS = {"positive": ("good", "great", "yes"), "negative": ("bad", "poor", "no")}


def call(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def write_rows(path: Path, count: int, seed: int) -> None:
    """Write short reviews that one word decides; no row occurs twice."""
    draw, filler = random.Random(seed), ("the movie", "this film", "a tale", "the party", "that term", "it all", "law")
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            label = ("positive", "negative")[number % 2]
            words = [*draw.sample(filler, 3), draw.choice(WORDS[label]), *draw.sample(fakes.WORDS[:50], 6)]
            file.write(json.dumps({"text": " ".join(words), "label": label}) + "\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a model, rows and a config."""
    folder = tmp_path_factory.mktemp("job")
    fakes.save("bert", folder / "base")
    write_rows(folder / "train.jsonl", 40, seed=1)
    write_rows(folder / "test.jsonl", 20, seed=2)
    config = {
        "model": str(folder / "base"),
        "task": "classification",
        "data": {"train": str(folder / "train.jsonl"), "eval": str(folder / "test.jsonl"), "allow_leaks": True},
        "train": {"epochs": 1, "learning_rate": 1e-3},
        "evaluation": {"resamples": 100},
    }
    (folder / "config.yaml").write_text(to_yaml(config))
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Any:
    return call("run", folder / "config.yaml", "--out", folder / "runs", "--json", "--quiet")


def test_json_is_the_record_and_nothing_else(run: Any, folder: Path) -> None:
    _check_json(run.stdout, run.stderr, run.exit_code, folder / "runs")


@pytest.mark.slow  # tests/cli/test_cli.py lets a library print in make test
def test_libraries_print_nothing_at_import(folder: Path) -> None:
    command = [sys.executable, "-m", "fulltune", "run", str(folder / "config.yaml"), "--out", str(folder / "new")]
    done = subprocess.run([*command, "--json", "--quiet"], check=False, capture_output=True, text=True)
    _check_json(done.stdout, done.stderr, done.returncode, folder / "new")


def _check_json(stdout: str, stderr: str, code: int, runs: Path) -> None:
    shown = json.loads(stdout)
    path = resolve(shown["run_id"], runs)
    assert shown == json.loads((path / "record.json").read_text())
    assert set(shown["scores"]) >= {"majority", "tfidf", "zero_shot", "few_shot", "tuned"}
    assert code == (0 if shown["outcome"] in ("accepted", "undecided") else 3)
    assert status(path).state == "finished"
    assert stderr == ""


def test_the_folder_holds_every_stage(run: Any, folder: Path) -> None:
    path = resolve("latest", folder / "runs")
    names = {item.name for item in path.iterdir()}
    stages = {"config.yaml", "plan.json", "audit.json", "baselines.json", "steps.jsonl", "predictions.jsonl"}
    assert stages | {"record.json", "report.html", "model", "run.log"} <= names
    record, log = read_record(path / "record.json"), (path / "run.log").read_text(encoding="utf-8")
    assert f"run {record.run_id}: " in log
    assert f"outcome: {record.outcome}. " in log
    assert [name for name in ("data", "train", "evaluate") if f"stage {name}: " not in log] == []


def test_the_output_for_people(folder: Path) -> None:
    shown = call("run", folder / "config.yaml", "--set", "train.max_steps=3", "--out", folder / "other")
    record = read_record(resolve("latest", folder / "other") / "record.json")
    flat = " ".join(shown.stdout.split())
    assert flat.startswith(" ".join(record.headline.split()))
    assert "Tuned" in flat
    assert "report.html" in "".join(shown.stdout.split())
    assert "Next: " in flat
    assert "done" in shown.stderr
    assert record.training.steps == 3


def test_plan_trains_nothing(folder: Path) -> None:
    planned = call("plan", folder / "config.yaml", "--json", "--out", folder / "planned")
    assert planned.exit_code == 0
    shown = json.loads(planned.stdout)
    assert (shown["rows"], shown["total_steps"]) == ({"train": 40, "eval": 20}, 5)
    assert not (folder / "planned").exists()
    assert "steps" in call("plan", folder / "config.yaml").stdout


@pytest.mark.parametrize("name", ["latest", "the id", "a prefix of it"])
def test_evaluating_a_run_reproduces_its_score(run: Any, folder: Path, name: str) -> None:
    shown = json.loads(run.stdout)
    names = {"latest": "latest", "the id": shown["run_id"], "a prefix of it": shown["run_id"][:15]}
    again = call("evaluate", names[name], "--out", folder / "runs", "--json", "--quiet")
    assert again.exit_code == 0
    assert json.loads(again.stdout)["scores"] == shown["scores"]["tuned"]


def test_evaluating_the_base_gives_the_zero_shot_baseline(run: Any, folder: Path) -> None:
    shown = json.loads(run.stdout)
    base = call("evaluate", folder / "base", "--config", folder / "config.yaml", "--out", folder / "runs", "--json")
    assert base.exit_code == 0
    assert json.loads(base.stdout)["scores"] == shown["scores"]["zero_shot"]
    assert "Zero-shot" in call("evaluate", folder / "base", "--config", folder / "config.yaml").stdout


def test_comparing_a_run_with_itself_finds_nothing(run: Any, folder: Path) -> None:
    run_id = json.loads(run.stdout)["run_id"]
    compared = call("compare", run_id, run_id[:15], "--out", folder / "runs", "--json")
    assert compared.exit_code == 0
    shown = json.loads(compared.stdout)
    assert len(shown["differences"]) > 0
    assert {item["delta"] for item in shown["differences"]} == {0.0}
    assert {item["verdict"] for item in shown["differences"]} == {"no detectable change"}


def test_refused_data_leaves_a_run_with_the_reason(folder: Path) -> None:
    good = json.dumps({"text": "a good film", "label": "positive"})
    (folder / "broken.jsonl").write_text(f'{good}\n{{"text": 1, "label": "positive"}}\nnot json\n')
    broken = f"data.train={folder / 'broken.jsonl'}"
    result = call("run", folder / "config.yaml", "--set", broken, "--out", folder / "refused", "--json", "--quiet")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["type"] == "DataError"
    (path,) = (folder / "refused").glob("2*")
    assert status(path).state == "refused"
    assert "broken.jsonl" in status(path).message


def test_unreadable_data_leaves_no_run(folder: Path) -> None:
    result = call(
        "run", folder / "config.yaml", "--set", "data.text=body", "--out", folder / "none", "--json", "--quiet"
    )
    assert result.exit_code == 1
    assert "no column 'body'" in json.loads(result.stdout)["error"]["message"]
    assert not (folder / "none").exists()
