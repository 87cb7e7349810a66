"""Train on several processes: divide the batch, check the limits of an engine, gather the sharded weights.

The engines are those of Accelerate: DDP (a copy of the model per process), FSDP2 and DeepSpeed ZeRO (shards of the
model). A sharded engine trains a copy of the model. The model of the bundle stays unsharded, and gets the trained
weights at every evaluation and at the end.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fulltune.config import Config, TrainConfig
from fulltune.errors import ConfigError, Problem
from fulltune.runtime import distributed
from fulltune.training.protocols import ShardedTraining

#: Optimizers whose state can be sharded: their update is elementwise.
SHARDED_OPTIMIZERS = ("adamw", "adamw_torch", "adamw_torch_fused")


def is_sharded() -> bool:
    """Return True if weights, gradients or the state of the optimizer are sharded over processes."""
    return distributed.engine() not in ("", "ddp")


def divided_batch(batch_size: int, accumulation: int, processes: int) -> tuple[int, int]:
    """Divide the effective batch among processes.

    Micro-batches are divided first, then rows, so that no process has more rows in memory than a single one would.

    Args:
        batch_size: Rows per micro-batch of a single process.
        accumulation: Micro-batches per step of a single process.
        processes: Number of processes.

    Returns:
        Rows per micro-batch, and micro-batches per step, of each process.

    Raises:
        ConfigError: The batch is not divisible by the number of processes.
    """
    divisor = math.gcd(accumulation, processes)
    rest = processes // divisor
    if batch_size % rest:
        raise ConfigError(
            f"{batch_size * accumulation} rows per step for {processes} processes",
            expected=f"an effective batch (batch_size × accumulation) that {processes} divides",
            fix="change train.batch_size, train.accumulation, or the number of processes",
            field="train.batch_size",
        )
    return batch_size // rest, accumulation // divisor


def check(config: Config) -> None:
    """Check that the engine of this launch supports the config.

    Raises:
        ConfigError: It does not; all problems at once.
    """
    problems = list(_problems(config)) if is_sharded() else []
    processes = distributed.launched()
    accumulation = config.train.accumulation
    budget = config.speed.batch_tokens
    if budget and accumulation % processes:
        problems.append(
            Problem(
                f"{accumulation} micro-batches of {budget} tokens per step for {processes} processes",
                expected="the same number for each process",
                fix=f"make train.accumulation a multiple of {processes}, or set train.batch_size instead",
                field="speed.batch_tokens",
            )
        )
    if problems:
        raise ConfigError(problems)
    divided_batch(config.train.batch_size, accumulation, processes)


def _problems(config: Config) -> Iterator[Problem]:
    """Yield the parts of a config that a sharded engine does not support."""
    name = distributed.engine()
    if config.method != "full":
        yield Problem(f"{config.method} with {name}", "full", "launch it with the preset ddp", field="method")
    if config.train.optimizer not in SHARDED_OPTIMIZERS:
        yield Problem(
            f"{config.train.optimizer} with {name}",
            expected=f"one of {', '.join(SHARDED_OPTIMIZERS)}",
            fix="launch it with the preset ddp",
            field="train.optimizer",
        )
    for penalty in ("l2_sp", "ewc", "distill"):
        if getattr(config.regularize, penalty):
            yield Problem(
                f"{penalty} with {name}, which shards gradients",
                expected="no penalty on weights",
                fix="launch it with the preset ddp, or use replay or layer_decay",
                field=f"regularize.{penalty}",
            )


def arguments(train: TrainConfig) -> dict[str, Any]:
    """Return the fields of ``TrainingArguments`` that differ with several processes."""
    if distributed.launched() == 1:
        return {}
    rows, accumulation = divided_batch(train.batch_size, train.accumulation, distributed.launched())
    changed: dict[str, Any] = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulation}
    if not torch.accelerator.is_available():
        # With use_cpu, Accelerate refuses to shard; with the backend gloo it uses the CPU by itself.
        changed |= {"ddp_backend": "gloo", "use_cpu": not is_sharded(), "dataloader_pin_memory": False}
    return changed


@contextmanager
def whole_batch(args: TrainingArguments) -> Iterator[None]:
    """Group rows by length over the batch of all processes, so that their order is the same for any number of them."""
    before = args.gradient_accumulation_steps
    args.gradient_accumulation_steps = before * max(1, args.world_size)
    try:
        yield
    finally:
        args.gradient_accumulation_steps = before


# ---- The model of an engine ----


def to_train(model: nn.Module) -> nn.Module:
    """Return the model to train: the model itself, or a copy of it for an engine that shards its model."""
    if not is_sharded():
        return model
    copied = copy.deepcopy(model)
    _join_embeddings(copied)
    return copied


def _join_embeddings(model: Any) -> None:
    """Use one embedding module for both stacks of an encoder-decoder: FSDP2 shards their tied tensor only once."""
    embedding = model.get_input_embeddings()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if child is not embedding and type(child) is type(embedding) and child.weight is embedding.weight:
                setattr(module, name, embedding)


def prepare(training: ShardedTraining) -> None:
    """Set the classes of the blocks that FSDP2 shards one by one, unless they are configured."""
    plugin = getattr(training.accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = blocks(training.model)


def blocks(model: Any) -> list[str]:
    """Return the classes of the layers that must not be split.

    Those that contain the embeddings are left out: embeddings are sharded separately.
    """
    embedding = model.get_input_embeddings()
    around = {type(part).__name__ for part in model.modules() if any(one is embedding for one in part.modules())}
    present = {type(part).__name__ for part in model.modules()}
    return sorted((set(model._no_split_modules or ()) & present) - around)


def unsharded_weights(training: ShardedTraining) -> Mapping[str, Tensor]:
    """Return the weights in float32 on the first process; other processes may get none.

    All processes must call it together.
    """
    state: Mapping[str, Tensor] = training.accelerator.get_state_dict(training.model_wrapped)
    return state


def refresh(model: nn.Module, training: ShardedTraining) -> None:
    """Copy the current weights of the engine into the unsharded model, on every process.

    All processes must call it together.
    """
    if not is_sharded():
        return
    state = unsharded_weights(training)
    with torch.no_grad():
        for name, value in model.state_dict(keep_vars=True).items():
            if distributed.is_main():
                value.copy_(state[name])
            distributed.broadcast_tensor(value.data)


class Refresh(TrainerCallback):
    """Copy the trained weights into the unsharded model at every evaluation and at the end.

    The callbacks after it read them there.

    Args:
        model: The unsharded model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._training: ShardedTraining | None = None

    def attach(self, training: ShardedTraining) -> None:
        """Read the weights of this training, which exists only after its callbacks."""
        self._training = training

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._refresh()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._refresh()

    def _refresh(self) -> None:
        if self._training is not None:
            refresh(self.model, self._training)
