"""Gain of the demos tales and text2sql over zero-shot, few-shot and cheap rivals, with several seeds and machines.

    python benchmarks/demo_tales.py tales text2sql                                   # ten seeds, as the demo runs
    python benchmarks/demo_tales.py tales --seeds 3 --settings off avx2 avx2-off threads-1 threads-2
    python benchmarks/demo_tales.py tales text2sql --seeds 0                         # only the cheap rivals

Each run is ``fulltune demo NAME`` in a process of its own with another ``train.seed``. Cheap rivals read the same rows.
For tales it is ``xz -9e`` with the training tales as its dictionary. For text2sql it is the query of the nearest
training question of the same database, by TF-IDF on words or characters, as it is and with other values.

Prints one JSON object per demo and per run, and a table at the end. Exits with 1 if a run is not accepted (better than
every baseline of the run), or its margin over the best of zero-shot, few-shot and the rivals is below 10% of the bits
per byte, or 10 points of accuracy.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from tools import processes
from tools.settings import SETTINGS

from fulltune.cli.demo import prepare
from fulltune.tasks.text2sql import execution, schema

MARGIN = 0.1

Row = dict[str, str]
_VALUE = re.compile(r"'(?:[^']|'')*'|\b\d+(?:\.\d+)?\b")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def main(names: Sequence[str], settings: Sequence[str], seeds: int, out: Path) -> int:
    results = []
    for name in names:
        rivals = RIVALS[name](prepare(name, out).parent)
        print(json.dumps({"demo": name, "rivals": rivals}), flush=True)
        for setting in settings:
            for seed in range(1, seeds + 1):
                results.append(result(name, setting, seed, run(name, out / "runs", seed, setting), rivals))
                print(json.dumps(results[-1]), flush=True)
    show(results)
    return 0 if all(one["outcome"] == "accepted" and one["margin"] >= MARGIN for one in results) else 1


def run(name: str, out: Path, seed: int, setting: str) -> dict[str, Any]:
    """Return the record of one run of a demo, as JSON, with its exit code."""
    variables, options = SETTINGS[setting]
    overrides = [part for option in (f"train.seed={seed}", *options) for part in ("--set", option)]
    command = [sys.executable, "-m", "fulltune", "demo", name, "--out", str(out), "--json", "--quiet", *overrides]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **variables}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode not in (0, 3):
        raise SystemExit(f"the run with seed {seed} and the setting {setting} failed; its message is above")
    return json.loads(done.stdout) | {"exit_code": done.returncode}


def result(
    name: str, setting: str, seed: int, record: Mapping[str, Any], rivals: Mapping[str, float]
) -> dict[str, Any]:
    """Return scores, margin, the largest loss of retention and the seconds of one run."""
    metric = record["metric"]
    scores = {system: score[metric]["value"] for system, score in record["scores"].items()}
    tuned = scores.pop("tuned")
    asked = {system: value for system, value in scores.items() if system in ("zero_shot", "few_shot")}
    others = {**asked, **rivals}
    lower = metric == "bits_per_byte"
    best = (min if lower else max)(others.values())
    return {
        "demo": name,
        "setting": setting,
        "seed": seed,
        "outcome": record["outcome"],
        "exit_code": record["exit_code"],
        "tuned": round(tuned, 4),
        "others": {system: round(value, 4) for system, value in others.items()},
        "margin": round((best - tuned) / best if lower else tuned - best, 4),
        "lost": round(max((one["change"] for one in record["retention"].values()), default=0.0), 4),
        "seconds": {**record["resources"]["stage_seconds"], "total": record["resources"]["total_seconds"]},
    }


def compressor(folder: Path) -> dict[str, float]:
    """Return bits per byte of the evaluation tales for ``xz -9e`` that has read the training tales."""
    train, evaluation = ("\n\n".join(row["text"] for row in read(folder, part)).encode() for part in ("train", "eval"))
    known, both = (len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) for text in (train, train + evaluation))
    return {"xz": 8 * (both - known) / len(evaluation)}


def neighbors(folder: Path) -> dict[str, float]:
    """Return the execution accuracy of the query of the nearest training question, raw and with replaced values."""
    train, evaluation = read(folder, "train"), read(folder, "eval")
    names = {row["db_id"] for row in train}
    databases = {name: execution.Database(schema.find_database(folder / "databases", name)) for name in names}
    features = {
        "words": TfidfVectorizer(ngram_range=(1, 2)),
        "characters": TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True),
    }
    scores = {}
    for label, vectorizer in features.items():
        pairs = list(nearest(vectorizer, train, evaluation))
        for suffix, answer in (("", copied), (", values replaced", with_values)):
            right = [is_right(databases[asked["db_id"]], asked, answer(asked, known)) for asked, known in pairs]
            scores[f"nearest by {label}{suffix}"] = float(np.mean(right))
    for database in databases.values():
        database.close()
    return scores


def nearest(vectorizer: Any, train: Sequence[Row], evaluation: Sequence[Row]) -> Iterator[tuple[Row, Row]]:
    """Yield each evaluation row with the training row of the same database whose question is most alike."""
    vectors = vectorizer.fit_transform([row["question"] for row in train])
    for row in evaluation:
        likeness = (vectors @ vectorizer.transform([row["question"]]).T).toarray().ravel()
        same = np.array([known["db_id"] == row["db_id"] for known in train])
        yield row, train[int(np.argmax(np.where(same, likeness, -1.0)))]


def copied(asked: Row, known: Row) -> str:
    return known["sql"]


def with_values(asked: Row, known: Row) -> str:
    """Return the query with its values, in their order, replaced by what the new question has in their place."""
    before, after = known["question"].split(), asked["question"].split()
    fresh = iter([word.strip(".,?") for word in after if word not in before])
    numbers = iter(_NUMBER.findall(asked["question"]))

    def replaced(match: re.Match[str]) -> str:
        if match.group().startswith("'"):
            words = [word for _, word in zip(match.group()[1:-1].split(), fresh, strict=False)]
            return "'" + " ".join(words).replace("'", "''") + "'" if words else match.group()
        return next(numbers, match.group())

    return _VALUE.sub(replaced, known["sql"])


def is_right(database: execution.Database, row: Row, query: str) -> bool:
    expected, given = database.execute(row["sql"]), database.execute(query)
    return given.error is None and execution.match(expected, given, ordered=execution.is_ordered(row["sql"]))


def read(folder: Path, part: str) -> list[Row]:
    return [json.loads(line) for line in (folder / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()]


def show(results: Sequence[Mapping[str, Any]]) -> None:
    """Print one line per demo and setting."""
    groups = {(one["demo"], one["setting"]): None for one in results}
    rows = []
    for demo, setting in groups:
        runs = [one for one in results if (one["demo"], one["setting"]) == (demo, setting)]
        tuned, best = [one["tuned"] for one in runs], runs[0]["others"]
        rows.append(
            (
                demo,
                setting,
                f"{sum(one['outcome'] == 'accepted' for one in runs)} of {len(runs)}",
                f"{min(tuned):.3f} to {max(tuned):.3f}",
                ", ".join(f"{name} {value:.3f}" for name, value in best.items()),
                f"{min(one['margin'] for one in runs):+.1%}",
                f"{max(one['lost'] for one in runs):+.1%}",
                f"{max(one['seconds']['total'] for one in runs):.0f}",
            )
        )
    columns = ("demo", "setting", "accepted", "tuned", "others", "smallest margin", "most forgotten", "seconds")
    processes.table("demos", columns, rows)


RIVALS: Mapping[str, Callable[[Path], dict[str, float]]] = {"tales": compressor, "text2sql": neighbors}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=sorted(RIVALS), metavar="NAME", help="tales, text2sql")
    parser.add_argument("--settings", nargs="+", choices=sorted(SETTINGS), default=["default"])
    parser.add_argument("--seeds", type=int, default=10, help="runs per setting")
    parser.add_argument("--out", type=Path, help="folder of rows and runs; a temporary one by default")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fulltune-") as temporary:
        raise SystemExit(main(given.names, given.settings, given.seeds, given.out or Path(temporary)))
