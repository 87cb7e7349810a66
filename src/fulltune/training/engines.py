"""Training on several processes: what each takes of a batch, what an engine cannot do, and whole weights again.

The engines are those of Accelerate: DDP (a copy of the model a process), FSDP2 and DeepSpeed ZeRO (shards of it). A
sharded engine trains a copy of the model of its own; the bundle's model stays whole and plain, and gets the trained
weights whenever somebody looks at it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fulltune.config import Config, TrainConfig
from fulltune.errors import ConfigError, Problem
from fulltune.runtime import distributed

if TYPE_CHECKING:
    from fulltune.training.trainer import Trainer

#: Optimizers whose state may be sharded: element by element, so that a part of a tensor is updated like the whole.
SHARDED_OPTIMIZERS = ("adamw", "adamw_torch", "adamw_torch_fused")


def is_sharded() -> bool:
    """Whether weights, gradients or the optimizer's state are spread over the processes."""
    return distributed.engine() not in ("", "ddp")


def share(batch_size: int, accumulation: int, processes: int) -> tuple[int, int]:
    """Rows a micro-batch and micro-batches a step of one process, so that all together make the same batch.

    Micro-batches are dealt out first, then rows, so no process ever holds more rows at once than one alone would.

    Raises:
        ConfigError: The batch does not divide.
    """
    dealt = math.gcd(accumulation, processes)
    if batch_size % (processes // dealt):
        raise ConfigError(
            f"{batch_size * accumulation} rows a step for {processes} processes",
            expected=f"an effective batch (batch_size × accumulation) that {processes} divides",
            fix="change train.batch_size, train.accumulation, or the number of processes",
            field="train.batch_size",
        )
    return batch_size // (processes // dealt), accumulation // dealt


def check(config: Config) -> None:
    """Whether the engine that the launcher chose can do what the config asks.

    Raises:
        ConfigError: It cannot; all problems at once.
    """
    problems = list(_problems(config)) if is_sharded() else []
    processes, accumulation = distributed.launched(), config.train.accumulation
    if config.speed.batch_tokens and accumulation % processes:
        found = f"{accumulation} micro-batches of {config.speed.batch_tokens} tokens a step for {processes} processes"
        fix = f"make train.accumulation a multiple of {processes}, or set train.batch_size instead"
        problems.append(Problem(found, "as many for each", fix, field="speed.batch_tokens"))
    if problems:
        raise ConfigError(problems)
    share(config.train.batch_size, accumulation, processes)


def _problems(config: Config) -> Iterator[Problem]:
    """What a sharded engine cannot do."""
    name = distributed.engine()
    if config.method != "full":
        yield Problem(f"{config.method} with {name}", "full", "launch it with the preset ddp", field="method")
    if config.train.optimizer not in SHARDED_OPTIMIZERS:
        found, known = f"{config.train.optimizer} with {name}", ", ".join(SHARDED_OPTIMIZERS)
        yield Problem(found, f"one of {known}", "launch it with the preset ddp", field="train.optimizer")
    for penalty in ("l2_sp", "ewc", "distill"):
        if getattr(config.regularize, penalty):
            found = f"{penalty} with {name}, which keeps no whole gradients"
            fix = "launch it with the preset ddp, or use replay or layer_decay"
            yield Problem(found, "no penalty on weights", fix, field=f"regularize.{penalty}")


def arguments(train: TrainConfig) -> dict[str, Any]:
    """Fields of ``TrainingArguments`` that several processes change."""
    if distributed.launched() == 1:
        return {}
    rows, accumulation = share(train.batch_size, train.accumulation, distributed.launched())
    changed: dict[str, Any] = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulation}
    if not torch.accelerator.is_available():
        # Accelerate refuses to shard where it was told of a CPU; with gloo named, it takes what is there.
        changed |= {"ddp_backend": "gloo", "use_cpu": not is_sharded(), "dataloader_pin_memory": False}
    return changed


@contextmanager
def whole_batch(args: TrainingArguments) -> Iterator[None]:
    """Rows are grouped by length over the batch of all processes, so their order is the same for any number of them."""
    before = args.gradient_accumulation_steps
    args.gradient_accumulation_steps = before * max(1, args.world_size)
    try:
        yield
    finally:
        args.gradient_accumulation_steps = before


# ---- The model that an engine shards ----


def to_train(model: nn.Module) -> nn.Module:
    """What the trainer gets: the model, or a copy of it for an engine that takes its model apart."""
    if not is_sharded():
        return model
    copied = copy.deepcopy(model)
    _join_embeddings(copied)
    return copied


def _join_embeddings(model: Any) -> None:
    """Both stacks of an encoder-decoder have modules of their own over one tied tensor; FSDP2 shards it once."""
    embedding = model.get_input_embeddings()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if child is not embedding and type(child) is type(embedding) and child.weight is embedding.weight:
                setattr(module, name, embedding)


def prepare(trainer: Trainer) -> None:
    """What the engine must know of the model: FSDP2 shards its blocks, one by one."""
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = blocks(trainer.model)


def blocks(model: Any) -> list[str]:
    """Classes of the layers that must stay in one piece, less those around the embeddings, which are sharded alone."""
    embedding = model.get_input_embeddings()
    around = {type(part).__name__ for part in model.modules() if any(one is embedding for one in part.modules())}
    there = {type(part).__name__ for part in model.modules()}
    return sorted((set(model._no_split_modules or ()) & there) - around)


def whole_weights(trainer: Trainer) -> Mapping[str, Tensor]:
    """The weights in float32, unsharded, on the first process (others may get none). All must call it together."""
    state: Mapping[str, Tensor] = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return state


def refresh(model: nn.Module, trainer: Trainer) -> None:
    """Give the plain model the weights that the engine has now, on every process. All must call it together."""
    if not is_sharded():
        return
    state = whole_weights(trainer)
    with torch.no_grad():
        for name, value in model.state_dict(keep_vars=True).items():
            if distributed.is_main():
                value.copy_(state[name])
            distributed.broadcast_tensor(value.data)


class Refresh(TrainerCallback):
    """Lets those who watch training see the trained weights in the plain model, at every evaluation and at the end."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.trainer: Trainer | None = None

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._refresh()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._refresh()

    def _refresh(self) -> None:
        if self.trainer is not None:
            refresh(self.model, self.trainer)
