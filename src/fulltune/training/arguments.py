"""Convert a config to ``TrainingArguments``: each option has one name, and all errors are reported at once."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from fulltune.config import Config, TrainConfig
from fulltune.errors import ConfigError, Problem, closest, did_you_mean, shortened
from fulltune.runtime import paths
from fulltune.runtime.other_tools import key_for
from fulltune.runtime.validation import config_spelling, expected_input
from fulltune.training import trackers
from fulltune.training.optimizers import NAMES, optimizer_name

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

#: Fields of features that fulltune implements itself, and how; the values ``False`` and ``None`` are accepted.
_OWNED = {
    "push_to_hub": "`fulltune models export --push REPO`, once the run has its record",
    "hub_model_id": "`fulltune models export --push REPO`",
    "hub_token": "the environment variable HF_TOKEN",
    "hub_always_push": "`fulltune models export --push REPO`",
    "hub_private_repo": "`fulltune models export --push REPO --private`",
    "load_best_model_at_end": "data.valid and guards.overfitting, which keep the best step",
    "metric_for_best_model": "guards.overfitting.metric",
    "greater_is_better": "guards.overfitting.metric, whose direction is known",
    "resume_from_checkpoint": "`fulltune run --resume RUN`",
    "enable_jit_checkpoint": "checkpoints.every",
}

#: Values that fulltune does not accept, and what to write instead.
_REFUSED_VALUES = {
    ("disable_tqdm", False): "remove it: fulltune draws its own progress (--quiet turns it off)",
    ("save_strategy", "best"): "remove it: data.valid and guards.overfitting keep the best step",
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

#: Smallest values of integers that the library does not check.
_SMALLEST = {
    "eval_accumulation_steps": 1,
    "dataloader_num_workers": 0,
    "dataloader_prefetch_factor": 1,
    "torch_empty_cache_steps": 1,
    "save_total_limit": 1,
    "ddp_timeout": 1,
    "data_seed": 0,
}

#: Fields that take the path of a JSON file.
_FILES = frozenset({"deepspeed", "fsdp_config", "accelerator_config"})

#: Sampling strategies. The library treats any other name as ``random``.
_SAMPLING = ("random", "sequential", "group_by_length")

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
    return train.max_steps or math.ceil(train.epochs * steps_per_epoch(train, rows, batches))


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
        "num_train_epochs": train.epochs,
        "max_steps": train.max_steps or -1,
        "per_device_train_batch_size": train.batch_size,
        "per_device_eval_batch_size": config.evaluation.batch_size,
        "gradient_accumulation_steps": train.accumulation,
        "optim": NAMES.get(train.optimizer, train.optimizer),
        "learning_rate": train.learning_rate,
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
    return _problems_of_value(name, value, key)


def _right_name(name: str, fields: set[str]) -> str:
    """Return the fix for a name that is no field: our option for it, if there is one, or a similar field."""
    ours = _RENAMED.get(name) or key_for(name)
    if ours:
        return f"use {ours}"
    close = closest(name, fields | FIRST_CLASS.keys())
    if close in FIRST_CLASS:
        return f"did you mean {FIRST_CLASS[close]}?"
    return did_you_mean(name, fields) or "see the documentation of transformers.TrainingArguments"


def _problems_of_value(name: str, value: Any, key: str) -> list[Problem]:
    """Return the problems of a value that is passed to transformers: owned here, refused, or of another type."""
    if name in _OWNED and value not in (None, False):
        return [Problem("fulltune implements this itself", fix=f"remove it, and use {_OWNED[name]}", field=key)]
    if isinstance(value, (str, bool)) and (name, value) in _REFUSED_VALUES:
        return [Problem(f"{value!r}", fix=_REFUSED_VALUES[name, value], field=key)]
    if name in _SMALLEST and isinstance(value, int) and value < _SMALLEST[name]:
        return [Problem(f"{value}", f"at least {_SMALLEST[name]}", field=key)]
    if name in _FILES and isinstance(value, str) and value.endswith(".json") and not paths.is_file(value):
        fix = "correct the path; a relative one starts at the working directory"
        return [Problem(f"there is no file {value!r}", "the path of a JSON file, or its keys", fix, field=key)]
    if not _is_finite(value):
        return [Problem(shortened(value), "finite numbers", field=key)]
    if name == "train_sampling_strategy" and value not in _SAMPLING:
        return [Problem(shortened(value), f"one of {', '.join(_SAMPLING)}", field=key)]
    try:
        _types()[name].validate_python(value)
    except ValidationError as error:
        wanted = " or ".join(dict.fromkeys(map(expected_input, error.errors())))
        return [Problem(config_spelling(value), wanted, field=key)]
    return []


def _is_finite(value: Any) -> bool:
    """Return True if all numbers in a value of a config are finite."""
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


@cache
def _types() -> dict[str, TypeAdapter[Any]]:
    """Return the declared type of each field of ``TrainingArguments``, checked strictly and for finite numbers."""
    from transformers import TrainingArguments

    strict = ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)
    hints = get_type_hints(TrainingArguments)
    return {
        field.name: TypeAdapter(hints[field.name], config=strict)
        for field in dataclasses.fields(TrainingArguments)
        if field.init
    }
