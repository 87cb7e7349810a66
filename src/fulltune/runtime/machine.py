"""Report the resources of this process: cores and memory within the container's limits, not those of the host."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import time
from contextlib import suppress
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def cores() -> int:
    """Return the number of cores available: CPU affinity, limited by a cgroup quota (v2 ``cpu.max``)."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _read(_CGROUP / "cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        allowed = min(allowed, max(1, int(quota[0]) // int(quota[1])))
    return allowed


def memory_bytes() -> int:
    """Return the bytes of memory available to this process: physical memory, limited by a cgroup (v2 or v1)."""
    import psutil

    limits = [_read(_CGROUP / "memory.max"), _read(_CGROUP / "memory" / "memory.limit_in_bytes")]
    return min([int(psutil.virtual_memory().total), *(int(limit) for limit in limits if limit.isdigit())])


def rss_bytes() -> int:
    """Return the current resident memory of this process in bytes."""
    import psutil

    return int(psutil.Process().memory_info().rss)


#: Highest peak before the last :func:`reset_peak_rss`, in bytes.
_EARLIER = [0]


def peak_rss_bytes() -> int:
    """Return the peak resident memory of this process so far in bytes.

    On Linux it is read from ``VmHWM``, which counts this program only. ``getrusage`` also counts the memory of the
    parent process before ``exec``, and would overstate the peak of a small child of a large parent.
    """
    return max(_EARLIER[0], peak_rss_since_reset())


def reset_peak_rss() -> None:
    """Reset the peak of :func:`peak_rss_since_reset`, on systems that can (Linux); freed pages are released first."""
    _EARLIER[0] = peak_rss_bytes()
    give_back_freed_pages()
    with suppress(OSError):
        # Writing 5 resets the peak to the current resident size: proc_pid_clear_refs(5).
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def give_back_freed_pages() -> None:
    """Return freed memory to the system, if the C library can (glibc); memory in use is not moved.

    Use it before work with other tensor shapes, which could not reuse the freed blocks.
    """
    with suppress(OSError, AttributeError, TypeError):  # a C library without malloc_trim
        ctypes.CDLL(None).malloc_trim(0)


def peak_rss_since_reset() -> int:
    """Return the peak resident memory in bytes since the last reset; since the start on systems without resets."""
    for line in _read(Path("/proc/self/status")).splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return usage_peak_bytes()


def usage_peak_bytes() -> int:
    """Return the peak resident memory in bytes as ``getrusage`` reports it, which takes a microsecond."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def waited_seconds() -> float:
    """Return how long this thread has been ready to run without a core, because other programs had them.

    0 on systems that do not tell (``/proc/thread-self/schedstat`` of Linux: Documentation/scheduler/sched-stats.rst).
    """
    fields = _read(Path("/proc/thread-self/schedstat")).split()
    return int(fields[1]) / 1e9 if len(fields) == 3 else 0.0


class Waiting:
    """Measures the fraction of a block in which this thread waited for a core, and how many cores the process used.

    Attributes:
        fraction: The fraction, 0 to 1; known at the end of the block.
        cores: The mean number of cores that all threads of the process used; known at the end of the block.
    """

    fraction = 0.0
    cores = 0.0

    def __enter__(self) -> Waiting:
        self._waited, self._started = waited_seconds(), time.perf_counter()
        self._computed = time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        elapsed = time.perf_counter() - self._started
        self.cores = round((time.process_time() - self._computed) / elapsed, 3)
        self.fraction = round(min(1.0, max(0.0, (waited_seconds() - self._waited) / elapsed)), 3)


def cpu_name() -> str:
    """Return the model name of the processor, or its architecture if the system does not report one."""
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def describe() -> str:
    """Return one line for a record, e.g. ``Linux x86_64, 2 cores of AMD EPYC 9B45, 23.5 GiB``."""
    memory = memory_bytes() / 2**30
    count = f"{cores()} core{'s' if cores() > 1 else ''}"
    return f"{platform.system()} {platform.machine()}, {count} of {cpu_name()}, {memory:.1f} GiB"


def _read(path: Path) -> str:
    """Return the text of a system file; empty if it does not exist."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
