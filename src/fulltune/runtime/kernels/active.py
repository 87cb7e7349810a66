"""The kernels in force: chosen once per run, and undone afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Literal

from fulltune.runtime import distributed
from fulltune.runtime.files import atomic_text
from fulltune.runtime.kernels.calibration import dump_choices, machine_choices, read_choices
from fulltune.runtime.kernels.products import Choices
from fulltune.runtime.kernels.threads import settle_threads

Switch = Literal["auto", "off"]

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
def pinned_kernels(kernels: Switch, path: Path | None = None) -> Iterator[Choices | None]:
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
        token = _fixed.set(current() if path is None else distributed.on_main(lambda: _kept(path)))
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
