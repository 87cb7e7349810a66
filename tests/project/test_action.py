"""The GitHub Action: its script runs with a fake GitHub around it, and it installs all that a verdict imports."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from matrix import often
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the action is a bash script")


def action() -> dict[str, Any]:
    loaded: dict[str, Any] = YAML(typ="safe").load((ROOT / "action.yml").read_text(encoding="utf-8"))
    return loaded


def executable(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


def predictions(path: Path, wrong: Sequence[int]) -> None:
    rows = [{"id": row, "target": "a", "prediction": "b" if row in wrong else "a"} for row in range(400)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def run_action(place: Path, **given: str) -> tuple[int, dict[str, str]]:
    """Run the step of the verdict; returns its exit code and the files that it wrote."""
    tools = place / "tools"
    tools.mkdir()
    executable(tools / "fulltune", f'#!/bin/bash\nexec "{sys.executable}" -m fulltune "$@"\n')
    executable(tools / "gh", f'#!/bin/bash\necho "$@" >> "{place}/gh"\n')
    inputs = {name: str(value.get("default", "")) for name, value in action()["inputs"].items()} | given
    (step,) = (step for step in action()["runs"]["steps"] if step.get("id") == "verdict")
    values = {f"inputs.{name}": value for name, value in inputs.items()} | {"github.event.pull_request.number": "7"}
    filled = {
        name: re.sub(r"\$\{\{ *([\w.-]+) *\}\}", lambda match: values[match[1]], text)
        for name, text in step["env"].items()
    }
    files = {"GITHUB_STEP_SUMMARY": str(place / "summary"), "GITHUB_OUTPUT": str(place / "output")}
    path = {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "RUNNER_TEMP": str(place)}
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", step["run"]],
        env=os.environ | filled | files | path, cwd=place, check=False, capture_output=True,
    )  # fmt: skip
    read = {name: place / name for name in ("summary", "output", "gh", "junit.xml")}
    return done.returncode, {name: file.read_text(encoding="utf-8") for name, file in read.items() if file.exists()}


@pytest.mark.parametrize(
    ("wrong", "code"), often([((), 0), (range(40), 3)], lambda case: case[1] == 3), ids=["passes", "fails"]
)
def test_a_change_passes_or_fails_with_a_summary_a_comment_and_a_report(
    wrong: Sequence[int], code: int, tmp_path: Path
) -> None:
    predictions(tmp_path / "before.jsonl", [1])
    predictions(tmp_path / "after.jsonl", wrong)
    found, files = run_action(
        tmp_path, before="before.jsonl", after="after.jsonl", margin="0.05", junit="junit.xml", comment="true"
    )
    assert found == code
    assert files["summary"].startswith("### ✓" if code == 0 else "### ✕")
    assert files["output"] == f"passed={'true' if code == 0 else 'false'}\n"
    assert ElementTree.fromstring(files["junit.xml"]).get("failures") == str(int(code == 3))
    assert files["gh"].startswith("pr comment 7 --edit-last")


def test_a_rising_loss_fails(tmp_path: Path) -> None:
    for name, more in (("before", 0.0), ("after", 1.0)):
        rows = [{"row": row, "loss": 1.0 + more + row % 3} for row in range(60)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    given = {"before": "before.jsonl", "after": "after.jsonl", "columns": "id=row score=loss"}
    for number, (lower, code) in enumerate({"": 1, "true": 3, "false": 0}.items()):
        place = tmp_path / str(number)
        place.mkdir()
        for name in ("before", "after"):
            shutil.copy(tmp_path / f"{name}.jsonl", place)
        assert run_action(place, **given, **{"lower-is-better": lower})[0] == code


def test_files_that_cannot_be_compared_are_an_error_and_no_verdict(tmp_path: Path) -> None:
    predictions(tmp_path / "before.jsonl", [1])
    found, files = run_action(tmp_path, before="before.jsonl", after="missing.jsonl", comment="true")
    assert (found, files) == (1, {})


def test_the_action_installs_what_a_verdict_imports(tmp_path: Path) -> None:
    (step,) = (step for step in action()["runs"]["steps"] if "install" in step["run"])
    installed = {word.lower() for word in re.findall(r"[\w.-]+", step["run"])}
    block = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("dependencies = [")[1].split("]")[0]
    needed = set(re.findall(r'"([\w.-]+)', block.lower()))
    predictions(tmp_path / "a.jsonl", [1])
    code = (
        "import sys, fulltune\nfrom importlib.metadata import distributions\n"
        f"files = [{str(tmp_path / 'a.jsonl')!r}] * 2\n"
        "for metric in ('accuracy', 'rougeL', 'bleu'): fulltune.verdict(*files, metric=metric)\n"
        "loaded = {module.split('.')[0] for module in sys.modules}\n"
        # Not packages_distributions: on Python 3.10 it knows only packages with a file top_level.txt.
        "print(*{one.name for one in distributions() for file in one.files or () if file.parts[0] in loaded})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = {name.lower().replace("_", "-") for name in done.stdout.split()}
    assert "numpy" in imported
    assert "torch" not in imported
    with_others = {"markupsafe", "threadpoolctl"}
    assert (imported & needed) - with_others <= installed
