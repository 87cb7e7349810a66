"""Memory that is kept between steps.

A training step allocates and frees the same large tensors over and over. glibc hands blocks of that size back to the
system at once, which then has to map and clear every page anew: about half of all page faults of a run, and a third of
its time on a virtual machine where faults are dear (``benchmarks/allocator.py`` measures it). The peak stays the same;
memory just is not given back between steps.
"""

from __future__ import annotations

import ctypes
import sys

# Options of mallopt(3), from glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4

_LARGEST_INT = 2**31 - 1
_TOP_PAD_BYTES = 64 * 1024 * 1024


def keep_freed_pages() -> bool:
    """Tell glibc to serve large blocks from the heap and to keep what is freed; whether it did.

    Does nothing (and returns False) where the C library is not glibc. The setting holds for the whole process.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    options = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _LARGEST_INT), (_M_TOP_PAD, _TOP_PAD_BYTES))
    # musl has a mallopt that does nothing and returns 0; glibc returns 1.
    return all(mallopt(option, value) == 1 for option, value in options)
