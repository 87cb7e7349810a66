"""Margin of the demos over every cheap baseline, with several seeds, rows and kinds of machine.

    python benchmarks/demos.py contracts tales text2sql                      # ten seeds each, as the demos run
    python benchmarks/demos.py contracts --seeds 1 2 --settings off avx2 avx2-off threads-1 threads-2
    python benchmarks/demos.py tales --seeds 3 --set regularize.l2_sp=0.05   # another value of the config

Each run is ``fulltune run`` of the demo's config in a process of its own, with another ``train.seed``. Rows of the
contracts are those of one of ``--rows`` seeds of the generator in ``tools/demo``; the first are those of the package.
Rivals are all baselines of the run, and others that read the same rows. For contracts: a linear SVM on words (1 to 3)
and characters (2 to 5), with C by cross-validation over contracts, and logistic regression on mean vectors of the
frozen base. For tales: ``xz -9e`` with the training tales as its dictionary.

Prints one JSON object per run as it ends, and a table at the end. Exits with 1 if a run is not accepted, or its margin
over the strongest rival is too small: 10 points of the score, or, of the rival's bits per byte, 3%, because n-grams of
bytes are a strong model of small data.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline, make_union
from sklearn.svm import LinearSVC
from tools import processes
from tools.settings import SETTINGS

from fulltune.cli.demo import NAMES, prepare
from fulltune.models import inference
from fulltune.models.load import load

ROOT = Path(__file__).parents[1]
#: Seed of the package's clauses; further ones follow it.
FIRST_ROWS = 17
#: Metrics of which less is better.
LOWER = ("bits_per_byte",)
#: Smallest margin by demo: in points, and relative for bits per byte.
MARGINS = {"contracts": 0.1, "tales": 0.03, "text2sql": 0.1}

Rows = list[dict[str, str]]
Result = dict[str, Any]


def main(options: argparse.Namespace, out: Path) -> int:
    results: list[Result] = []
    for name in options.names:
        for setting in options.settings:
            for seed in options.seeds:
                config = demo(name, out / "rows", FIRST_ROWS + (seed - 1) % options.rows)
                before = core_seconds()
                record = run(config, out / "runs", seed, setting, options.set)
                spent = core_seconds() - before
                results.append(result(name, setting, seed, record, rivals(name, config.parent), spent))
                print(json.dumps(results[-1]), flush=True)
    processes.table("demos", *table(results))
    return 0 if all(passes(one) for one in results) else 1


def demo(name: str, folder: Path, rows_seed: int) -> Path:
    """Return the config of a demo, for contracts on the rows of a seed, written once."""
    home = folder / str(rows_seed if name == "contracts" else FIRST_ROWS)
    config = home / "demo" / name / "config.yaml"
    if not config.exists():
        prepare(name, home)
        if name == "contracts" and rows_seed != FIRST_ROWS:
            command = [sys.executable, "-m", "demo.contracts", str(config.parent), "--seed", str(rows_seed)]
            subprocess.run(command, check=True, env=environment({"PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tools'}"}))
    return config


def run(config: Path, out: Path, seed: int, setting: str, more: Sequence[str]) -> dict[str, Any]:
    """Return the record of one run of a config, as JSON."""
    variables, overrides = SETTINGS[setting]
    options = [part for one in (f"train.seed={seed}", *overrides, *more) for part in ("--set", one)]
    command = [sys.executable, "-m", "fulltune", "run", str(config), "--out", str(out), "--json", "--quiet", *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment(variables))
    if done.returncode not in (0, 3):
        raise SystemExit(f"the run with seed {seed} and the setting {setting} failed; its message is above")
    record: dict[str, Any] = json.loads(done.stdout)
    return record


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", **variables}


def core_seconds() -> float:
    """Return the processor time of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def result(
    name: str, setting: str, seed: int, record: Mapping[str, Any], others: Mapping[str, float], spent: float
) -> Result:
    """Return scores, margin over the strongest rival, the largest loss of retention and the time of one run."""
    metric = record["metric"]
    scores = {system: score[metric]["value"] for system, score in record["scores"].items()}
    tuned = scores.pop("tuned")
    compared = {system: round(value, 4) for system, value in {**scores, **others}.items()}
    is_lower = metric in LOWER
    strongest = (min if is_lower else max)(compared, key=lambda system: compared[system])
    best = compared[strongest]
    return {
        "demo": name,
        "setting": setting,
        "seed": seed,
        "outcome": record["outcome"],
        "tuned": round(tuned, 4),
        "strongest": strongest,
        "margin": round((best - tuned) / best if is_lower else tuned - best, 4),
        "rivals": compared,
        "lost": round(max((one["change"] for one in record["retention"].values()), default=0.0), 4),
        "core_seconds": round(spent),
        "seconds": {**record["resources"]["stage_seconds"], "total": record["resources"]["total_seconds"]},
    }


