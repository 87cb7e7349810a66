"""The demos: rows, a config that anybody can run again, and the complete job on the starters without a network."""

from __future__ import annotations

import json
import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest
from matrix import often
from typer.testing import CliRunner

from fulltune.cli.demo import NAMES, prepare
from fulltune.cli.main import app
from fulltune.config import load_config
from fulltune.errors import ConfigError, StoreError


def rows(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_each_family_has_a_demo(tmp_path: Path) -> None:
    models = {load_config(prepare(name, tmp_path)).model for name in NAMES}
    assert models == {"starter:bert", "starter:gpt2", "starter:t5"}


@pytest.mark.parametrize("name", NAMES)
def test_every_demo_is_a_config_and_its_rows(name: str, tmp_path: Path) -> None:
    path = prepare(name, tmp_path / "runs")
    data = load_config(path).data
    assert len(rows(data.train)) >= 100
    assert isinstance(data.eval, str)
    assert len(rows(data.eval)) >= 25
    assert path.read_bytes() == prepare(name, tmp_path / "again").read_bytes()
    assert Path(data.train).read_bytes() == (tmp_path / "again" / "demo" / name / "train.jsonl").read_bytes()


@pytest.mark.parametrize("name", often(NAMES, lambda name: name == "contracts"))
@pytest.mark.filterwarnings("ignore:.*had no room for all", "ignore:.*script")
def test_a_demo_runs_with_no_network(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", closed)
    monkeypatch.setattr(socket, "getaddrinfo", closed)
    small = ["train.max_steps=2", "data.limit=60", "data.eval_limit=6", "evaluation.max_new_tokens=6"]
    small += ["guards.forgetting.limit=20"]
    overrides = [word for override in small for word in ("--set", override)]
    result = CliRunner().invoke(app, ["demo", name, "--out", str(tmp_path), *overrides])
    assert result.exit_code == 0, result.output  # also if the model is worse than a baseline after two steps
    assert "Report: " in result.stdout
    assert re.search(r"Seconds: \d+", result.stdout)
    assert f"demo/{name}/config.yaml" in result.stdout.replace("\n", "")


def test_files_that_did_not_change_are_kept_and_others_written_again(tmp_path: Path) -> None:
    folder = prepare("text2sql", tmp_path).parent
    database, train = folder / "databases" / "shop.sqlite", folder / "train.jsonl"
    os.utime(database, ns=(0, 0))
    content = train.read_bytes()
    train.write_bytes(b"")
    prepare("text2sql", tmp_path)
    assert database.stat().st_mtime_ns == 0  # cached answers depend on it
    assert train.read_bytes() == content


def test_an_unknown_name_lists_the_known_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"one of contracts, tales, text2sql.*Did you mean 'contracts'"):
        prepare("contrakts", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(StoreError, match="choose another"):
        prepare("contracts", tmp_path / "runs")
