"""Train on several processes: divide the batch, check the limits of an engine, gather the sharded weights.

The engines are those of Accelerate: DDP (a copy of the model per process), FSDP2 and DeepSpeed ZeRO (shards of the
model). A sharded engine trains a copy of the model. The model of the bundle stays unsharded, and gets the trained
weights at every evaluation and at the end.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fulltune.config import TrainConfig
from fulltune.runtime import distributed
from fulltune.training.engine_check import divided_batch, is_sharded_launch
from fulltune.training.protocols import ShardedTraining


def arguments(train: TrainConfig) -> dict[str, Any]:
    """Return the fields of ``TrainingArguments`` that differ with several processes."""
    if distributed.launched() == 1:
        return {}
    rows, accumulation = divided_batch(train.batch_size, train.accumulation, distributed.launched())
    changed: dict[str, Any] = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulation}
    if not torch.accelerator.is_available():
        # With use_cpu, Accelerate refuses to shard; with the backend gloo it uses the CPU by itself.
        changed |= {"ddp_backend": "gloo", "use_cpu": not is_sharded_launch(), "dataloader_pin_memory": False}
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
    if not is_sharded_launch():
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
    if not is_sharded_launch():
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
