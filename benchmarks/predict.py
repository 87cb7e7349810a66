"""Rows per second of ``fulltune predict`` and of a hand-written transformers pipeline on the same rows; peak memory.

    python benchmarks/predict.py RUN [--out runs] [--rows 2000] [--rounds 5] [--copies 200]

RUN is a finished run of classification, such as that of ``fulltune demo contracts``. The peer sorts the rows by length,
passes them to ``pipeline("text-classification")`` in batches of the same size, and puts the answers back in order. Both
are timed in pairs that alternate which one begins, without loading the model; our time includes reading the file,
probabilities of all labels, and writing the answers. The labels of both are compared row by row.

``--copies`` answers a file that repeats the rows so many times, in a new process, and prints the peak memory of that
and of the file itself. Writes results/predict.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools import processes
from transformers import pipeline

import fulltune
from fulltune.data.read import read_rows
from fulltune.store.runs import resolve

#: Answers a file in a process of its own, and prints the peak memory in MiB.
_ALONE = """
import sys, fulltune
from fulltune.runtime.machine import peak_rss_bytes
fulltune.predict(sys.argv[1], sys.argv[2], out=sys.argv[3], output=sys.argv[4], force=True)
print(peak_rss_bytes() >> 20)
"""


def main(run: str, out: str, rows: int, rounds: int, copies: int) -> None:
    model = fulltune.load(run, out=out)
    settings = model.config.data
    column = settings.column("text")
    held_out = settings.eval if isinstance(settings.eval, str) else settings.train
    texts = [str(row[column]) for row in read_rows(held_out, limit=rows).rows]
    peer = pipeline("text-classification", model=str(resolve(run, out) / "model"), device="cpu")
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "rows.jsonl"
        data.write_text("".join(json.dumps({column: text}) + "\n" for text in texts), encoding="utf-8")
        found: dict[str, Any] = {"rows": len(texts)}
        found |= rates(run, out, data, peer, texts, model.config.evaluation.batch_size, rounds)
        if copies:
            found["peak_mib"] = {count: peak(run, out, data, count) for count in (1, copies)}
    print(json.dumps(found, indent=2))
    processes.write("predict", found)


def rates(run: str, out: str, data: Path, peer: Any, texts: Sequence[str], size: int, rounds: int) -> dict[str, Any]:
    """Return rows per second of both, the median ratio of the pairs, and the number of different labels."""
    seconds: dict[str, list[float]] = {"fulltune": [], "pipeline": []}
    for number in range(rounds + 1):
        for name in ("fulltune", "pipeline") if number % 2 else ("pipeline", "fulltune"):
            if name == "fulltune":
                answers = fulltune.predict(run, data, out=out, output=data.with_suffix(".csv"), force=True)
                spent = answers.seconds
            else:
                started = time.perf_counter()
                labels = sorted_labels(peer, texts, size)
                spent = time.perf_counter() - started
            if number:  # the first pair warms up
                seconds[name].append(spent)
    ours = [row["prediction"] for row in read_rows(str(data.with_suffix(".csv"))).rows]
    ratios = [theirs / own for own, theirs in zip(seconds["fulltune"], seconds["pipeline"], strict=True)]
    return {
        "rows_per_second": {name: round(len(texts) / statistics.median(all_), 1) for name, all_ in seconds.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "different_labels": sum(a != b for a, b in zip(ours, labels, strict=True)),
    }


def sorted_labels(peer: Any, texts: Sequence[str], size: int) -> list[str]:
    """Return the labels of a pipeline that gets texts of similar length together."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]), reverse=True)
    answers = peer([texts[index] for index in order], batch_size=size, truncation=True)
    labels = dict(zip(order, (answer["label"] for answer in answers), strict=True))
    return [labels[index] for index in range(len(texts))]


def peak(run: str, out: str, data: Path, copies: int) -> int:
    """Return the peak memory in MiB of answering a file that repeats the rows."""
    repeated = data.with_name(f"copies-{copies}.jsonl")
    text = data.read_text(encoding="utf-8")
    with repeated.open("w", encoding="utf-8") as file:
        for _ in range(copies):
            file.write(text)
    command = [sys.executable, "-c", _ALONE, run, str(repeated), out, str(repeated.with_suffix(".csv"))]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--out", default="runs")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--copies", type=int, default=0)
    main(**vars(parser.parse_args()))
