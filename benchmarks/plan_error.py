"""Prediction of `fulltune plan` against what `fulltune run` uses: peak memory and wall time, for many kinds of jobs.

    python benchmarks/plan_error.py [--jobs NAME …] [--rows N]

Plan and run are separate processes, on generated data and models with random weights. Bounds: 15% on memory, 20% on
time, each as the largest error over the jobs. Writes results/plan_error.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from tools import processes

MEMORY_BOUND, TIME_BOUND = 0.15, 0.20

Found = dict[str, Any]

#: Name → kind and size of the model, its data, and keys of the config.
JOBS: dict[str, tuple[str, str, Found]] = {
    "bert small": ("bert-small", "contracts", {"train.batch_size": 16, "data.max_length": 128}),
    "bert small, long": ("bert-small", "contracts", {"train.batch_size": 16, "data.max_length": 512}),
    "bert base": ("bert-base", "contracts", {"train.batch_size": 8, "data.max_length": 128}),
    "bert base, accumulation": (
        "bert-base", "contracts", {"train.batch_size": 4, "train.accumulation": 4, "data.max_length": 256},
    ),
    "bert base, checkpointing": (
        "bert-base", "contracts",
        {"train.batch_size": 16, "data.max_length": 256, "train.gradient_checkpointing": True},
    ),
    "gpt2 small": ("gpt2-small", "tales", {"train.batch_size": 4, "data.max_length": 256}),
    "gpt2 small, long": ("gpt2-small", "tales", {"train.batch_size": 4, "data.max_length": 1024}),
    "gpt2 small, token budget": ("gpt2-small", "tales", {"speed.batch_tokens": 2048, "data.max_length": 512}),
    "gpt2 124M": ("gpt2-base", "tales", {"train.batch_size": 2, "data.max_length": 512}),
    "gpt2 124M, accumulation and checkpointing": (
        "gpt2-base", "tales",
        {
            "train.batch_size": 2, "train.accumulation": 2, "data.max_length": 512,
            "train.gradient_checkpointing": True,
        },
    ),
    "gpt2 124M, no dropout": (
        "gpt2-base", "tales", {"train.batch_size": 2, "data.max_length": 1024, "regularize.dropout": 0.0},
    ),
    "t5 small": ("t5-small", "text2sql", {"train.batch_size": 8, "data.max_length": 256}),
    "t5 small, wide batch": ("t5-small", "text2sql", {"train.batch_size": 32, "data.max_length": 256}),
    "t5 small, label smoothing": (
        "t5-small", "text2sql", {"train.batch_size": 8, "data.max_length": 256, "train.label_smoothing": 0.1},
    ),
}  # fmt: skip

TASKS = {"contracts": "classification", "tales": "causal-lm", "text2sql": "text2sql"}


def job(name: str, place: Path, rows: int) -> tuple[Found, list[str]]:
    """Return config and overrides of a job; create its model and data if they are missing."""
    kind, data, keys = JOBS[name]
    _write(place, kind, data)
    folder = place / data
    config = {
        "model": str(place / kind),
        "task": TASKS[data],
        "data": {
            "train": str(folder / "train.jsonl"), "eval": str(folder / "eval.jsonl"), "limit": rows, "eval_limit": 32,
            "allow_leaks": True, "max_truncated": 1.0,
        },
        "train": {"epochs": 1, "evaluations": 2},
        "baselines": {"few_shot": 1},
        "evaluation": {"continuations": 0, "max_new_tokens": 32},
        "guards": {"forgetting": {"limit": 16}},
    }  # fmt: skip
    if data == "text2sql":
        config["data"]["databases"] = str(folder / "databases")
    return config, [f"{key}={json.dumps(value)}" for key, value in keys.items()]


def _write(place: Path, kind: str, data: str) -> None:
    from fulltune.data.demo.files import DATASETS

    if not (place / data).exists():
        DATASETS[data](place / data)
    if not (place / kind).exists():
        from tools import models

        models.write(kind, place / kind)


def measure(request: Found) -> Found:
    """Measure in one process: a plan or a run."""
    import fulltune
    from fulltune.pipeline import run

    config = request["config"]
    overrides = request["overrides"]
    out = request["out"]
    if request["verb"] == "plan":
        plan = run.plan(config, out=out, overrides=overrides)
        return {"bytes": plan.peak_bytes, "seconds": plan.total_seconds, "memory": plan.memory, "stages": plan.seconds}
    record = fulltune.run(config, out=out, overrides=overrides)
    spent = record.resources
    return {"bytes": spent.peak_rss_bytes, "seconds": spent.total_seconds, "stages": spent.stage_seconds}


def compare(name: str, place: Path, rows: int) -> Found:
    config, overrides = job(name, place, rows)
    # One folder each, since the cached answers of the base are stored next to the runs.
    request = {"config": config, "overrides": overrides, "out": str(place / "runs" / name)}
    planned = processes.ask(__file__, {**request, "verb": "plan"})
    taken = processes.ask(__file__, {**request, "verb": "run"})
    if "error" in planned or "error" in taken:
        return {"error": planned.get("error") or taken["error"]}
    errors = {key: planned[key] / taken[key] - 1 for key in ("bytes", "seconds")}
    return {"planned": planned, "taken": taken, "memory_error": errors["bytes"], "time_error": errors["seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", nargs="+", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--rows", type=int, default=96, help="training rows of each job")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure(options.one)))
        return
    with tempfile.TemporaryDirectory(prefix="fulltune-bench-") as place:
        found = {name: compare(name, Path(place), options.rows) for name in options.jobs}
    show(found)
    print(processes.write("plan_error", {"bounds": [MEMORY_BOUND, TIME_BOUND], "jobs": found}))


def show(found: dict[str, Found]) -> None:
    rows: list[list[Any]] = []
    for name, one in found.items():
        if "error" in one:
            rows.append([name, one["error"]])
            continue
        planned, taken = one["planned"], one["taken"]
        sizes = [side["bytes"] / 2**20 for side in (planned, taken)]
        times = [side["seconds"] for side in (planned, taken)]
        rows.append([name, *sizes, f"{one['memory_error']:+.1%}", *times, f"{one['time_error']:+.1%}"])
    columns = ("job", "planned MiB", "taken MiB", "error", "planned s", "taken s", "error")
    processes.table("plan against run", columns, rows)
    whole = [one for one in found.values() if "error" not in one]
    for key, bound in (("memory_error", MEMORY_BOUND), ("time_error", TIME_BOUND)):
        errors = [abs(one[key]) for one in whole]
        if errors:
            verdict = "reached" if max(errors) <= bound else "missed"
            spread = f"largest {max(errors):.1%}, median {statistics.median(errors):.1%}"
            print(f"{key}: {spread}, bound {bound:.0%}: {verdict}")


if __name__ == "__main__":
    main()
