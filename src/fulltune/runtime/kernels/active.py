"""Select the CPU kernels of a run: chosen once per run, restored afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Literal

from fulltune.runtime import distributed
from fulltune.runtime.files import atomic_text
from fulltune.runtime.kernels.products import Choices
from fulltune.runtime.kernels.threads import limit_threads

Switch = Literal["auto", "off"]

#: Choices pinned by :func:`pinned_kernels`. None: nothing is pinned, so the machine's own choices apply.
_pinned: ContextVar[Choices | Literal["off"] | None] = ContextVar("pinned", default=None)

#: Choices of this machine by number of threads, measured or read once per process.
_machine_choices: dict[int, Choices] = {}


def current() -> Choices | None:
    """Return the active choices; None if the kernels are off."""
    import torch

    from fulltune.runtime.kernels.calibration import machine_choices

    pinned = _pinned.get()
    if pinned == "off":
        return None
    if pinned is not None:
        return pinned
    threads = torch.get_num_threads()
    if threads not in _machine_choices:
        _machine_choices[threads] = machine_choices()
    return _machine_choices[threads]


@contextmanager
def pinned_kernels(kernels: Switch, path: Path | None = None) -> Iterator[Choices | None]:
    """Pin the kernels that compute matrix products within the block.

    Args:
        kernels: ``speed.kernels`` of the config.
        path: File in the run folder. If it exists, its choices are used, so that a resumed run continues bit for bit;
            a new run writes its choices there. All processes of a run use those of the main process.
    """
    limit_threads()
    if kernels == "off":
        token = _pinned.set("off")
    elif path is None:
        token = _pinned.set(current())
    else:
        token = _pinned.set(distributed.on_main(lambda: _read_or_write(path)))
    try:
        yield current()
    finally:
        _pinned.reset(token)


def _read_or_write(path: Path) -> Choices | None:
    """Return the choices stored in a run's file; if there are none, write the active ones there."""
    from fulltune.runtime.kernels.calibration import dump_choices, read_choices

    stored = read_choices(path)
    if stored is not None:
        return stored
    choices = current()
    if choices is not None:
        atomic_text(path, dump_choices(choices))
    return choices
