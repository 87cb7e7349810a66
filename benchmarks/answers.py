"""Seconds until commands answer: help, mistakes in a config, lists, quick plans; and until imports are done.

    python benchmarks/answers.py [--rounds N]

Each command runs in a new process, N times; the table shows the median of wall time and of processor time (user and
system), which depends less on what else the machine does. Bounds are on wall time of an idle machine. Rows are
generated in the formats of the demo. Writes results/answers.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tools import processes

#: Rows of training data.
ROWS = 1_000

#: Name → arguments of the console script or a statement, and the bound in seconds.
COMMANDS: dict[str, tuple[list[str], float]] = {
    "import fulltune": (["-c", "import fulltune; fulltune.__version__"], 0.3),
    "import fulltune.pipeline.run": (["-c", "import fulltune.pipeline.run"], 1.2),
    "fulltune --help": (["-m", "fulltune", "--help"], 0.7),
    "run --help": (["-m", "fulltune", "run", "--help"], 0.7),
    "models soup --help": (["-m", "fulltune", "models", "soup", "--help"], 0.7),
    "doctor --help": (["-m", "fulltune", "doctor", "--help"], 0.7),
    "a typo in a command": (["-m", "fulltune", "rum", "good.json"], 0.7),
    "run, no such config": (["-m", "fulltune", "run", "nothing.yaml"], 0.7),
    "run, unknown key": (["-m", "fulltune", "run", "key.json"], 0.7),
    "run, no such file of rows": (["-m", "fulltune", "run", "file.json"], 0.7),
    "run, no such column": (["-m", "fulltune", "run", "column.json"], 0.7),
    "run, no such model": (["-m", "fulltune", "run", "model.json"], 2.0),
    "evaluate, no such run": (["-m", "fulltune", "evaluate", "latest"], 0.7),
    "lr-find, no such file of rows": (["-m", "fulltune", "lr-find", "file.json"], 0.7),
    "sweep, no such file of rows": (["-m", "fulltune", "sweep", "file.json", "--over", "train.epochs=1,2"], 0.7),
    "methods, no such file of rows": (["-m", "fulltune", "methods", "file.json"], 0.7),
    "models list": (["-m", "fulltune", "models", "list"], 0.7),
    "compare, no such run": (["-m", "fulltune", "compare", "a", "b"], 0.7),
    "plan --quick": (["-m", "fulltune", "plan", "good.json", "--quick"], 3.0),
}


def write(folder: Path) -> None:
    """Write rows and configs, right and wrong ones."""
    from fulltune.data.demo.files import write_contracts

    write_contracts(folder, n=ROWS)
    data = {"train": "train.jsonl", "eval": "eval.jsonl", "max_length": 128, "allow_leaks": True}
    good = {"model": "starter:bert", "task": "classification", "data": data}
    configs = {
        "good": good,
        "key": good | {"trainn": {}},
        "file": good | {"data": data | {"train": "rows.jsonl"}},
        "column": good | {"data": data | {"text": "body"}},
        "model": good | {"model": "starter:brt"},
    }
    for name, config in configs.items():
        (folder / f"{name}.json").write_text(json.dumps(config), encoding="utf-8")


def measured(arguments: list[str], folder: Path) -> tuple[float, float]:
    """Return the wall time and the processor time of one process in seconds."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=False, capture_output=True, cwd=folder, env=environment)
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="processes per command")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="fulltune-bench-") as place:
        write(Path(place))
        for name, (arguments, bound) in COMMANDS.items():
            times = [measured(arguments, Path(place)) for _ in range(options.rounds)]
            wall, processor = (statistics.median(column) for column in zip(*times, strict=True))
            found[name] = {"wall": wall, "processor": processor, "bound": bound}
    rows = [[name, one["wall"], one["processor"], one["bound"]] for name, one in found.items()]
    processes.table("seconds until a command answers", ("command", "wall", "processor", "bound"), rows)
    print(processes.write("answers", found))


if __name__ == "__main__":
    main()
