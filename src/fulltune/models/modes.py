"""Run a model in eval or training mode, and restore the mode of each of its modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Set the mode of a model within the block; afterwards each module has its own mode again.

    ``model.train(before)`` would give all modules one mode, also those that were frozen in eval mode.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
