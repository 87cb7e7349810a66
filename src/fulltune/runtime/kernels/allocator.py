"""Keep freed memory in the process between training steps.

Each training step allocates and frees the same large tensors. By default, glibc returns blocks of that size to the
system at once, and the kernel must map and clear every page again. That causes about half of all page faults of a run,
and takes a third of its time on virtual machines where page faults are expensive (measured by
``benchmarks/allocator.py``). Peak memory stays the same; only the release between steps is skipped.
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
    """Configure glibc to serve large blocks from the heap and to keep freed pages; return whether it did.

    The setting applies to the entire process. With any other C library, nothing is changed and the result is False.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    options = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _LARGEST_INT), (_M_TOP_PAD, _TOP_PAD_BYTES))
    # musl has a mallopt that does nothing and returns 0; glibc returns 1.
    return all(mallopt(option, value) == 1 for option, value in options)
