"""Start a command on several processes: a preset as an Accelerate config, handed to ``accelerate launch``.

    fulltune launch --preset fsdp2 --processes 8 run tales.yaml

is the same as ``accelerate launch --config_file PRESET -m fulltune run tales.yaml``; the presets are plain files to
copy and change.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from fulltune.errors import ConfigError, did_you_mean
from fulltune.runtime import distributed, extras
from fulltune.runtime.config_file import read_value, to_yaml

Preset = Literal["ddp", "fsdp2", "zero1", "zero2", "zero3"]

PRESETS: tuple[Preset, ...] = ("ddp", "fsdp2", "zero1", "zero2", "zero3")

#: Commands that can share their work between processes.
COMMANDS = ("run",)


#: Environment variable that names the file in which the first worker reports its exit code.
_EXIT_CODE_FILE = "FULLTUNE_EXIT_CODE_FILE"


@dataclass(frozen=True)
class Launch:
    """The processes to start.

    Attributes:
        preset: One of :data:`PRESETS`.
        processes: Total number of processes on all machines.
        offload: Keep the optimizer's state (ZeRO), or all that is sharded (FSDP2, ZeRO-3), in host memory.
        machines: Number of machines.
        machine: Rank of this machine, from 0.
        address: ``HOST:PORT`` of machine 0 if there are several machines.
        restarts: Number of times that the processes are restarted when one of them dies.
    """

    preset: str = "ddp"
    processes: int = 2
    offload: bool = False
    machines: int = 1
    machine: int = 0
    address: str = ""
    restarts: int = 0


def accelerate_config(job: Launch) -> dict[str, Any]:
    """Return the preset with the numbers of the job, as ``accelerate launch --config_file`` reads it.

    Raises:
        ConfigError: The preset does not exist, or settings contradict each other.
    """
    _check(job)
    preset = files("fulltune.runtime") / "presets" / f"{job.preset}.yaml"
    config: dict[str, Any] = read_value(preset.read_text("utf-8"), preset.name)
    config |= {"num_processes": job.processes, "num_machines": job.machines, "machine_rank": job.machine}
    if job.machines > 1:
        host, _, port = job.address.rpartition(":")
        config |= {"main_process_ip": host, "main_process_port": int(port)}
    else:
        config["main_process_port"] = 0
    if job.offload:
        _offload(config)
    return config


def _offload(config: dict[str, Any]) -> None:
    """Enable CPU offloading in place."""
    if "fsdp_config" in config:
        config["fsdp_config"]["fsdp_offload_params"] = True
        return
    settings = config["deepspeed_config"]
    settings["offload_optimizer_device"] = "cpu"
    if settings["zero_stage"] == 3:
        settings["offload_param_device"] = "cpu"


def _check(job: Launch) -> None:
    """Check that the settings of a job fit each other."""
    if job.preset not in PRESETS:
        known = ", ".join(PRESETS)
        fix = did_you_mean(job.preset, PRESETS) or "choose one of these"
        raise ConfigError(f"there is no preset {job.preset!r}", expected=f"one of {known}", fix=fix, where="--preset")
    if job.offload and job.preset == "ddp":
        raise ConfigError("ddp cannot offload", fix="choose fsdp2, zero2 or zero3", where="--offload")
    if job.processes < 2 or job.machines < 1 or job.processes % job.machines:
        raise ConfigError(
            f"{job.processes} processes on {job.machines} machines",
            expected="at least 2 processes, the same number on each machine",
            where="--processes",
        )
    host, _, port = job.address.rpartition(":")
    if job.machines > 1 and not (host and port.isdigit()):
        raise ConfigError(
            f"{job.machines} machines with the address {job.address!r}",
            expected="HOST:PORT of machine 0",
            where="--address",
        )
    if job.machines == 1 and job.address:
        raise ConfigError(
            f"the address {job.address!r} for one machine",
            expected="an address only with several machines",
            fix="leave it out, or add --machines",
            where="--address",
        )
    if job.restarts < 0:
        raise ConfigError(f"{job.restarts} restarts", expected="0 or more", where="--restarts")
    if not 0 <= job.machine < job.machines:
        raise ConfigError(f"machine {job.machine} of {job.machines}", expected="a number from 0", where="--machine")
    if job.preset.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        raise extras.missing(f"the preset {job.preset}", ["DeepSpeed"], "deepspeed", where="--preset")


def launch(job: Launch, arguments: Sequence[str]) -> int:
    """Run ``fulltune ARGUMENTS`` on several processes and wait for them.

    Returns:
        The exit code of the first process that failed; without a failure the code that the command has on one process.

    Raises:
        ConfigError: The numbers do not fit each other, or the command cannot run on several processes.
    """
    if not arguments or arguments[0] not in COMMANDS:
        raise ConfigError(
            f"{' '.join(arguments) or 'nothing'!r} to launch",
            expected=f"a command: {', '.join(COMMANDS)}",
            fix="write it like: launch … run CONFIG",
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{job.preset}.yaml"
        path.write_text(to_yaml(accelerate_config(job)), encoding="utf-8")
        restarts = ["--max_restarts", str(job.restarts)] if job.restarts else []
        with _exit_code_file(Path(folder) / "exit-code") as reported:
            failed = _accelerate(["--config_file", str(path), *restarts, "--module", "fulltune", *arguments])
            return failed or reported()


def report_exit_code(code: int) -> None:
    """Report the exit code of a command to the launcher of this worker, which itself exits with 0.

    Nothing is reported under another launcher such as ``torchrun``; there the outcome is in the record alone.
    """
    file = os.environ.get(_EXIT_CODE_FILE)
    if file and distributed.shows_output():
        Path(file).write_text(str(code), encoding="ascii")


@contextmanager
def _exit_code_file(path: Path) -> Iterator[Callable[[], int]]:
    """Name a file to the workers; yields a function that reads the exit code that the first of them reported."""
    os.environ[_EXIT_CODE_FILE] = str(path)
    try:
        yield lambda: int(path.read_text(encoding="ascii")) if path.exists() else 0
    finally:
        del os.environ[_EXIT_CODE_FILE]


def _accelerate(arguments: list[str]) -> int:
    """Run ``accelerate launch`` in this process, and return the exit code."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        launch_command(launch_command_parser().parse_args(arguments))
    except ChildFailedError as error:
        code = int(error.get_first_failure()[1].exitcode)
        return code if code >= 0 else 128 - code  # killed by a signal: 128 + its number, as in a shell
    except SignalException:
        return 130
    return 0
