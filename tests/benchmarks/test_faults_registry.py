"""The registry faults of `benchmarks/faults`, with few processes."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "faults"))

from alias_kill import alias_kills
from registry_writers import ALIAS, NAME, writers

from fulltune.store.registry.registry import Registry


def test_concurrent_writers_lose_nothing(tmp_path: Path) -> None:
    assert writers(8, tmp_path) == []
    assert len(Registry(tmp_path).versions(NAME)) == 8


def test_a_kill_while_an_alias_moves_leaves_the_old_or_the_new_state(tmp_path: Path) -> None:
    assert alias_kills(8, tmp_path) == []
    assert len(Registry(tmp_path).history(NAME, ALIAS)) >= 8
