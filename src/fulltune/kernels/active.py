"""The fast paths of a run: chosen once, in force for as long as a block lasts, and undone afterwards.

with fixed("auto", folder / "kernels.json"):     # the whole run makes its products in one way
    with accelerated(model):                     # layers of this model are fast in here
        ...
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Literal

from torch import nn

from fulltune import distributed
from fulltune.kernels.agreement import kernels_agree
from fulltune.kernels.attention import fast_attention
from fulltune.kernels.calibration import dump_choices, machine_choices, read_choices
from fulltune.kernels.denormals import denormals_are_zero
from fulltune.kernels.dropout import fast_dropouts
from fulltune.kernels.linear import fast_linears
from fulltune.kernels.products import Choices
from fulltune.kernels.threads import settle_threads
from fulltune.store.files import atomic_text

Switch = Literal["auto", "off"]

#: oneDNN compiles a product for every shape that it meets, and forgets all but the last 1,024. Batches of many lengths
#: have more: three products for each kind of layer and each number of rows.
_CAPACITY = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192"

#: None: nothing was fixed. A process asks its machine once, when it first needs to know.
_fixed: ContextVar[Choices | Literal["off"] | None] = ContextVar("fixed", default=None)
_of_machine: dict[int, Choices] = {}


def current() -> Choices | None:
    """The choice in force, or None where kernels are off."""
    import torch

    fixed = _fixed.get()
    if fixed == "off":
        return None
    if fixed is not None:
        return fixed
    threads = torch.get_num_threads()
    if threads not in _of_machine:
        _of_machine[threads] = machine_choices()
    return _of_machine[threads]


@contextmanager
def fixed(kernels: Switch, path: Path | None = None) -> Iterator[Choices | None]:
    """Settle how products are made for as long as the block lasts.

    Args:
        kernels: ``speed.kernels`` of the config.
        path: A run's own file. What stands there is used, so that a resumed run goes on bit for bit; a new run writes
            its choice there. Processes of one run all take the choice of the first one.
    """
    settle_threads()
    if kernels == "off":
        token = _fixed.set("off")
    else:
        token = _fixed.set(current() if path is None else distributed.once(lambda: _kept(path)))
    try:
        yield current()
    finally:
        _fixed.reset(token)


def _kept(path: Path) -> Choices | None:
    """The choice that stands in a run's file; where none does, the one in force is written there."""
    kept = read_choices(path)
    if kept is not None:
        return kept
    choices = current()
    if choices is not None:
        atomic_text(path, dump_choices(choices))
    return choices


def choices_for(model: nn.Module) -> Choices | None:
    """Return the choice in force for this model, or None where kernels are off or would change what it computes."""
    choices = current()
    return choices if choices is not None and kernels_agree(model, choices) else None


@contextmanager
def accelerated(model: nn.Module) -> Iterator[None]:
    """While it lasts, the model computes by the choice in force. Nested blocks change nothing.

    A model whose answers or gradients the kernels would change computes without them.
    """
    os.environ.setdefault(*_CAPACITY)  # read by oneDNN at its first product
    choices = choices_for(model)
    with ExitStack() as stack:
        if choices is not None:
            stack.enter_context(denormals_are_zero())
            stack.enter_context(fast_linears(model, choices))
            stack.enter_context(fast_dropouts(model))
            stack.enter_context(fast_attention())
        yield
