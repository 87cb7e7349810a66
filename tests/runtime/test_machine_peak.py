"""Peak memory: of this program alone, and since a mark."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fulltune.runtime import machine

MB = 1_000_000

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a peak counter that can be reset")


def test_a_peak_since_a_mark_ignores_what_was_before() -> None:
    code = (
        "from fulltune.runtime import machine\n"
        "block = bytearray(300_000_000); del block\n"
        "machine.reset_peak_rss(); since = machine.peak_rss_since_reset()\n"
        "block = bytearray(100_000_000); del block\n"
        "print(since, machine.peak_rss_since_reset(), machine.peak_rss_bytes())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    at_mark, later, whole = map(int, done.stdout.split())
    assert at_mark < 100 * MB
    assert 100 * MB < later < 200 * MB
    assert whole > 300 * MB


def test_the_child_of_a_large_process_starts_small() -> None:
    block = bytearray(300 * MB)
    code = "from fulltune.runtime import machine; print(machine.peak_rss_bytes())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert machine.peak_rss_bytes() > len(block)
    assert int(done.stdout) < 100 * MB
