"""What this machine gives a process: cores and memory as the container sees them, not as the host has them."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def cores() -> int:
    """Cores this process may use: its CPU affinity, cut by a cgroup quota (v2 ``cpu.max``), at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _read(_CGROUP / "cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        allowed = min(allowed, max(1, int(quota[0]) // int(quota[1])))
    return allowed


def memory_bytes() -> int:
    """Bytes of memory this process may fill: physical memory, cut by a cgroup limit (v2 ``memory.max`` or v1)."""
    import psutil

    limits = [_read(_CGROUP / "memory.max"), _read(_CGROUP / "memory" / "memory.limit_in_bytes")]
    return min([int(psutil.virtual_memory().total), *(int(limit) for limit in limits if limit.isdigit())])


def rss_bytes() -> int:
    """Resident memory of this process now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


#: The highest peak before the last :func:`mark_peak`.
_EARLIER = [0]


def peak_rss_bytes() -> int:
    """Peak resident memory of this process so far.

    Linux tells it of the program alone (``VmHWM``); ``getrusage`` there counts what the process held before it became
    this program, so that the child of a large parent would never look small.
    """
    return max(_EARLIER[0], peak_since_mark())


def mark_peak() -> None:
    """Begin a new peak for :func:`peak_since_mark`, where the system can (Linux); freed pages go back first."""
    _EARLIER[0] = peak_rss_bytes()
    give_back_freed_pages()
    with suppress(OSError):
        # 5 sets the peak back to what is resident now: proc_pid_clear_refs(5).
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def give_back_freed_pages() -> None:
    """Hand freed memory back to the system, where the C library can (glibc); what is in use stays where it is.

    Worth it where work of another shape begins: it could not reuse the holes that the last one left.
    """
    with suppress(OSError, AttributeError, TypeError):  # no C library that has it
        ctypes.CDLL(None).malloc_trim(0)


def peak_since_mark() -> int:
    """Peak resident memory since the last mark; since the start where there is none, or the system cannot forget."""
    for line in _read(Path("/proc/self/status")).splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def cpu_name() -> str:
    """The processor's own name, or its architecture where the system does not tell."""
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def describe() -> str:
    """One line for a record, e.g. ``Linux x86_64, 2 cores of AMD EPYC 9B45, 23.5 GiB``."""
    memory = memory_bytes() / 2**30
    count = f"{cores()} core{'s' if cores() > 1 else ''}"
    return f"{platform.system()} {platform.machine()}, {count} of {cpu_name()}, {memory:.1f} GiB"


def _read(path: Path) -> str:
    """The file's text, or nothing on a system that has no such file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
