"""Make the shared helpers (``fakes``) importable from every test folder; hypothesis has no deadlines."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

# Keep the user's cache out of the tests.
os.environ["FULLTUNE_CACHE"] = tempfile.mkdtemp(prefix="fulltune-tests-")

# A slow machine must not fail a property test. Each run draws others; `--hypothesis-profile thorough` draws more.
settings.register_profile("untimed", deadline=None, max_examples=40)
settings.register_profile("thorough", deadline=None, max_examples=400)
settings.load_profile("untimed")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Exempt what the imports have made from garbage collection, which visits everything else."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def collection_left_to_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevent trainings from collecting garbage at their start: that took longer than the training of a tiny model."""
    memory = sys.modules.get("accelerate.utils.memory")
    if memory is not None:
        monkeypatch.setattr(memory, "gc", SimpleNamespace(collect=lambda: 0))


@pytest.fixture(autouse=True)
def new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget in each test which once-per-process messages were logged."""
    monkeypatch.setattr("fulltune.runtime.log_once._written", set())
