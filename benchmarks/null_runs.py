"""Outcomes of real runs in which tuning cannot help: shuffled labels, or a learning rate close to 0.

    python benchmarks/null_runs.py [RUNS] [CASE …]

Each case is run RUNS times (10 by default) with different seeds and rows, on the starters and the example data of the
package. Printed per case: outcomes, and how often the tuned model was called better than all and than any of its
baselines. None should be accepted beyond chance. Shuffled labels may teach how often each label occurs, so that a
tuned classifier beats an untuned one; it does not beat the majority class in accuracy, and its MCC is that of a guess.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fulltune
from fulltune.data.demo.files import write_contracts, write_tales, write_text2sql
from fulltune.records.run import Record

Rows = list[dict[str, Any]]

#: Small runs: the verdict is examined, not the model.
SMALL = {"train": {"batch_size": 8, "evaluations": 0}, "guards": {"forgetting": None}, "checkpoints": None}


def rows_of(write: Callable[[Path], object], folder: Path, seed: int, train: int, evaluation: int) -> tuple[Rows, Rows]:
    """Return random rows of an example data set."""
    write(folder)
    drawn = random.Random(seed)
    parts = []
    for name, count in (("train", train), ("eval", evaluation)):
        lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        parts.append([json.loads(line) for line in drawn.sample(lines, min(count, len(lines)))])
    return parts[0], parts[1]


def shuffled(rows: Rows, column: str, seed: int) -> Rows:
    """Return rows whose values of a column are permuted."""
    values = [row[column] for row in rows]
    random.Random(seed).shuffle(values)
    return [row | {column: value} for row, value in zip(rows, values, strict=True)]


def save(folder: Path, train: Rows, evaluation: Rows) -> dict[str, str]:
    """Write both parts and return them as a section ``data``."""
    for name, rows in (("train", train), ("eval", evaluation)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return {name: str(folder / f"{name}.jsonl") for name in ("train", "eval")}


def labels_shuffled(folder: Path, seed: int) -> dict[str, Any]:
    parts = [
        [{"text": row["text"], "label": row["label"]} for row in shuffled(part, "label", seed)]
        for part in rows_of(write_contracts, folder, seed, 200, 80)
    ]
    data = save(folder, parts[0], parts[1]) | {"max_length": 48}
    return {"model": "starter:bert", "task": "classification", "data": data, "steps": 25, "rate": 3e-4}


def classification_untrained(folder: Path, seed: int) -> dict[str, Any]:
    parts = [
        [{"text": row["text"], "label": row["label"]} for row in part]
        for part in rows_of(write_contracts, folder, seed, 120, 80)
    ]
    data = save(folder, parts[0], parts[1]) | {"max_length": 48}
    return {"model": "starter:bert", "task": "classification", "data": data, "steps": 4, "rate": 1e-9}


def tales_untrained(folder: Path, seed: int) -> dict[str, Any]:
    train, evaluation = rows_of(write_tales, folder, seed, 12, 12)
    data = save(folder, train, evaluation) | {"text": "text", "max_length": 128}
    return {"model": "starter:gpt2", "task": "causal-lm", "data": data, "steps": 4, "rate": 1e-9}


def targets_shuffled(folder: Path, seed: int) -> dict[str, Any]:
    parts = [
        [{"source": row["question"], "target": row["sql"][:60]} for row in shuffled(part, "sql", seed)]
        for part in rows_of(write_text2sql, folder, seed, 60, 24)
    ]
    data = save(folder, parts[0], parts[1]) | {"max_length": 64, "max_target_length": 32}
    return {"model": "starter:t5", "task": "seq2seq", "data": data, "steps": 8, "rate": 1e-3}


def text2sql_untrained(folder: Path, seed: int) -> dict[str, Any]:
    train, evaluation = rows_of(write_text2sql, folder, seed, 30, 20)
    data = save(folder, train, evaluation) | {"databases": str(folder / "databases"), "max_length": 256}
    return {"model": "starter:t5", "task": "text2sql", "data": data, "steps": 3, "rate": 1e-9}


CASES = {
    "classification, labels shuffled": labels_shuffled,
    "classification, rate 1e-9": classification_untrained,
    "causal-lm, rate 1e-9": tales_untrained,
    "seq2seq, targets shuffled": targets_shuffled,
    "text2sql, rate 1e-9": text2sql_untrained,
}


def run(case: str, seed: int) -> Record:
    """Run one case with its own rows."""
    with tempfile.TemporaryDirectory(prefix="fulltune-") as name:
        folder = Path(name)
        job = CASES[case](folder, seed)
        train = SMALL["train"] | {"max_steps": job.pop("steps"), "learning_rate": job.pop("rate"), "seed": seed}
        evaluation = {"max_new_tokens": 24, "continuations": 0}
        config = SMALL | job | {"train": train, "evaluation": evaluation, "baselines": {"few_shot": 1}}
        config["data"] |= {"allow_leaks": True}
        return fulltune.run(config, out=folder / "runs", progress=False)


def main(runs: int, cases: list[str]) -> None:
    """Print one line per case."""
    header = ("case", "runs", "accepted", "undecided", "rejected", "better than any baseline", "score")
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for case in cases:
        records = [run(case, seed) for seed in range(1, runs + 1)]
        outcomes = Counter(record.outcome for record in records)
        better = sum(any(one.verdict == "improved" for one in record.comparison.values()) for record in records)
        scores = {record.metric for record in records}
        counts = " | ".join(str(outcomes[name]) for name in ("accepted", "undecided", "rejected"))
        print(f"| {case} | {runs} | {counts} | {better} | {', '.join(scores)} |", flush=True)
        for record in records:
            if record.outcome == "accepted":
                print(f"  {record.headline}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10, sys.argv[2:] or list(CASES))
