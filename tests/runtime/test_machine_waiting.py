"""The time that this thread waits for a core is a fraction of the time that passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from fulltune.runtime import machine


def test_waiting_is_what_the_system_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter(["5 1000000000 1", "5 4000000000 1"])
    clock = iter([10.0, 14.0])
    computed = iter([1.0, 7.0])
    monkeypatch.setattr(machine, "_read", lambda path: next(counts))
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(machine.time, "process_time", lambda: next(computed))
    with machine.Waiting() as others:
        pass
    assert others.fraction == 0.75
    assert others.cores == 1.5


def test_a_system_that_does_not_tell_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_read", lambda path: "" if isinstance(path, Path) else None)
    assert machine.waited_seconds() == 0.0
