"""Complete examples: generated rows and the config that trains on them, written where they can be read and changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fulltune.errors import ConfigError, did_you_mean
from fulltune.runtime.config_file import to_yaml
from fulltune.runtime.files import atomic_text, store_errors

#: Each is the whole job on a starter, in minutes on two cores. Rows are those of the data set of the same
#: name, and more of them for clauses.
DEMOS: dict[str, dict[str, Any]] = {
    "contracts": {
        "model": "starter:bert",
        "task": "classification",
        "data": {
            "train": "train.jsonl",
            "valid": 0.1,
            "eval": "eval.jsonl",
            "text": "text",
            "label": "label",
            "group": "contract",
            "max_length": 96,
        },
        "train": {
            "epochs": 1.5,
            "batch_size": 16,
            "learning_rate": 1.5e-4,
            "scheduler": "cosine",
            "warmup": 0.1,
            "evaluations": 4,
        },
    },
    "tales": {
        "model": "starter:gpt2",
        "task": "causal-lm",
        "data": {"train": "train.jsonl", "valid": 0.1, "eval": "eval.jsonl", "text": "text", "max_length": 512},
        "train": {
            "epochs": 2,
            "batch_size": 4,
            "learning_rate": 4e-4,
            "scheduler": "cosine",
            "warmup": 0.06,
            "weight_decay": 0,
        },
        "regularize": {"l2_sp": 0.02},  # keeps the general English of the base
        "baselines": {"few_shot": 1},
        "evaluation": {"continuations": 6, "max_new_tokens": 80},
    },
    "text2sql": {
        "model": "starter:t5",
        "task": "text2sql",
        "data": {
            "train": "train.jsonl",
            "valid": 0.1,
            "eval": "eval.jsonl",
            "eval_limit": 120,
            "databases": "databases",
            "max_length": 512,
            "max_target_length": 128,
        },
        "train": {"epochs": 6, "batch_size": 8, "learning_rate": 5e-3, "scheduler": "cosine", "warmup": 0.06},
        "baselines": {"few_shot": 2},  # each brings the schema of its own database, and no prefix is shared
        "evaluation": {"max_new_tokens": 48},  # the longest query has 37; an untuned model always writes to the limit
        "guards": {"forgetting": {"keep": []}},  # general text is only reported: this model writes nothing but SQL
    },
}

NAMES = tuple(DEMOS)

#: Number of clauses.
_CLAUSES = 4000


def prepare(name: str, out: str | Path = "runs") -> Path:
    """Write a demo's rows and config to ``out/demo/NAME``; returns the config's path, for :func:`fulltune.run`.

    Raises:
        ConfigError: There is no such demo.
        StoreError: Nothing can be written there.
    """
    if name not in NAMES:
        fix = did_you_mean(name, NAMES) or "choose one of these"
        raise ConfigError(f"there is no demo {name!r}", expected=f"one of {', '.join(NAMES)}", fix=fix)
    from fulltune.data.demo.files import DATASETS, write_contracts

    folder = Path(out) / "demo" / name
    with store_errors(folder):
        if name == "contracts":
            write_contracts(folder, n=_CLAUSES)
        else:
            DATASETS[name](folder)
    return atomic_text(folder / "config.yaml", to_yaml(DEMOS[name]))
