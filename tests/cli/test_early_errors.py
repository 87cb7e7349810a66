"""Mistakes in a command, a config or its files are reported before torch is imported, which takes seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

#: Run several commands in one process in which an import of a heavy library is an error.
SCRIPT = """
import json, sys
for name in ("torch", "transformers", "peft", "bitsandbytes", "sklearn", "pandas"):
    sys.modules[name] = None
from typer.testing import CliRunner
from fulltune.cli.main import app
results = [CliRunner().invoke(app, words) for words in json.loads(sys.argv[1])]
print(json.dumps([[one.exit_code, one.stderr or repr(one.exception)] for one in results]))
"""

#: Case → config, or None for a file that does not exist, and part of the message.
CONFIGS: dict[str, tuple[dict[str, Any] | None, str]] = {
    "a missing config": (None, "the config file does not exist"),
    "an unknown key": ({"trainn": {}}, "Did you mean 'train'"),
    "a missing key": ({"data": {}}, "field 'data.train': missing"),
    "an unknown task": ({"task": "clasification"}, "Did you mean 'classification'"),
    "an option of another method": ({"adapter": {"rank": 4}}, "field 'adapter.rank'"),
    "a regularizer of other tasks": (
        {"task": "causal-lm", "regularize": {"r_drop": 1.0}}, "R-Drop for the task causal-lm",
    ),
    "a retention set without data": ({"guards": {"forgetting": {"sets": {"mine": {}}}}}, "forgetting.sets.mine"),
    "a missing file": ({"data": {"train": "rows.json"}}, "there is no such file or folder"),
    "a missing column": ({"data": {"train": "rows.jsonl", "eval": 0.2, "text": "body"}}, "no column 'body'"),
    "an unknown starter": ({"model": "starter:brt"}, "Did you mean 'starter:bert'"),
    "a missing folder": ({"model": "./no-such-model"}, "'./no-such-model' does not exist"),
}  # fmt: skip


#: Command → part of the message, with a config whose file of rows does not exist.
COMMANDS = {
    "run bad.json --seeds 2": "there is no such file or folder",
    "plan bad.json": "there is no such file or folder",
    "plan bad.json --learning-curve": "there is no such file or folder",
    "evaluate starter:bert --config bad.json": "there is no such file or folder",
    "lr-find bad.json": "there is no such file or folder",
    "methods bad.json": "there is no such file or folder",
    "sweep bad.json --over train.epochs=1,2": "there is no such file or folder",
    "doctor --resume bad.json": "there is no such file or folder",
    "launch run nothing.json": "the config file does not exist",
    "evaluate latest": "there is no run with a record",
    "compare one two": "there is no run 'one'",
    "models show one": "there is no model 'one'",
    "rum bad.json": "Did you mean 'run'",
    "run leaks.json": "also occur in train",
}


QUICK = "plan good.json --quick --json"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """Return exit code and message of ``fulltune run`` for each config."""
    folder = tmp_path_factory.mktemp("early")
    rows = [{"text": f"clause {number} of {number % 7}", "label": "ab"[number % 2]} for number in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    usual = {"model": "starter:bert", "task": "classification", "data": {"train": "rows.jsonl", "eval": 0.2}}
    commands = []
    for number, (changes, _) in enumerate(CONFIGS.values()):
        path = folder / f"{number}.json"
        if changes is not None:
            path.write_text(json.dumps(usual | changes), encoding="utf-8")
        commands.append(["run", path.name])
    bad = usual | {"data": {"train": "rows.json"}}
    (folder / "bad.json").write_text(json.dumps(bad), encoding="utf-8")
    leaks = usual | {"data": {"train": "rows.jsonl", "eval": "rows.jsonl"}}
    (folder / "leaks.json").write_text(json.dumps(leaks), encoding="utf-8")
    (folder / "good.json").write_text(json.dumps(usual), encoding="utf-8")
    commands += [command.split() for command in (*COMMANDS, QUICK)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(commands)],
        check=True, capture_output=True, text=True, cwd=folder, env=environment,
    )  # fmt: skip
    left = [path.name for path in folder.glob("runs/*/audit.json")]
    assert left == ["audit.json"]  # of the refused run, which says where its leaks are
    return dict(zip([*CONFIGS, *COMMANDS, QUICK], map(tuple, json.loads(done.stdout.splitlines()[-1])), strict=True))


@pytest.mark.parametrize("case", CONFIGS)
def test_a_mistake_is_reported_before_torch_is_imported(case: str, results: dict[str, tuple[int, str]]) -> None:
    code, message = results[case]
    assert CONFIGS[case][1] in message
    assert code == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_reports_mistakes_before_torch_is_imported(
    command: str, results: dict[str, tuple[int, str]]
) -> None:
    code, message = results[command]
    assert COMMANDS[command] in " ".join(message.replace("│", " ").split())
    assert code == (2 if command.startswith("rum") else 1)


def test_a_quick_plan_needs_no_torch(results: dict[str, tuple[int, str]]) -> None:
    assert results[QUICK] == (0, "None")
