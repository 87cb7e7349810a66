"""Check that a config resumes exactly: ``fulltune doctor --resume CONFIG`` trains a few steps twice.

Once without a stop; once stopped partway, with base and checkpoint loaded again from disk. The checkpoints of both
after the last step are compared file by file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fulltune.config import CheckpointConfig, ConfigSource, load_config
from fulltune.errors import ConfigError
from fulltune.evaluation.retention import BaseOutputs
from fulltune.pipeline.job import Job, prepare_job
from fulltune.pipeline.train import train as train_job
from fulltune.records.run import Model
from fulltune.runtime.progress import Progress, progress_of
from fulltune.store.manifest import read_manifest
from fulltune.store.runs import RunFolder
from fulltune.training.checkpoints import format

#: Files of a checkpoint by part.
_PARTS = {
    "weights": ("model.safetensors", "trained.safetensors"),
    "optimizer": ("optimizer.json", "optimizer.safetensors", "scheduler.json"),
    "random numbers": ("random.json", "random.safetensors"),
}


class ResumeCheck(Model):
    """Result of a check; ``parts`` has for each part whether it is equal, bit for bit."""

    steps: int
    stopped_at: int
    parts: dict[str, bool]

    @property
    def is_exact(self) -> bool:
        return all(self.parts.values())


def check_resume(
    config: ConfigSource | Job,
    *,
    steps: int = 8,
    out: str | Path = "runs",
    overrides: Sequence[str] = (),
    progress: Progress | bool | None = None,
) -> ResumeCheck:
    """Train ``steps`` steps without a stop, and again with one; no run is made.

    Args:
        config: As in :func:`fulltune.run`, or a job that is prepared.
        steps: Number of optimizer steps.
        out: The runs folder, which the base may be from.
        overrides: ``a.b=value`` texts, applied last; a job has them already.
        progress: As in :func:`fulltune.run`.

    Raises:
        FulltuneError: Anything that would stop a run of this config before its first step.
    """
    if steps < 2:
        raise ConfigError(f"{steps} steps", expected="2 at least", fix="raise it", where="--steps")
    progress = progress_of(progress)
    job = config if isinstance(config, Job) else prepare_job(load_config(config, overrides), out)
    # The last step of a training is not saved as a checkpoint, so there is one more.
    never = CheckpointConfig(every=steps + 2)
    train = job.config.train.model_copy(update={"max_steps": steps + 1})
    job = job.with_config(job.config.model_copy(update={"train": train, "checkpoints": never}))
    with tempfile.TemporaryDirectory(prefix="fulltune-") as place:
        whole, parts = Path(place) / "whole", Path(place) / "parts"
        for folder, until in ((whole, steps), (parts, steps // 2), (parts, steps)):
            _train(job, folder, until, progress)
        return ResumeCheck(steps=steps, stopped_at=steps // 2, parts=_compared(whole, parts, steps))


def _compared(whole: Path, parts: Path, steps: int) -> dict[str, bool]:
    name = f"{format.PREFIX}{steps}"
    one, other = read_manifest(whole / name).files, read_manifest(parts / name).files
    equal = {part: all(one.get(file) == other.get(file) for file in files) for part, files in _PARTS.items()}
    return equal | {"metrics": (whole / "steps.jsonl").read_bytes() == (parts / "steps.jsonl").read_bytes()}


class _Reached(KeyboardInterrupt):
    """Training has reached the step at which it is stopped."""


class _StopAt(TrainerCallback):
    """Write a checkpoint at a step, and stop the training after it."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        control.should_save = state.global_step == self.step
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise _Reached


def _train(job: Job, place: Path, until: int, progress: Progress) -> None:
    """Train in a folder up to a step, from its checkpoint if it has one; the base is loaded again."""
    job = replace(job.with_new_base(), out=place.parent)
    base_outputs = BaseOutputs.collect(job.config, job.base, place.parent, progress, job.data.train.examples)
    model = job.model_to_train()
    folder = RunFolder.open(place) if place.exists() else RunFolder.create(place.parent, place.name)
    with suppress(_Reached), folder:
        train_job(job, model, base_outputs, folder, progress, callbacks=[_StopAt(until)])
