"""Margin of the contracts demo over every cheap baseline, with several seeds, rows and kinds of machine.

    python benchmarks/demo_contracts.py                 # ten seeds, with the settings of the demo
    python benchmarks/demo_contracts.py --seeds 1 2 --settings off avx2 avx2-off threads-1 threads-2

Each run is ``fulltune run`` of the demo's config in a process of its own, with another ``train.seed``, on rows of one
of ``--rows`` seeds of the generator in ``tools/demo``; the first rows are those of the package. Baselines are those of
the run (majority, TF-IDF, zero-shot, few-shot) and two more: a linear SVM on words (1 to 3) and characters (2 to 5),
with C by cross-validation over contracts, and logistic regression on mean vectors of the frozen base.

Prints one JSON object per run as it ends, and on stderr a table. Exits with 1 if a margin of macro-F1 is below
``--margin`` or a run is not accepted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline, make_union
from sklearn.svm import LinearSVC
from tools.settings import SETTINGS

from fulltune.cli.demo import prepare
from fulltune.models import inference
from fulltune.models.load import load

ROOT = Path(__file__).parents[1]
#: Seed of the package's rows; further ones follow it.
FIRST_ROWS = 17

Rows = list[dict[str, str]]


def main(settings: Sequence[str], seeds: Sequence[int], rows: int, margin: float, out: Path) -> int:
    results: list[dict[str, Any]] = []
    for setting in settings:
        for seed in seeds:
            config = demo(out / "rows", FIRST_ROWS + (seed - 1) % rows)
            record = run(config, out / "runs", seed, setting)
            results.append(result(setting, seed, record, cheap_scores(config.parent)))
            print(json.dumps(results[-1]), flush=True)
    print(table(results), file=sys.stderr)
    return 0 if all(passes(one, margin) for one in results) else 1


def demo(folder: Path, rows_seed: int) -> Path:
    """Return the config of the demo on the rows of a seed, written once."""
    home = folder / str(rows_seed)
    config = home / "demo" / "contracts" / "config.yaml"
    if not config.exists():
        prepare("contracts", home)
        if rows_seed != FIRST_ROWS:
            command = [sys.executable, "-m", "demo.contracts", str(config.parent), "--seed", str(rows_seed)]
            subprocess.run(command, check=True, env=environment({"PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tools'}"}))
    return config


def run(config: Path, out: Path, seed: int, setting: str) -> dict[str, Any]:
    """Return the record of one run of a config, as JSON."""
    variables, overrides = SETTINGS[setting]
    options = [part for override in (f"train.seed={seed}", *overrides) for part in ("--set", override)]
    command = [sys.executable, "-m", "fulltune", "run", str(config), "--out", str(out), "--json", "--quiet", *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment(variables))
    if done.returncode not in (0, 3):
        raise SystemExit(f"the run with seed {seed} and the setting {setting} failed; its message is above")
    record: dict[str, Any] = json.loads(done.stdout)
    return record


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", **variables}


def result(setting: str, seed: int, record: dict[str, Any], cheap: Mapping[str, float]) -> dict[str, Any]:
    """Return the scores, the smallest margin, the largest loss of retention and the seconds of one run."""
    scores = {name: one["macro_f1"]["value"] for name, one in record["scores"].items()}
    tuned = scores.pop("tuned")
    baselines = {name: round(value, 4) for name, value in {**scores, **cheap}.items()}
    strongest = max(baselines, key=lambda name: baselines[name])
    resources = record["resources"]
    return {
        "setting": setting,
        "seed": seed,
        "outcome": record["outcome"],
        "tuned": round(tuned, 4),
        "strongest": strongest,
        "margin": round(tuned - baselines[strongest], 4),
        "baselines": baselines,
        "lost": round(max((one["change"] for one in record["retention"].values()), default=0.0), 4),
        "tokens_per_second": round(resources["tokens_per_second"]),
        "seconds": {**resources["stage_seconds"], "total": resources["total_seconds"]},
    }


def passes(one: Mapping[str, Any], margin: float) -> bool:
    return one["margin"] >= margin and one["outcome"] == "accepted"


def cheap_scores(folder: Path) -> dict[str, float]:
    """Return the macro-F1 of the baselines that a run does not have, on the rows of a folder; computed once."""
    stored = folder / "cheap.json"
    if not stored.exists():
        stored.write_text(json.dumps(_cheap_scores(folder)))
    scores: dict[str, float] = json.loads(stored.read_text())
    return scores


def _cheap_scores(folder: Path) -> dict[str, float]:
    train, evaluation = (read(folder / f"{name}.jsonl") for name in ("train", "eval"))
    return {"n-gram svm": svm(train, evaluation), "frozen embeddings": frozen(train, evaluation)}


def read(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


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


def column(rows: Rows, name: str) -> list[str]:
    return [row[name] for row in rows]


def macro_f1(rows: Rows, predicted: Any) -> float:
    return float(f1_score(column(rows, "label"), predicted, average="macro"))


def table(results: Sequence[Mapping[str, Any]]) -> str:
    names = ("setting", "runs", "accepted", "tuned", "strongest baseline", "smallest margin", "lost", "seconds")
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for setting in dict.fromkeys(one["setting"] for one in results):
        runs = [one for one in results if one["setting"] == setting]
        tuned, best = ([one["tuned"] - offset * one["margin"] for one in runs] for offset in (0, 1))
        seconds = [one["seconds"]["total"] for one in runs]
        cells = (
            setting,
            len(runs),
            sum(one["outcome"] == "accepted" for one in runs),
            f"{min(tuned):.3f} to {max(tuned):.3f}",
            f"{min(best):.3f} to {max(best):.3f}",
            f"{min(one['margin'] for one in runs):+.3f}",
            f"{max(one['lost'] for one in runs):+.1%}",
            f"{min(seconds):.0f} to {max(seconds):.0f}",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=sorted(SETTINGS), default=["default"])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(1, 11)), help="one run per seed and setting")
    parser.add_argument("--rows", type=int, default=3, help="seeds of the generator")
    parser.add_argument("--margin", type=float, default=0.1, help="smallest accepted margin of macro-F1")
    parser.add_argument("--out", type=Path, help="folder of rows and runs; a temporary one by default")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fulltune-") as temporary:
        raise SystemExit(main(given.settings, given.seeds, given.rows, given.margin, given.out or Path(temporary)))
