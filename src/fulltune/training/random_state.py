"""The random numbers of a process: Python's, NumPy's and torch's (on the CPU, where the order of rows is drawn)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def random_state() -> Any:
    """Where they stand, for :func:`set_random_state`."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def set_random_state(state: Any) -> None:
    """Go on from a :func:`random_state`."""
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])


@contextmanager
def randomness_kept() -> Iterator[None]:
    """What is drawn inside is not seen outside."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)
