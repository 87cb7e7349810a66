"""The random numbers of a process: Python's, NumPy's, torch's on the CPU (where the order of rows is drawn) and on the
accelerator.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """Where they stand, for :func:`set_random_state`: tensors, and plain data."""
    name, keys, *rest = np.random.get_state()
    state = {"python": random.getstate(), "numpy": [name, keys, *rest], "torch": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state_all()} if torch.cuda.is_available() else {})


def set_random_state(state: dict[str, Any]) -> None:
    """Go on from a :func:`random_state`, also from one that was written and read back."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.asarray(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def randomness_kept() -> Iterator[None]:
    """What is drawn inside is not seen outside."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)
