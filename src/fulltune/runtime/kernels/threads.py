"""How many threads compute: one a physical core that this process may use.

torch takes a thread a core of the host. In a container with a quota of two cores on a host of sixty-four that is
sixty-two too many, and each product waits for the last of them. A second hardware thread of a core shares its
multiplier, so it adds nothing to a matrix product.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from fulltune.runtime import machine

#: Variables by which a user chooses; such a choice stands.
CHOSEN_BY = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def threads_wanted(usable: int, physical: int | None, given: int, environment: Mapping[str, str] = os.environ) -> int:
    """Threads to compute with, never more than there are now.

    Args:
        usable: Cores that this process may use (affinity and quota).
        physical: Physical cores of the machine, or None where that is not known.
        given: Threads that torch would take.
        environment: Where :data:`CHOSEN_BY` are looked up.
    """
    if any(environment.get(name) for name in CHOSEN_BY):
        return given
    return max(1, min(given, usable, physical or usable))


def settle_threads() -> int:
    """Give torch the number of threads that the machine can serve, and return it. It is only ever lowered."""
    import psutil
    import torch

    given = torch.get_num_threads()
    wanted = threads_wanted(machine.cores(), psutil.cpu_count(logical=False), given)
    if wanted != given:
        torch.set_num_threads(wanted)
    return wanted
