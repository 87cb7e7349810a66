"""Check values of the section ``trainer``, most of which transformers refuses only later, without the field's name."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from fulltune.errors import Problem, did_you_mean, shortened
from fulltune.runtime import machine, paths
from fulltune.runtime.validation import config_spelling, expected_input

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
    "label_names": "data.columns, which names the columns of the data",
    "parallelism_config": "trainer.fsdp_config or trainer.deepspeed, and `torchrun`",
    "local_rank": "`torchrun`, which numbers the processes",
}

#: Values that fulltune does not accept, and what to write instead.
_REFUSED_VALUES = {
    ("disable_tqdm", False): "remove it: fulltune draws its own progress (--quiet turns it off)",
    ("save_strategy", "best"): "remove it: data.valid and guards.overfitting keep the best step",
}

#: Smallest values of numbers that the library does not check.
_SMALLEST = {
    "eval_accumulation_steps": 1,
    "dataloader_num_workers": 0,
    "dataloader_prefetch_factor": 1,
    "torch_empty_cache_steps": 1,
    "save_total_limit": 1,
    "ddp_timeout": 1,
    "data_seed": 0,
}

#: Largest values of numbers for which memory or processes are allocated. That of workers depends on the machine.
_LARGEST = {"dataloader_prefetch_factor": 1024, "ddp_bucket_cap_mb": 65_536, "ddp_timeout": 10**9}

#: Worker processes per core above which a number is a mistake.
_WORKERS_PER_CORE = 16

#: Numbers of steps, or fractions of all steps.
_STEPS = frozenset({"logging_steps", "save_steps"})

#: Keyword arguments of ``torch.utils.checkpoint.checkpoint``.
_CHECKPOINTING: dict[str, tuple[type, str]] = {
    "use_reentrant": (bool, "true or false"),
    "preserve_rng_state": (bool, "true or false"),
    "early_stop": (bool, "true or false"),
    "debug": (bool, "true or false"),
    "determinism_check": (str, "default or none"),
}

#: Fields that take the path of a JSON file.
_FILES = frozenset({"deepspeed", "fsdp_config", "accelerator_config"})


def problems_of_value(name: str, value: Any) -> list[Problem]:
    """Return the problems of the value of a field that is passed to transformers.

    Args:
        name: A field of ``TrainingArguments``.
        value: Its value in the section ``trainer``.
    """
    key = f"trainer.{name}"
    problem = _refused(name, value, key) or _out_of_range(name, value, key) or _unknown(name, value, key)
    if problem is None and not _is_finite(value):
        problem = Problem(shortened(value), "finite numbers", field=key)
    if problem is not None:
        return [problem]
    problem = _of_another_type(_types()[name], value, key)
    if problem is not None:
        return [problem]
    if name == "accelerator_config" and isinstance(value, dict):
        return _accelerator_problems(value, key)
    return _checkpointing_problems(value, key) if name.endswith("checkpointing_kwargs") else []


def _refused(name: str, value: Any, key: str) -> Problem | None:
    """Return the problem of a field or value that fulltune replaces, or None."""
    if name in _OWNED and value not in (None, False, _defaults()[name]):
        return Problem("fulltune implements this itself", fix=f"remove it, and use {_OWNED[name]}", field=key)
    if isinstance(value, (str, bool)) and (name, value) in _REFUSED_VALUES:
        return Problem(f"{value!r}", fix=_REFUSED_VALUES[name, value], field=key)
    return None


def _out_of_range(name: str, value: Any, key: str) -> Problem | None:
    """Return the problem of a number that is too small or too large, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    smallest = _SMALLEST.get(name, -math.inf)
    if value < smallest:
        return Problem(shortened(value), f"at least {smallest}", field=key)
    if name in _STEPS and value <= 0:
        return Problem(shortened(value), "a number of steps, or a fraction of all steps, above 0", field=key)
    if name == "dataloader_num_workers" and value > (most := _WORKERS_PER_CORE * machine.cores()):
        expected = f"at most {most} processes, {_WORKERS_PER_CORE} per core"
        return Problem(shortened(value), expected, "rows are tokenized before training: 0 to 2 are enough", field=key)
    if value > _LARGEST.get(name, math.inf):
        return Problem(shortened(value), f"at most {_LARGEST[name]:,}", field=key)
    return None


