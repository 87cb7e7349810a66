"""Translate arguments of earlier versions of transformers.

An old argument is translated to a current one, accepted without effect if it has no meaning any more, or refused if
ignoring it would change the training. Each is logged once per process.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from fulltune.errors import ArgumentError, Problem, shortened
from fulltune.runtime.log_once import log_once

_log = logging.getLogger(__name__)

#: The library reads a number from 1 on as a count of steps, and below 1 as a fraction of all steps.
_ALL_STEPS = math.nextafter(1.0, 0.0)


@dataclass(frozen=True)
class OldArgument:
    """The translation of an argument.

    Attributes:
        outcome: Description for the log and the table in the documentation.
        new: Converts the value to current arguments; to none if it has no effect.
        refused: Returns True for a value that is an error.
        instead: Fix for a value that is an error.
        mirrors: Current argument that can be read under the old name too.
    """

    outcome: str
    new: Callable[[Any], dict[str, Any]] = field(default=lambda _: {})
    refused: Callable[[Any], bool] = field(default=lambda _: False)
    instead: str = ""
    mirrors: str | None = None


def _as(name: str) -> Callable[[Any], dict[str, Any]]:
    return lambda value: {name: value}


def _if_set(name: str, value: Any) -> Callable[[Any], dict[str, Any]]:
    return lambda is_set: {name: value} if is_set else {}


def _inside(name: str, key: str) -> Callable[[Any], dict[str, Any]]:
    return lambda value: {name: {key: value}}


def _ray_scope(value: str) -> dict[str, Any]:
    os.environ["RAY_SCOPE"] = value  # read by the hyperparameter search
    return {}


_AMP = OldArgument("no effect: half precision (`fp16`, `bf16`) is computed by torch itself")

#: The arguments of :class:`transformers.TrainingArguments` since version 3.0 that version 5 does not have.
OLD_ARGUMENTS: dict[str, OldArgument] = {
    "adafactor": OldArgument('taken as `optim="adafactor"`', _if_set("optim", "adafactor")),
    "dispatch_batches": OldArgument(
        "taken as `dispatch_batches` in `accelerator_config`", _inside("accelerator_config", "dispatch_batches")
    ),
    "evaluate_during_training": OldArgument('taken as `eval_strategy="steps"`', _if_set("eval_strategy", "steps")),
    "evaluation_strategy": OldArgument("taken as `eval_strategy`", _as("eval_strategy"), mirrors="eval_strategy"),
    "fp16_backend": _AMP,
    "fp16_opt_level": OldArgument(
        "no effect: half precision is computed by torch itself, as Apex did at `O1`",
        refused=lambda level: level != "O1",
        instead="leave it out, or use `bf16_full_eval`, `fp16_full_eval` or a model loaded in half precision",
    ),
    "fsdp_min_num_params": OldArgument(
        "taken as `min_num_params` in `fsdp_config`",
        lambda number: {"fsdp_config": {"min_num_params": number}} if number else {},
    ),
    "fsdp_transformer_layer_cls_to_wrap": OldArgument(
        "taken as `transformer_layer_cls_to_wrap` in `fsdp_config`",
        lambda name: {"fsdp_config": {"transformer_layer_cls_to_wrap": [name]}},
    ),
    "group_by_length": OldArgument(
        'taken as `train_sampling_strategy="group_by_length"`', _if_set("train_sampling_strategy", "group_by_length")
    ),
    "half_precision_backend": _AMP,
    "include_inputs_for_metrics": OldArgument(
        'taken as `include_for_metrics=["inputs"]`', _if_set("include_for_metrics", ["inputs"])
    ),
    "include_tokens_per_second": OldArgument(
        'taken as `include_num_input_tokens_seen="all"`', _if_set("include_num_input_tokens_seen", "all")
    ),
    "jit_mode_eval": OldArgument("no effect: `torch_compile=True` compiles the model"),
    "logging_dir": OldArgument(
        'used where `report_to="tensorboard"` asks for logs; fulltune.Trainer writes them there'
    ),
    "model_parallel": OldArgument(
        "no effect unless true", refused=bool, instead='load the model with `from_pretrained(…, device_map="auto")`'
    ),
    "mp_parameters": OldArgument("no effect unless it has content", refused=bool, instead="let the launcher set it"),
    "no_cuda": OldArgument("taken as `use_cpu`", _as("use_cpu"), mirrors="use_cpu"),
    "overwrite_output_dir": OldArgument(
        "no effect: training starts from the beginning unless `train(resume_from_checkpoint=…)` is asked for"
    ),
    "past_index": OldArgument(
        "no effect below 0",
        refused=lambda index: index >= 0,
        instead="leave it out: models no longer return their past",
    ),
    "per_gpu_eval_batch_size": OldArgument("taken as `per_device_eval_batch_size`", _as("per_device_eval_batch_size")),
    "per_gpu_train_batch_size": OldArgument(
        "taken as `per_device_train_batch_size`", _as("per_device_train_batch_size")
    ),
    "push_to_hub_model_id": OldArgument("taken as `hub_model_id`", _as("hub_model_id")),
    "push_to_hub_organization": OldArgument("taken as the first part of `hub_model_id`"),
    "push_to_hub_token": OldArgument("taken as `hub_token`", _as("hub_token"), mirrors="hub_token"),
    "ray_scope": OldArgument("taken as the environment variable RAY_SCOPE", _ray_scope),
    "save_safetensors": OldArgument(
        "no effect: weights are always written as safetensors",
        refused=lambda is_set: not is_set,
        instead='leave it out; `torch.save(model.state_dict(), "pytorch_model.bin")` writes the format of before',
    ),
    "sharded_ddp": OldArgument("no effect unless it has content", refused=bool, instead="use `fsdp` or `deepspeed`"),
    "split_batches": OldArgument(
        "taken as `split_batches` in `accelerator_config`", _inside("accelerator_config", "split_batches")
    ),
    "torchdynamo": OldArgument("taken as `torch_compile_backend`", _as("torch_compile_backend")),
    "tpu_metrics_debug": OldArgument('taken as `debug="tpu_metrics_debug"`', _if_set("debug", "tpu_metrics_debug")),
    "tpu_num_cores": OldArgument("no effect: the launcher sets the number of cores"),
    "use_ipex": OldArgument("no effect: torch itself has the kernels"),
    "use_legacy_prediction_loop": OldArgument("no effect: one loop is left, with the same results"),
    "use_mps_device": OldArgument("no effect: an Apple GPU is used wherever there is one"),
    "warmup_ratio": OldArgument(
        "taken as `warmup_steps`, which below 1 is a fraction of all steps",
        lambda ratio: {"warmup_steps": min(ratio, _ALL_STEPS)} if ratio else {},
        refused=lambda ratio: not 0 <= ratio <= 1,
        instead="pass a number from 0 to 1",
    ),
    "xpu_backend": OldArgument("taken as `ddp_backend`", _as("ddp_backend")),
}

#: Values that earlier versions accepted, by argument, and the current value.
OLD_VALUES: dict[str, dict[Any, str]] = {
    "debug": {False: "", True: "tpu_metrics_debug"},
    "optim": {"adamw_hf": "adamw_torch", "adamw_apex_fused": "adamw_torch_fused"},
    "report_to": {None: "none"},
}

#: Values of current arguments that mean "not set".
_UNSET = {"warmup_steps": 0}


def translated(old: Mapping[str, Any], new: Mapping[str, Any], given: Collection[str]) -> dict[str, Any]:
    """Return the changes of current arguments by the old arguments of a script; log each.

    Args:
        old: Arguments of :data:`OLD_ARGUMENTS` that the script passes.
        new: Values of all current arguments.
        given: Names of the current arguments that the script passes.

    Raises:
        ArgumentError: A value is refused, or contradicts another argument. All problems at once.
    """
    changes: dict[str, Any] = {}
    problems: list[Problem] = []
    sources: dict[str, str] = {name: name for name in given if _UNSET.get(name, ...) != new[name]}
    for name, value in old.items():
        entry = OLD_ARGUMENTS[name]
        if _refuses(entry, value):
            problems.append(Problem(f"{name}={shortened(value)} is not supported", fix=entry.instead))
            continue
        note(name, entry.outcome)
        for key, wanted in (_organization(name, old, new) or entry.new(value)).items():
            present = changes.get(key, new[key]) if key in sources else None
            merged = _merged(present, wanted) if key in sources else wanted
            if merged is None:
                both = f"{name}={shortened(value)} contradicts {sources[key]}={shortened(present)}"
                problems.append(Problem(both, fix="leave one of them out"))
            else:
                changes[key] = merged
                sources[key] = sources.get(key, name)
    if problems:
        raise ArgumentError(problems)
    return changes


def translated_values(new: Mapping[str, Any]) -> dict[str, Any]:
    """Return the current values of arguments whose value is one of an earlier version; log each."""
    changes = {}
    for name, values in OLD_VALUES.items():
        value = new[name]
        # The numbers 0 and 1 are not the values False and True.
        if (value is None or isinstance(value, (str, bool))) and value in values:
            changes[name] = values[value]
            note(f"{name}={value!r}", f"taken as {values[value]!r}")
    return changes


def note(name: str, outcome: str) -> None:
    """Log, once per process, the translation of a name of earlier versions."""
    log_once(_log, logging.WARNING, name, "`%s` is of an earlier version of transformers: %s", name, outcome)


def _refuses(entry: OldArgument, value: Any) -> bool:
    try:
        return entry.refused(value)
    except TypeError:  # not a number
        return True


def _organization(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return ``hub_model_id`` for an organization that is passed separately; None for other arguments."""
    if name not in ("push_to_hub_organization", "push_to_hub_model_id") or "push_to_hub_organization" not in old:
        return None
    last = old.get("push_to_hub_model_id") or os.path.basename(os.path.normpath(new["output_dir"] or "trainer_output"))
    return {"hub_model_id": f"{old['push_to_hub_organization']}/{last}"}


def _merged(present: Any, wanted: Any) -> Any:
    """Return a value that satisfies both, or None."""
    if isinstance(wanted, dict) and (present is None or isinstance(present, dict)):
        present = present or {}
        agrees = all(present.get(key, value) == value for key, value in wanted.items())
        return present | wanted if agrees else None
    if isinstance(wanted, list) and isinstance(present, (list, tuple)):
        return [*present, *(one for one in wanted if one not in present)]
    return wanted if present == wanted else None
