from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import fakes
import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from typer.testing import CliRunner

from fulltune.cli.main import app
from fulltune.errors import ConfigError, MissingDependencyError
from fulltune.runtime import launch as launching
from fulltune.runtime.config_file import to_yaml
from fulltune.runtime.launch import PRESETS, Launch, accelerate_config


def _accepted(config: dict[str, Any], folder: Path) -> argparse.Namespace:
    """Return the arguments that accelerate reads from a config file; it refuses unknown keys."""
    path = folder / "accelerate.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    load_config_from_file(str(path))
    words = ["--config_file", str(path), "--module", "fulltune", "run", "x.yaml"]
    found: argparse.Namespace = _validate_launch_command(launch_command_parser().parse_args(words))[0]
    return found


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("offload", [False, True])
def test_accelerate_accepts_every_preset(preset: str, offload: bool, tmp_path: Path) -> None:
    if preset == "ddp" and offload:
        with pytest.raises(ConfigError, match="ddp cannot offload"):
            accelerate_config(Launch(preset, 2, offload))
        return
    if preset.startswith("zero"):
        pytest.importorskip("deepspeed", reason="needs fulltune[deepspeed]")
    found = _accepted(accelerate_config(Launch(preset, 4, offload)), tmp_path)
    assert (found.num_processes, found.num_machines, found.mixed_precision) == (4, 1, "no")
    assert (found.use_fsdp, found.use_deepspeed, found.multi_gpu) == (
        preset == "fsdp2",
        preset.startswith("zero"),
        preset == "ddp",
    )
    if preset == "fsdp2":
        assert (int(found.fsdp_version), str(found.fsdp_offload_params).lower()) == (2, str(offload).lower())
    if preset.startswith("zero"):
        assert found.zero_stage == int(preset[-1])
        assert found.offload_optimizer_device == ("cpu" if offload else "none")
        assert found.offload_param_device == ("cpu" if offload and preset == "zero3" else "none")


def test_machines_need_a_rendezvous_address(tmp_path: Path) -> None:
    job = Launch("ddp", 16, machines=2, machine=1, address="node0:29500")
    found = _accepted(accelerate_config(job), tmp_path)
    assert (found.num_machines, found.machine_rank, found.main_process_ip, found.main_process_port) == (
        2,
        1,
        "node0",
        29500,
    )


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (Launch("fdsp2", 2), "there is no preset 'fdsp2'; expected one of ddp, fsdp2.*Did you mean 'fsdp2'"),
        (Launch("ddp", 1), "1 processes on 1 machines; expected at least 2"),
        (Launch("ddp", 3, machines=2, address="a:1"), "3 processes on 2 machines"),
        (Launch("ddp", 4, machines=2), "2 machines with the address ''; expected HOST:PORT"),
        (Launch("ddp", 4, machines=2, machine=2, address="a:1"), "machine 2 of 2"),
    ],
)
def test_inconsistent_options_are_reported(job: Launch, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        accelerate_config(job)


def test_a_missing_deepspeed_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"zero2 needs DeepSpeed.*\[deepspeed\]"):
        accelerate_config(Launch("zero2", 2))


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a config that can be read: it is checked before any process starts."""
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text("{model: m, task: causal-lm, data: {train: x}}", encoding="utf-8")


@pytest.mark.usefixtures("job")
def test_arguments_after_the_command_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    def start(words: list[str]) -> int:
        started.append(words)
        return 3

    monkeypatch.setattr(launching, "_accelerate", start)
    words = ["launch", "--preset", "fsdp2", "--restarts", "2", "run", "x.yaml", "--set", "train.epochs=1", "--json"]
    assert CliRunner().invoke(app, words).exit_code == 3
    assert started[0][2:] == [
        *("--max_restarts", "2", "--module", "fulltune", "run", "x.yaml", "--set", "train.epochs=1", "--json")
    ]


@pytest.mark.usefixtures("job")
def test_common_options_before_the_command_are_meant_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(launching, "_accelerate", lambda words: started.append(words) or 0)
    words = ["launch", "--quiet", "--out", "a", "--log-level", "error", "run", "x.yaml", "--out", "b"]
    assert CliRunner().invoke(app, words).exit_code == 0
    command = started[0][started[0].index("fulltune") + 1 :]
    assert command == ["run", "--out", "a", "--quiet", "--log-level", "error", "x.yaml", "--out", "b"]


@pytest.mark.usefixtures("job")
def test_launch_exits_with_the_code_that_the_first_worker_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(words: list[str]) -> int:
        monkeypatch.setenv("WORLD_SIZE", "2")
        for rank, code in ((0, 3), (1, 1)):
            monkeypatch.setenv("RANK", str(rank))
            launching.report_exit_code(code)
        return 0

    monkeypatch.setattr(launching, "_accelerate", start)
    assert CliRunner().invoke(app, ["launch", "run", "x.yaml"]).exit_code == 3
    launching.report_exit_code(3)  # under another launcher nobody asks for it


@pytest.mark.parametrize("words", [[], ["doctor"]])
def test_only_commands_that_run_distributed_are_launched(words: list[str]) -> None:
    result = CliRunner().invoke(app, ["launch", *words])
    assert result.exit_code == 1
    assert "expected a command: run" in result.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--table --preset zero3 --processes 8", "--preset and --processes: read only without --table"),
        ("--table --machines 1 --machine 0", "--machines and --machine: read only without --table"),
        ("--table --address host:1 --restarts 0", "--address and --restarts: read only without --table"),
        ("--address host:1 run x.yaml", "an address only with several machines"),
        ("--restarts -1 run x.yaml", "expected 0 or more"),
        ("--machines 0 run x.yaml", "at least 2 processes, the same number on each machine"),
    ],
)
def test_options_are_used_or_refused(words: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fulltune.cli.launch._check", lambda command: None)
    result = CliRunner().invoke(app, ["launch", *words.split()])
    assert result.exit_code in (1, 2)
    assert message in " ".join(result.output.replace("│", " ").split())


def test_the_parallel_section_of_a_config(tmp_path: Path) -> None:
    folder = fakes.save("gpt2", tmp_path / "base")
    config = tmp_path / "job.yaml"
    config.write_text(f"model: {folder}\ntask: causal-lm\ndata: {{train: none.jsonl}}\n", encoding="utf-8")
    result = CliRunner().invoke(app, ["launch", "--table", "--json", str(config)])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert [row["device_bytes"] >> 30 for row in rows] == [24, 40, 80]
    assert all(row["fits"] == dict.fromkeys(("ddp", "zero1", "zero2", "zero3", "fsdp2"), 1) for row in rows)
