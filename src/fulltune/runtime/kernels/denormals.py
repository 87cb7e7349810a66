"""Numbers below the smallest normal float32 (1.2e-38) count as zero while a model computes.

Gradients of an attention that is sure of itself are full of them, and Intel's processors take some hundred cycles for
each: without them a T5 of 5 million parameters trains 1.8 times as fast there (Sapphire Rapids). What is flushed is
10³⁰ times smaller than the rounding of a number near one. Weights that are only read or copied keep every bit.

The switch is a register of each thread (Intel 64 Architectures Software Developer's Manual, volume 1, section 10.2.3),
so it is set in the threads of the OpenMP runtime too.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def denormals_are_zero() -> Iterator[bool]:
    """While it lasts, float arithmetic of this thread and of torch's OpenMP threads flushes; gives whether it does.

    Nested blocks change nothing. Only GNU's OpenMP runtime can be reached; with another, or on a processor without the
    switch, what cannot be set stays as it is.
    """
    if _flushes():
        yield True
        return
    try:
        yield _set(True)
    finally:
        _set(False)


def _flushes() -> bool:
    """Whether this thread does: half of the smallest normal number is then zero."""
    return sys.float_info.min / 2 == 0.0


def _set(on: bool) -> bool:
    """Set the switch in all threads; whether the processor has one."""
    if not torch.set_flush_denormal(on):
        return False
    gomp = _gomp()
    if gomp is not None and torch.get_num_threads() > 1:
        call = _IN_A_THREAD(lambda _: torch.set_flush_denormal(on) and None)
        gomp.GOMP_parallel(call, None, ctypes.c_uint(torch.get_num_threads()), ctypes.c_uint(0))
    return True


#: void (*)(void *), as GOMP_parallel takes it ("The GNU OpenMP Implementation", the libgomp ABI).
_IN_A_THREAD = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def _gomp() -> ctypes.CDLL | None:
    """The OpenMP runtime that torch computes with, if it is GNU's."""
    from threadpoolctl import threadpool_info

    runtimes = [pool for pool in threadpool_info() if pool["prefix"] == "libgomp"]
    # scikit-learn brings one of its own; torch's lies in its folder, or is the only one.
    of_torch = [pool for pool in runtimes if "/torch/" in pool["filepath"]] or runtimes
    return ctypes.CDLL(of_torch[0]["filepath"]) if of_torch else None
