"""The doctor reports what is really installed and available."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
import torch

import fulltune
from fulltune.cli.doctor import OPTIONAL, Diagnosis, diagnose, installed
from fulltune.runtime import machine


def test_versions_and_machine(tmp_path: Path) -> None:
    found = diagnose(tmp_path)
    assert found.versions["fulltune"] == fulltune.__version__
    assert found.versions["torch"] == installed("torch")
    assert found.threads == torch.get_num_threads()
    assert 1 <= found.cores <= (os.cpu_count() or 1)
    assert 0 < found.memory_free_bytes <= found.memory_bytes <= psutil.virtual_memory().total
    assert found.disk_free_bytes > 0
    assert Diagnosis.model_validate_json(found.to_json()) == found


def test_a_runs_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    assert diagnose(tmp_path / "not" / "yet").disk_free_bytes > 0
    assert not (tmp_path / "not").exists()


def test_fast_paths_agree_with_torch() -> None:
    found = diagnose()
    assert found.fast_paths["oneDNN"] == torch.backends.mkldnn.is_available()
    assert found.fast_paths["AVX-512"] == (torch.backends.cpu.get_cpu_capability() == "AVX512")
    assert len(found.fast_paths) == 7


def test_features_name_the_command_that_installs_them() -> None:
    found = diagnose()
    assert [item.package for item in found.features] == [row[0] for row in OPTIONAL]
    assert len(found.features) >= 3
    assert all(item.command.startswith("pip install ") for item in found.features)


def test_a_package_that_is_not_installed() -> None:
    assert installed("no-such-package-anywhere") is None


@pytest.mark.parametrize(
    ("files", "cores", "memory"),
    [
        ({"cpu.max": "100000 100000", "memory.max": "1000"}, 1, 1000),
        ({"cpu.max": "50000 100000", "memory.max": "max"}, 1, None),
        ({"memory/memory.limit_in_bytes": "2000"}, None, 2000),
        ({"memory/memory.limit_in_bytes": "9223372036854771712"}, None, None),
        ({}, None, None),
    ],
)
def test_container_limits_count(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, str],
    cores: int | None,
    memory: int | None,
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert machine.cores() == (cores or allowed)
    assert machine.memory_bytes() == (memory or psutil.virtual_memory().total)


def test_the_machine_in_one_line() -> None:
    line = machine.describe()
    assert f"{machine.cores()} core" in line
    assert line.endswith("GiB")
    assert "\n" not in line
