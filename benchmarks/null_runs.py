"""Outcomes of real runs in which tuning cannot help.

Labels or targets are permuted, the texts to train on are others than those that are scored, or the learning rate is
close to 0:

    python benchmarks/null_runs.py [--first SEED] [RUNS] [CASE …]

Each case is run RUNS times (10 by default) with different seeds and rows, on the starters and the example data of the
package. Printed per case: outcomes, and how often the tuned model was called better than any of its baselines; then
accepted runs of all with their exact interval (Clopper & Pearson 1934). None should be accepted beyond chance.

Permuted labels may teach how often each label occurs, so that a tuned classifier beats an untuned one; it does not beat
the majority class in accuracy, and its MCC is that of a guess. Permuted targets teach how targets look, which is a true
gain over a base that does not know it, but none over the baselines that answer with targets of train.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scipy.stats import beta

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


def other_texts(folder: Path, seed: int) -> dict[str, Any]:
    """Clauses of contracts, after which tales are scored: nothing of them is about tales."""
    train, _ = rows_of(write_contracts, folder, seed, 40, 1)
    _, evaluation = rows_of(write_tales, folder, seed, 1, 12)
    data = save(folder, [{"text": row["text"]} for row in train], [{"text": row["text"]} for row in evaluation])
    return {"model": "starter:gpt2", "task": "causal-lm", "data": data | {"max_length": 128}, "steps": 15, "rate": 4e-4}


def frozen_shuffled(folder: Path, seed: int) -> dict[str, Any]:
    """Permuted labels, and a classifier on the frozen features of the base."""
    return labels_shuffled(folder, seed) | {"method": "linear-probe", "steps": 60, "rate": 1e-3}


def queries_shuffled(folder: Path, seed: int) -> dict[str, Any]:
    parts = [shuffled(part, "sql", seed) for part in rows_of(write_text2sql, folder, seed, 60, 24)]
    data = save(folder, parts[0], parts[1]) | {"databases": str(folder / "databases"), "max_length": 256}
    return {"model": "starter:t5", "task": "text2sql", "data": data, "steps": 12, "rate": 5e-3}


def targets_shuffled(folder: Path, seed: int) -> dict[str, Any]:
    parts = [
        [{"source": row["question"], "target": row["sql"][:60]} for row in shuffled(part, "sql", seed)]
        for part in rows_of(write_text2sql, folder, seed, 60, 24)
    ]
    data = save(folder, parts[0], parts[1]) | {"max_length": 64, "max_target_length": 32}
    return {"model": "starter:t5", "task": "seq2seq", "data": data, "steps": 15, "rate": 5e-3}


def text2sql_untrained(folder: Path, seed: int) -> dict[str, Any]:
    train, evaluation = rows_of(write_text2sql, folder, seed, 30, 20)
    data = save(folder, train, evaluation) | {"databases": str(folder / "databases"), "max_length": 256}
    return {"model": "starter:t5", "task": "text2sql", "data": data, "steps": 3, "rate": 1e-9}


CASES = {
    "classification, labels shuffled": labels_shuffled,
    "classification, labels shuffled, frozen features": frozen_shuffled,
    "causal-lm, trained on other texts": other_texts,
    "classification, rate 1e-9": classification_untrained,
    "causal-lm, rate 1e-9": tales_untrained,
    "seq2seq, targets shuffled": targets_shuffled,
    "text2sql, queries shuffled": queries_shuffled,
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


def exact(events: int, n: int) -> tuple[float, float]:
    """Return the exact 95% interval of a probability (Clopper & Pearson 1934)."""
    low = 0.0 if events == 0 else float(beta.ppf(0.025, events, n - events + 1))
    return low, 1.0 if events == n else float(beta.ppf(0.975, events + 1, n - events))


def main(runs: int, first: int, cases: list[str]) -> None:
    """Print one line per case, and one about all of them."""
    header = ("case", "runs", "accepted", "undecided", "rejected", "better than any baseline", "score")
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    accepted = total = 0
    for case in cases:
        records = [run(case, seed) for seed in range(first, first + runs)]
        outcomes = Counter(record.outcome for record in records)
        better = sum(any(one.verdict == "improved" for one in record.comparison.values()) for record in records)
        scores = {record.metric for record in records}
        counts = " | ".join(str(outcomes[name]) for name in ("accepted", "undecided", "rejected"))
        print(f"| {case} | {runs} | {counts} | {better} | {', '.join(scores)} |", flush=True)
        accepted, total = accepted + outcomes["accepted"], total + runs
        for record in records:
            if record.outcome == "accepted":
                print(f"  {record.headline}", file=sys.stderr, flush=True)
    low, high = exact(accepted, total)
    print(f"\n{accepted} of {total} runs are accepted: {accepted / total:.1%} ({low:.1%} to {high:.1%})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="?", type=int, default=10)
    parser.add_argument("cases", nargs="*", default=list(CASES))
    parser.add_argument("--first", type=int, default=1, help="seed of the first run")
    options = parser.parse_args()
    main(options.runs, options.first, options.cases)
