"""Save and restore the random number generators of a process.

These are the generators of Python, NumPy, and torch on the CPU (which draws the order of rows) and the accelerator.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """Return the states of all generators, as tensors and plain data, for :func:`set_random_state`."""
    name, keys, *rest = np.random.get_state()
    state = {"python": random.getstate(), "numpy": [name, keys, *rest], "torch": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state_all()} if torch.cuda.is_available() else {})


def set_random_state(state: dict[str, Any]) -> None:
    """Restore a :func:`random_state`, which may have been written to a checkpoint and read again."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.asarray(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def randomness_kept() -> Iterator[None]:
    """Restore the generators at the end of the block."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)
