"""The commands at the end of a page lead from its folder to the config and the data, whatever the folders are named."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from fulltune.report.reproduce import commands

CONFIG = "model: m\ntask: causal-lm\ndata: {{train: {train}, eval: 0.1}}\n"


def run_folder(path: Path, train: str) -> Path:
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(CONFIG.format(train=train), encoding="utf-8")
    return path


def followed(folder: Path) -> tuple[Path, list[str]]:
    """Return the folder that the first command leads to, and the words of the second one."""
    first, second = commands(folder)
    word, place = shlex.split(first)
    assert word == "cd"
    return Path(os.path.normpath(folder / place)), shlex.split(second)


@pytest.mark.parametrize("out", ["runs", "my runs/it's 2", "deep/er/runs"])
def test_the_commands_lead_to_the_config_and_the_data(tmp_path: Path, out: str) -> None:
    (tmp_path / "data of mine").mkdir()
    (tmp_path / "data of mine" / "train.jsonl").touch()
    folder = run_folder(tmp_path / out / "20260101 run", "data of mine/train.jsonl")
    place, words = followed(folder)

    assert place == tmp_path
    assert words[:2] == ["fulltune", "run"]
    assert (place / words[2]).samefile(folder / "config.yaml")
    assert words[3:] == ([] if out == "runs" else ["--out", out])


def test_a_run_started_elsewhere_leads_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "rows of project.csv").touch()
    monkeypatch.chdir(tmp_path / "project")
    folder = run_folder(tmp_path / "disk" / "results" / "r", "rows of project.csv")
    place, words = followed(folder)

    assert place == tmp_path / "project"
    assert words == ["fulltune", "run", "../disk/results/r/config.yaml", "--out", "../disk/results"]


@pytest.mark.parametrize("train", ["/data/rows.jsonl", "owner/name#train", "[a.jsonl, b.jsonl]"])
def test_data_that_is_not_near_leads_to_the_folder_above_the_runs(tmp_path: Path, train: str) -> None:
    place, words = followed(run_folder(tmp_path / "runs" / "r", f'"{train}"' if "#" in train else train))

    assert place == tmp_path
    assert words == ["fulltune", "run", "runs/r/config.yaml"]