def passes(one: Mapping[str, Any]) -> bool:
    return bool(one["margin"] >= MARGINS[one["demo"]] and one["outcome"] == "accepted")


def rivals(name: str, folder: Path) -> dict[str, float]:
    """Return the scores of the baselines that a run does not have, on the rows of a folder; computed once."""
    stored = folder / "rivals.json"
    if not stored.exists():
        stored.write_text(json.dumps(RIVALS[name](folder)))
    scores: dict[str, float] = json.loads(stored.read_text())
    return scores


def compressor(folder: Path) -> dict[str, float]:
    """Return bits per byte of the evaluation tales for ``xz -9e`` that has read the training tales."""
    train, evaluation = ("\n\n".join(column(rows, "text")).encode() for rows in splits(folder))
    known, both = (len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) for text in (train, train + evaluation))
    return {"xz": 8 * (both - known) / len(evaluation)}


def classifiers(folder: Path) -> dict[str, float]:
    """Return the macro-F1 of classifiers on n-grams and on frozen embeddings."""
    train, evaluation = splits(folder)
    return {"n-gram svm": svm(train, evaluation), "frozen embeddings": frozen(train, evaluation)}


def svm(train: Rows, evaluation: Rows) -> float:
    features = make_union(
        TfidfVectorizer(ngram_range=(1, 3), sublinear_tf=True),
        TfidfVectorizer(analyzer="char", ngram_range=(2, 5), sublinear_tf=True, min_df=2),
    )
    known = features.fit_transform(column(train, "text"))
    folds = GroupKFold(3).split(known, groups=column(train, "contract"))
    search = GridSearchCV(LinearSVC(), {"C": [0.03, 0.1, 0.3, 1.0, 3.0]}, scoring="f1_macro", cv=list(folds))
    fitted = search.fit(known, column(train, "label"))
    return macro_f1(evaluation, fitted.predict(features.transform(column(evaluation, "text"))))


def frozen(train: Rows, evaluation: Rows) -> float:
    from sklearn.preprocessing import StandardScaler

    bundle = load("starter:bert")
    known, asked = (vectors(bundle, column(rows, "text")) for rows in (train, evaluation))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=2000))
    return macro_f1(evaluation, model.fit(known, column(train, "label")).predict(asked))


def vectors(bundle: Any, texts: Sequence[str]) -> Any:
    ids = (list(bundle.tokenizer(text).input_ids) for text in texts)
    return np.stack([vector.numpy() for vector in inference.sentence_vectors(bundle, ids, 32)])


def macro_f1(rows: Rows, predicted: Any) -> float:
    return float(f1_score(column(rows, "label"), predicted, average="macro"))


def splits(folder: Path) -> tuple[Rows, Rows]:
    train, evaluation = (
        [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("train", "eval")
    )
    return train, evaluation


def column(rows: Rows, name: str) -> list[str]:
    return [row[name] for row in rows]


def table(results: Sequence[Result]) -> tuple[Sequence[str], list[list[str]]]:
    """Return column names, and one row per demo and setting."""
    names = ("demo", "setting", "accepted", "tuned", "strongest rival", "smallest margin", "most forgotten")
    rows = []
    for demo_name, setting in dict.fromkeys((one["demo"], one["setting"]) for one in results):
        runs = [one for one in results if (one["demo"], one["setting"]) == (demo_name, setting)]
        best = [one["rivals"][one["strongest"]] for one in runs]
        cells = (
            f"{sum(one['outcome'] == 'accepted' for one in runs)} of {len(runs)}",
            _range([one["tuned"] for one in runs]),
            f"{_range(best)} ({', '.join(dict.fromkeys(one['strongest'] for one in runs))})",
            f"{min(one['margin'] for one in runs):+.3f}",
            f"{max(one['lost'] for one in runs):+.1%}",
            _range([one["core_seconds"] for one in runs], 0),
        )
        rows.append([demo_name, setting, *cells])
    return (*names, "core-seconds"), rows


def _range(values: Sequence[float], digits: int = 3) -> str:
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


#: Baselines that a run does not have, by demo.
RIVALS: Mapping[str, Callable[[Path], dict[str, float]]] = {
    "contracts": classifiers,
    "tales": compressor,
    "text2sql": lambda _: {},
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--settings", nargs="+", choices=sorted(SETTINGS), default=["default"])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(1, 11)), help="one run per seed and setting")
    parser.add_argument("--rows", type=int, default=3, help="contracts: seeds of the generator")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override the demo's config")
    parser.add_argument("--out", type=Path, help="folder of rows and runs; a temporary one by default")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fulltune-") as temporary:
        raise SystemExit(main(given, given.out or Path(temporary)))
