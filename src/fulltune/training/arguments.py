"""Convert a config to ``TrainingArguments``: each option has one name, and all errors are reported at once."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fulltune.config import Config, TrainConfig
from fulltune.errors import ConfigError, Problem, closest, did_you_mean
from fulltune.runtime.other_tools import key_for
from fulltune.runtime.validation import config_spelling
from fulltune.training import trackers
from fulltune.training.optimizers import NAMES, optimizer_name
from fulltune.training.option_values import problems_of_value

if TYPE_CHECKING:
    from transformers import TrainingArguments

#: Approximate number of points of the training curve.
LOGGED_POINTS = 150


#: Fields that a first-class option of the config sets.
FIRST_CLASS = {
    "output_dir": "--out",
    "num_train_epochs": "train.epochs",
    "optim": "train.optimizer",
    "bf16": "speed.precision",
    "max_steps": "train.max_steps",
    "per_device_train_batch_size": "train.batch_size",
    "gradient_accumulation_steps": "train.accumulation",
    "learning_rate": "train.learning_rate",
    "lr_scheduler_type": "train.scheduler",
    "warmup_steps": "train.warmup",
    "weight_decay": "train.weight_decay",
    "max_grad_norm": "train.max_grad_norm",
    "label_smoothing_factor": "train.label_smoothing",
    "activation_checkpointing": "train.gradient_checkpointing",
    "gradient_checkpointing": "train.gradient_checkpointing",
    "seed": "train.seed",
    "eval_strategy": "train.evaluations",
    "eval_steps": "train.evaluations",
    "eval_on_start": "train.evaluations",
    "per_device_eval_batch_size": "evaluation.batch_size",
}

#: Names that are no fields, most of earlier versions of transformers, and what to write instead.
_RENAMED = {
    "warmup_ratio": "train.warmup (below 1 it is a fraction of the steps)",
    "group_by_length": "trainer.train_sampling_strategy: group_by_length (already the default here)",
    "logging_dir": "the environment variable TENSORBOARD_LOGGING_DIR",
    "epochs": "train.epochs",
    "adafactor": "train.optimizer: adafactor",
    "tokenizer": "nothing: the model's own tokenizer is used",
    "save_safetensors": "nothing: weights are always written as safetensors",
    "overwrite_output_dir": "nothing: every run has its own folder",
    "push_to_hub_model_id": "`fulltune models export --push REPO`",
    "push_to_hub_token": "the environment variable HF_TOKEN",
    "fp16_backend": "trainer.fp16",
    "half_precision_backend": "trainer.fp16",
    "include_inputs_for_metrics": "trainer.include_for_metrics",
}

#: Errors that a library may raise for an invalid value: there is no common class.
REFUSALS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)

_SCHEDULERS = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


def checkpointing_name() -> str:
    """Return the name of activation checkpointing; before 5.23 transformers calls it gradient checkpointing."""
    from transformers import PreTrainedModel

    is_renamed = hasattr(PreTrainedModel, "activation_checkpointing_enable")
    return "activation_checkpointing" if is_renamed else "gradient_checkpointing"


def training_arguments(config: Config, output_dir: Path, rows: int, batches: int | None = None) -> TrainingArguments:
    """Return the arguments of the trainer for a config.

    Args:
        config: The config of the run.
        output_dir: Output folder of the trainer, which writes nothing unless ``trainer.save_strategy`` is set.
        rows: Training sequences per epoch.
        batches: As in :func:`steps_per_epoch`.

    Raises:
        ConfigError: A key of ``trainer`` is unknown, contradicts a first-class option, or has an invalid value. All
            problems at once.
        MissingDependencyError: The optimizer needs a package that is not installed.
    """
    from transformers import TrainingArguments

    from fulltune.training import engines

    fields = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
    options = _from_config(config, output_dir, rows, batches)
    problems = list[Problem]()
    for name, value in config.trainer.items():
        problems += _problems_of(name, value, options, fields)
    try:
        optimizer_name(config.train.optimizer)
    except ConfigError as error:
        problems += error.problems
    if not any(problem.field == "trainer.report_to" for problem in problems):
        problems += trackers.problems(config.trainer)
    if problems:
        raise ConfigError(problems)
    try:
        return TrainingArguments(**(options | engines.arguments(config.train) | config.trainer))
    except REFUSALS as error:
        raise ConfigError(
            f"transformers does not accept these training arguments ({error})",
            fix="correct the section",
            field="trainer",
        ) from error


def steps_per_epoch(train: TrainConfig, rows: int, batches: int | None = None) -> int:
    """Return the number of optimizer steps per epoch.

    Micro-batches are grouped by ``train.accumulation``; the last group, and the last micro-batch, may be smaller.

    Args:
        train: The section ``train``.
        rows: Training sequences per epoch.
        batches: Micro-batches per epoch if :func:`fulltune.training.batches.buckets.micro_batches` counted them.
    """
    micro_batches = math.ceil(rows / train.batch_size) if batches is None else batches
    return math.ceil(micro_batches / train.accumulation)


def total_steps(train: TrainConfig, rows: int, batches: int | None = None) -> int:
    """Return the number of optimizer steps of the training; the arguments are those of :func:`steps_per_epoch`."""
    return train.max_steps or math.ceil(train.passes * steps_per_epoch(train, rows, batches))


def warmup_steps(train: TrainConfig, steps: int) -> int:
    """Return the number of warm-up steps; below 1, ``train.warmup`` is a fraction of all ``steps``."""
    return int(train.warmup) if train.warmup >= 1 else math.ceil(steps * train.warmup)


def evaluation_steps(total: int, points: int) -> tuple[int, ...]:
    """Return at most ``points`` evenly spaced steps; the last one is the last step of the training."""
    points = min(points, total)
    return tuple(math.ceil(total * point / points) for point in range(1, points + 1))


def _from_config(config: Config, output_dir: Path, rows: int, batches: int | None) -> dict[str, Any]:
    import torch

    train = config.train
    return {
        "output_dir": str(output_dir),
        "num_train_epochs": 1.0 if train.max_steps else train.passes,  # without meaning beside max_steps
        "max_steps": train.max_steps or -1,
        "per_device_train_batch_size": train.batch_size,
        "per_device_eval_batch_size": config.evaluation.batch_size,
        "gradient_accumulation_steps": train.accumulation,
        "optim": NAMES.get(train.optimizer, train.optimizer),
        "learning_rate": train.rate,
        "lr_scheduler_type": _SCHEDULERS[train.scheduler],
        "warmup_steps": train.warmup,
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "label_smoothing_factor": train.label_smoothing,
        checkpointing_name(): train.gradient_checkpointing,
        "seed": train.seed,
        "data_seed": train.seed,
        "train_sampling_strategy": "group_by_length",
        "tf32": False,
        "bf16": config.speed.precision == "bf16-mixed",
        "use_cpu": not torch.accelerator.is_available(),
        "logging_strategy": "steps",
        "logging_steps": max(1, round(total_steps(train, rows, batches) / LOGGED_POINTS)),
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "include_num_input_tokens_seen": "non_padding",
        "eval_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def _problems_of(name: str, value: Any, options: dict[str, Any], fields: set[str]) -> list[Problem]:
    key = f"trainer.{name}"
    if name in FIRST_CLASS:
        option = FIRST_CLASS[name]
        if value == options.get(name):
            return []
        fix = f"set {option} and remove {key}"
        problem = f"{config_spelling(value)}, but {option} sets this field"
        return [Problem(problem, "one name for each option", fix, field=key)]
    if name not in fields:
        return [Problem("no field of TrainingArguments", fix=_right_name(name, fields), field=key)]
    return problems_of_value(name, value)


def _right_name(name: str, fields: set[str]) -> str:
    """Return the fix for a name that is no field: our option for it, if there is one, or a similar field."""
    ours = _RENAMED.get(name) or key_for(name)
    if ours:
        return f"use {ours}"
    close = closest(name, fields | FIRST_CLASS.keys())
    if close in FIRST_CLASS:
        return f"did you mean {FIRST_CLASS[close]}?"
    return did_you_mean(name, fields) or "see the documentation of transformers.TrainingArguments"
