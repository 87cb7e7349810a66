"""Give each layer its own learning rate, lower with the distance from the top of the model."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from fulltune.errors import ArgumentError

#: Names of the blocks of a transformer, followed by their number.
_BLOCK = re.compile(r"^(.*?\b(?:h|layer|layers|block|blocks))\.(\d+)\.")

#: Names of modules below the first block.
_BOTTOM = re.compile(r"embed|\bwte\b|\bwpe\b|\bshared\b")


class LayerDecay:
    """The factor on the learning rate for each layer below the top, for one optimizer.

    Args:
        factor: The factor; 1 changes nothing.
    """

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._optimizer: Any = None

    def apply(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
        """Set the learning rates of a new optimizer."""
        if self._factor < 1:
            decay_by_layer(optimizer, model, self._factor)
            self._optimizer = optimizer

    def check(self, optimizer: Any, override_reason: str | None) -> None:
        """Check that an optimizer is the one whose learning rates were set.

        Args:
            optimizer: The optimizer that will be used.
            override_reason: The method of the user that creates it, in words, or None.

        Raises:
            ArgumentError: It is another one.
        """
        plain = getattr(optimizer, "optimizer", optimizer)  # without the wrapper of Accelerate
        if self._factor == 1 or plain is getattr(self._optimizer, "optimizer", self._optimizer):
            return
        raise ArgumentError(
            f"layer_decay is set, and {override_reason or 'an optimizer is given'}",
            expected="the optimizer of fulltune.Trainer, the only one that uses it",
            fix="call super().create_optimizer(), or leave layer_decay out and set the rates of your parameter groups",
            field="layer_decay",
        )


def distances(model: nn.Module) -> dict[str, int]:
    """Return the distance of each parameter from the top of the model, by name.

    It is 0 for the head and the layers after the last block, 1 for the last block, and the number of blocks plus 1 for
    the embeddings. The two stacks of an encoder-decoder are counted separately.
    """
    names = [name for name, _ in model.named_parameters()]
    blocks: dict[str, tuple[str, int]] = {}
    heights: dict[str, int] = {}
    for name in names:
        match = _BLOCK.match(name)
        if match:
            stack = match[1]
            number = int(match[2])
            blocks[name] = (stack, number)
            heights[stack] = max(heights.get(stack, 0), number + 1)
    bottom = max(heights.values(), default=0) + 1
    distances: dict[str, int] = {}
    for name in names:
        if name in blocks:
            stack, number = blocks[name]
            distances[name] = heights[stack] - number
        else:
            distances[name] = bottom if _BOTTOM.search(name) else 0
    return distances


def decay_by_layer(optimizer: torch.optim.Optimizer, model: nn.Module, factor: float) -> None:
    """Split the groups of an optimizer so that a parameter at distance d has the learning rate ``rate · factor^d``.

    This is discriminative fine-tuning (Howard & Ruder 2018). The first group has the full rate, which is logged. Call
    it before the first step and before the scheduler is created.
    """
    distance_of = distances(model)
    depth = {id(parameter): distance_of[name] for name, parameter in model.named_parameters()}
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        for distance in sorted({depth[id(parameter)] for parameter in group["params"]}):
            own = [parameter for parameter in group["params"] if depth[id(parameter)] == distance]
            groups.append(group | {"params": own, "lr": group["lr"] * factor**distance})
    optimizer.param_groups = sorted(groups, key=lambda group: -group["lr"])
