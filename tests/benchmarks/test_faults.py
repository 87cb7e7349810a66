"""The fault benchmarks in their short form: kills, damage, full disks and poisoned pickles."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "faults"))

from damage import damage
from full_disk import full_disk
from pickle_bomb import pickle_bomb


def test_all_damage_to_a_checkpoint_is_detected(tmp_path: Path) -> None:
    tried, missed = damage(2, tmp_path)
    assert tried >= 5 * 10
    assert missed == []


@pytest.mark.slow  # tests/training/checkpoints/test_checkpoints.py fails a write in make test
def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    found = full_disk(2, tmp_path)
    assert found.tried == 2
    assert found.faults == []


def test_no_poisoned_pickle_runs(tmp_path: Path) -> None:
    tried, ran = pickle_bomb(tmp_path, 20)
    assert tried > 20
    assert ran == []


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
@pytest.mark.slow  # tests/pipeline/test_resumed_runs.py kills a run in make test
@pytest.mark.parametrize("count", [1, 6])
def test_killed_runs_end_like_uninterrupted_ones(count: int, tmp_path: Path) -> None:
    from kills import kills

    found = kills(count, tmp_path)
    assert found.kills >= count
    assert (found.lost, found.different) == ([], [])
