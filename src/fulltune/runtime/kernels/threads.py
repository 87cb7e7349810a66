"""Choose the number of compute threads: one per physical core that this process may use.

torch starts one thread per core of the host. In a container with a quota of two cores on a host with 64, that is 62
threads too many, and every matrix product waits for the slowest of them. The second hardware thread of a core shares
its multipliers, so it does not speed up a matrix product.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache

from fulltune.runtime import machine

#: Environment variables that set the number of threads explicitly; an explicit choice is never changed.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def thread_count(usable: int, physical: int | None, current: int, environment: Mapping[str, str] = os.environ) -> int:
    """Return the number of threads to compute with, at most ``current``.

    Args:
        usable: Cores that this process may use (affinity and quota).
        physical: Physical cores of the machine; None if unknown.
        current: Number of threads that torch uses now.
        environment: Mapping in which :data:`THREAD_VARIABLES` are looked up.
    """
    if any(environment.get(name) for name in THREAD_VARIABLES):
        return current
    return max(1, min(current, usable, physical or usable))


def limit_threads() -> int:
    """Reduce torch's number of threads to what the machine can run at once, and return it. It is never increased."""
    import torch

    current = torch.get_num_threads()
    count = thread_count(machine.cores(), _physical_cores(), current)
    if count != current:
        torch.set_num_threads(count)
    return count


@cache
def _physical_cores() -> int | None:
    import psutil

    found: int | None = psutil.cpu_count(logical=False)
    return found
