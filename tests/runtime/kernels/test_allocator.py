"""Keeping freed memory is a setting of glibc; elsewhere nothing changes."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from fulltune.runtime.kernels import allocator

PROBE = """
import resource, torch
from fulltune.runtime.kernels.allocator import keep_freed_pages
def faults():
    for _ in range(12): torch.ones(16, 1024, 1024)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16, 1024, 1024)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
before, kept, after = faults(), keep_freed_pages(), faults()
print(before, kept, after)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is the C library of Linux only")
def test_a_large_block_is_mapped_once_instead_of_every_time() -> None:
    found = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True).stdout.split()
    before = int(found[0])
    kept = found[1] == "True"
    after = int(found[2])
    assert kept
    assert before > 10  # with huge pages there are few faults
    assert after < before / 4


def test_another_system_or_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert not allocator.keep_freed_pages()
    monkeypatch.setattr(allocator.sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not allocator.keep_freed_pages()
