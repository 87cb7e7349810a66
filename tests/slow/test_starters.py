"""On real data each starter beats its own architecture trained from scratch with the same number of steps.

Needs `../shared/data`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from real import DATA, real_data, show

import fulltune
from fulltune.metrics.run_comparison import RunComparison
from starters import make

pytestmark = real_data


def against_scratch(name: str, tmp_path: Path, **config: Any) -> RunComparison:
    """Tune the starter and the same architecture untrained, and compare them on the same rows."""
    made = {}
    for model in (f"starter:{name}", str(make.make_untrained(name, tmp_path / "untrained"))):
        record = fulltune.run(config | {"model": model}, out=tmp_path)
        show(record)
        made[model] = record
        shutil.rmtree(tmp_path / record.run_id / "model")
    tuned, scratch = made.values()
    comparison = fulltune.compare(scratch.run_id, tuned.run_id, out=tmp_path)
    print(f"  {comparison.headline}")
    assert tuned.comparison["tuned vs zero_shot"].verdict == "improved"
    assert tuned.comparison["tuned vs few_shot"].verdict == "improved"
    return comparison


def test_gpt2_on_russian_tales(tmp_path: Path) -> None:
    data: dict[str, Any] = {"max_length": 512, "limit": 80, "allow_leaks": True}
    data |= {split: str(DATA / f"tales/ru_afanasyev.{name}.jsonl") for split, name in SPLITS.items()}
    comparison = against_scratch("gpt2", tmp_path, **TALES, data=data)
    assert comparison.differences[0].verdict == "improved"


def test_bert_on_clauses(tmp_path: Path) -> None:
    data: dict[str, Any] = {"max_length": 192, "allow_leaks": True}
    data |= {split: str(DATA / f"contracts/single.{name}.jsonl") for split, name in SPLITS.items()}
    comparison = against_scratch("bert", tmp_path, **CONTRACTS, data=data)
    assert comparison.differences[0].verdict == "improved"


def test_t5_on_geoquery(tmp_path: Path) -> None:
    """There is one database only, so the schema adds nothing to the prompt: a stub keeps the prompts short."""
    shutil.copy(DATA / "geoquery/geography.sqlite", tmp_path / "geography.sqlite")
    (tmp_path / "schemas.json").write_text(json.dumps({"geography": "CREATE TABLE state (state_name text);"}))
    data: dict[str, Any] = {"allow_leaks": True, "databases": str(tmp_path), "schemas": str(tmp_path / "schemas.json")}
    data |= {split: str(DATA / f"geoquery/{name}.jsonl") for split, name in (SPLITS | {"valid": "dev"}).items()}
    comparison = against_scratch("t5", tmp_path, **GEOQUERY, data=data)
    assert comparison.differences[0].verdict == "improved"


SPLITS = {"train": "train", "valid": "valid", "eval": "test"}
TALES: dict[str, Any] = {
    "task": "causal-lm",
    "train": {"epochs": 3, "batch_size": 8, "learning_rate": 1e-3, "evaluations": 3},
    "baselines": {"few_shot": 1},
    "evaluation": {"continuations": 4, "max_new_tokens": 64},
}
CONTRACTS: dict[str, Any] = {
    "task": "classification",
    "train": {"epochs": 4, "batch_size": 16, "learning_rate": 5e-4, "label_smoothing": 0.1},
}
GEOQUERY: dict[str, Any] = {
    "task": "text2sql",
    "train": {"epochs": 20, "batch_size": 16, "learning_rate": 3e-3, "scheduler": "cosine", "warmup": 0.06},
    "regularize": {"dropout": 0.1},
    "baselines": {"few_shot": 2},
    "evaluation": {"max_new_tokens": 120},
}