def _unknown(name: str, value: Any, key: str) -> Problem | None:
    """Return the problem of a name that is none of those that the library knows, or None."""
    if name in _FILES and isinstance(value, str) and value.endswith(".json") and not paths.is_file(value):
        fix = "correct the path; a relative one starts at the working directory"
        return Problem(f"there is no file {value!r}", "the path of a JSON file, or its keys", fix, field=key)
    known = _names_known(name)
    given = value if isinstance(value, (list, tuple)) and name == "include_for_metrics" else [value]
    wrong = [] if value is None else [one for one in given if known and one not in known]
    if not wrong:
        return None
    fix = did_you_mean(str(wrong[0]), known)
    return Problem(shortened(wrong[0]), f"one of {', '.join(known)}", fix, field=key)


def _names_known(name: str) -> list[str]:
    """Return the values of a field that takes one of a few names; empty for any other field."""
    if name == "train_sampling_strategy":
        return ["random", "sequential", "group_by_length"]  # the library treats any other name as ``random``
    if name == "include_for_metrics":
        return ["inputs", "loss"]
    if name in ("log_level", "log_level_replica"):
        from transformers.utils import logging

        return [*logging.get_log_levels_dict(), "passive"]
    if name == "torch_compile_backend":
        import torch

        # Those for debugging are left out by default.
        return [one for one in torch.compiler.list_backends(exclude_tags=()) if "TESTING" not in one]
    if name == "torch_compile_mode":
        from torch._inductor import list_mode_options

        return list(list_mode_options())
    return []


def _checkpointing_problems(value: Any, key: str) -> list[Problem]:
    """Return the problems of the keyword arguments of activation checkpointing, which are read at the first step."""
    if not isinstance(value, dict):
        return []
    problems = []
    for name, given in value.items():
        kind, expected = _CHECKPOINTING.get(name, (None, ""))
        if kind is None:
            fix = did_you_mean(str(name), _CHECKPOINTING)
            expected = f"one of {', '.join(_CHECKPOINTING)}"
            problems.append(Problem(f"unknown key {shortened(name)}", expected, fix, field=key))
        elif not isinstance(given, kind) or (kind is str and given not in expected.split(" or ")):
            problems.append(Problem(config_spelling(given), expected, field=f"{key}.{name}"))
    return problems


def _accelerator_problems(value: dict[str, Any], key: str) -> list[Problem]:
    """Return the problems of the options of Accelerate: transformers takes any text for true."""
    from transformers.trainer_pt_utils import AcceleratorConfig

    known = _types(AcceleratorConfig)
    problems = []
    for name, given in value.items():
        if name not in known:
            fix = did_you_mean(str(name), known)
            problems.append(Problem(f"unknown key {shortened(name)}", f"one of {', '.join(known)}", fix, field=key))
        elif (problem := _of_another_type(known[name], given, f"{key}.{name}")) is not None:
            problems.append(problem)
    return problems


def _of_another_type(wanted: TypeAdapter[Any], value: Any, key: str) -> Problem | None:
    """Return the problem of a value that is not of the declared type, or None."""
    try:
        wanted.validate_python(value)
    except ValidationError as error:
        expected = " or ".join(dict.fromkeys(map(expected_input, error.errors())))
        return Problem(config_spelling(value), expected, field=key)
    return None


@cache
def _defaults() -> dict[str, Any]:
    """Return the default of each field of ``TrainingArguments``."""
    from transformers import TrainingArguments

    return {field.name: field.default for field in dataclasses.fields(TrainingArguments)}


def _is_finite(value: Any) -> bool:
    """Return True if all numbers in a value of a config are finite."""
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


@cache
def _types(arguments: Any = None) -> dict[str, TypeAdapter[Any]]:
    """Return the declared type of each field of a dataclass, checked strictly and for finite numbers.

    Args:
        arguments: The dataclass; by default ``TrainingArguments``.
    """
    from transformers import TrainingArguments

    arguments = arguments or TrainingArguments
    strict = ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)
    hints = get_type_hints(arguments)
    return {
        field.name: TypeAdapter(hints[field.name], config=strict)
        for field in dataclasses.fields(arguments)
        if field.init
    }
