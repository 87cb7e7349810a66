"""Scaling of cost: time and memory of a step by length, batch and model size, time by rows; start-up; demos.

    python benchmarks/scaling.py [--quick] [--skip-demos]

Every point is a separate process; for the demos the fraction of time that is not training is reported. Writes
results/scaling.json and results/scaling.png.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tools import processes

Found = dict[str, Any]

#: What each line of the plot varies; the rest is as in POINT.
POINT = {"kind": "gpt2-small", "length": 256, "batch": 4, "rows": 0}
LINES: dict[str, list[Any]] = {
    "length": [64, 128, 256, 512, 1024],
    "batch": [1, 2, 4, 8, 16],
    "kind": ["gpt2-tiny", "gpt2-small", "gpt2-base"],
    "rows": [16, 32, 64, 128],
}
AXES = {"length": "tokens a row", "batch": "rows a batch", "kind": "model", "rows": "rows of data"}
DEMOS = ("contracts", "tales")


def measure(request: Found) -> Found:
    """Measure in one process: seconds of a step (or of a complete pass over ``rows``) and the peak."""
    import torch
    from tools import models

    from fulltune.config import load_config
    from fulltune.models.bundle import Bundle
    from fulltune.models.load import load
    from fulltune.pipeline.planning.probe_steps import Probe, timing
    from fulltune.records.run import ModelInfo
    from fulltune.runtime import machine, plugins
    from fulltune.tasks.base import Features
    from fulltune.training.fit import fit

    info = ModelInfo(source=request["kind"], sha256="0" * 64, family="decoder", architecture="")
    bundle = Bundle(models.make(request["kind"]), load("starter:gpt2").tokenizer, "decoder", "lm", 1024, info)
    train = {"batch_size": request["batch"], "evaluations": 0, "epochs": 1}
    config = load_config(
        {"model": "m", "task": "causal-lm", "data": {"train": "x"}, "checkpoints": None, "train": train}
    )
    ids = torch.randint(1000, (max(request["rows"], 4 * request["batch"]), request["length"])).tolist()
    features = [Features(row, row, str(number)) for number, row in enumerate(ids)]
    method = plugins.load("method", "full")(config)
    with tempfile.TemporaryDirectory() as folder:
        if request["rows"]:
            seconds = fit(bundle, method, features, None, config, output_dir=Path(folder)).train_seconds
        else:
            method.prepare(bundle)
            probe = Probe(bundle, method, features, None, Path(folder))
            seconds = statistics.median(one for _, one in timing(probe, config, request["batch"]).steps)
    return {"seconds": seconds, "peak_bytes": machine.peak_rss_bytes()}


def lines(quick: bool) -> dict[str, list[Found]]:
    found: dict[str, list[Found]] = {}
    for name, values in LINES.items():
        for value in values[:3] if quick else values:
            request = {**POINT, name: value}
            answer = processes.ask(__file__, request)
            print(f"{name} {value}: {answer}", file=sys.stderr)
            found.setdefault(name, []).append({"value": value, **answer})
    return found


def start_up(repeats: int = 5) -> dict[str, float]:
    """Return median seconds of commands that do almost nothing."""
    commands = {
        "fulltune --help": [sys.executable, "-m", "fulltune", "--help"],
        "fulltune plan --help": [sys.executable, "-m", "fulltune", "plan", "--help"],
        "import fulltune": [sys.executable, "-c", "import fulltune"],
        "import fulltune.pipeline.run": [sys.executable, "-c", "import fulltune.pipeline.run"],
    }
    return {name: statistics.median(_seconds(command) for _ in range(repeats)) for name, command in commands.items()}


def demos() -> dict[str, Found]:
    """Return seconds of each stage of a demo, and the fraction that is not training."""
    found: dict[str, Found] = {}
    for name in DEMOS:
        with tempfile.TemporaryDirectory() as out:
            command = [sys.executable, "-m", "fulltune", "demo", name, "--json", "--quiet", "--out", out]
            done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode not in (0, 3):
            found[name] = {"error": done.stderr.strip().splitlines()[-1]}
            continue
        spent = json.loads(done.stdout)["resources"]
        other = 1 - spent["train_seconds"] / spent["total_seconds"]
        found[name] = {"seconds": spent["total_seconds"], "not training": other, "stages": spent["stage_seconds"]}
    return found


def _seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def plot(found: dict[str, list[Found]]) -> Path:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(found), figsize=(4 * len(found), 6), squeeze=False)
    for column, (name, points) in enumerate(found.items()):
        whole = [point for point in points if "error" not in point]
        values = [point["value"] for point in whole]
        time = "seconds a pass" if name == "rows" else "seconds a step"
        for row, (key, scale, label) in enumerate((("seconds", 1, time), ("peak_bytes", 2**30, "peak GiB"))):
            heights = [point[key] / scale for point in whole]
            axes[row][column].plot(values, heights, marker="o")
            axes[row][column].set(xlabel=AXES[name], ylabel=label, ylim=(0, 1.1 * max(heights)))
    path = processes.RESULTS / "scaling.png"
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three points a line")
    parser.add_argument("--skip-demos", action="store_true")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure(options.one)))
        return
    found = {"point": POINT, "lines": lines(options.quick), "start_up": start_up()}
    found["demos"] = {} if options.skip_demos else demos()
    path = processes.write("scaling", found)
    for name, points in found["lines"].items():
        rows = [
            [one["value"], one.get("seconds", ""), one.get("peak_bytes", 0) / 2**30, one.get("error", "")]
            for one in points
        ]
        processes.table(f"against {name}", (name, "seconds", "peak GiB", ""), rows)
    processes.table("start-up", ("command", "seconds"), list(found["start_up"].items()))
    shares = [
        [name, one.get("seconds", ""), one.get("not training", one.get("error"))]
        for name, one in found["demos"].items()
    ]
    processes.table("demos", ("demo", "seconds", "share that is not training"), shares)
    print(path, plot(found["lines"]))


if __name__ == "__main__":
    main()
