"""SIGKILL at random moments of a run, then resume: is any run lost, and does any end differently?

    python benchmarks/faults/kills.py 100

A moment is a file that is opened, renamed or removed under the folder of runs, an optimizer step, or a pass of the
model: training, evaluation and the writing of checkpoints, counted in an uninterrupted run. Each killed run is resumed,
half of them after a second kill, and its files are compared by hash with those of the uninterrupted run.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from jobs import JOBS, job, outcome
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

import fulltune
from fulltune.store.runs import status

_FILE_EVENTS = frozenset({"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"})

#: Forks of a process that has imported torch but not used it: after use, torch cannot compute in a fork.
_clean = multiprocessing.get_context("forkserver")
_clean.set_forkserver_preload(["jobs", "fulltune.pipeline.run"])


@dataclass
class Result:
    """Results of the kills.

    Attributes:
        kills: Number of kills.
        lost: Moments after which a run could not be resumed.
        different: Moments after which it ended with other hashes, and the files concerned.
    """

    kills: int = 0
    lost: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)

    def line(self) -> str:
        lines = [f"{self.kills} kills: {len(self.lost)} unresumable, {len(self.different)} with other hashes"]
        return "\n  ".join([*lines, *self.lost, *self.different])


def kills(count: int, folder: Path, seed: int = 0) -> Result:
    """Kill ``count`` runs, alternating between the tasks."""
    numbers, result = random.Random(seed), Result()
    expected, moments = {}, {}
    configs = {task: job(folder, task) for task in list(JOBS)[:count]}
    for task, config in configs.items():
        out = folder / "whole" / task
        moments[task], _ = _run(config, out, 0)
        expected[task] = outcome(_only(out))
    for number in range(count):
        task = list(configs)[number % len(configs)]
        points = [numbers.randint(1, moments[task]) for _ in range(1 + number % 2)]
        _one(configs[task], folder / f"{number}", points, expected[task], result, f"{task} at {points}")
    return result


def _one(
    config: dict[str, Any], out: Path, points: list[int], expected: dict[str, str], result: Result, name: str
) -> None:
    for at in [*points, 0]:
        result.kills += _run(config, out, at)[1]
    runs = list(out.glob("*/record.json"))
    if len(runs) != 1:
        result.lost.append(name)
        return
    found = outcome(runs[0].parent)
    changed = [file for file in expected if found.get(file) != expected[file]]
    if changed:
        result.different.append(f"{name}: {', '.join(changed)}")


def _start_or_resume(config: dict[str, Any], out: Path) -> None:
    """Resume the existing run; one that was killed before it had a folder starts again."""
    open_runs = sorted(path.parent for path in out.glob("*/config.yaml"))
    if not open_runs:
        fulltune.run(config, out=out)
    elif status(open_runs[-1]).state != "finished":
        fulltune.run(config, out=out, resume=open_runs[-1].name)


def _run(config: dict[str, Any], out: Path, at: int) -> tuple[int, bool]:
    """Run or resume in a new process that kills itself at a moment (0: never).

    Return the moments that it saw, and whether it reached that one.
    """
    seen = _clean.Value("i", 0)
    process = _clean.Process(target=_child, args=(config, out, at, seen))
    process.start()
    process.join()
    if not at and process.exitcode:
        print(_log(out).read_text(encoding="utf-8")[-2000:], file=sys.stderr)
    return int(seen.value), process.exitcode == -signal.SIGKILL


def _child(config: dict[str, Any], out: Path, at: int, seen: Any) -> None:
    torch.set_num_threads(1)
    out.parent.mkdir(parents=True, exist_ok=True)
    with _log(out).open("a", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)

    def happen(*_: Any) -> None:
        with seen.get_lock():
            seen.value += 1
            reached = seen.value == at
        if reached:
            os.kill(os.getpid(), signal.SIGKILL)

    def passing(module: torch.nn.Module, inputs: Any) -> None:
        if hasattr(module, "save_pretrained") and hasattr(module, "loss_function"):  # a model, not one of its layers
            happen()

    def audit(event: str, arguments: Any) -> None:
        if event in _FILE_EVENTS and str(arguments[0]).startswith(str(out)):
            happen()

    sys.addaudithook(audit)
    register_optimizer_step_post_hook(happen)
    register_module_forward_pre_hook(passing)
    _start_or_resume(config, out)


def _log(out: Path) -> Path:
    """Return the log of the processes, outside the folder of runs: a log line must not count as a moment."""
    return out.parent / f"log-{out.name}.txt"


def _only(out: Path) -> Path:
    (record,) = out.glob("*/record.json")
    return record.parent


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=100)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        found = kills(asked.count, Path(place), asked.seed)
    print(found.line())
    sys.exit(bool(found.lost or found.different))
