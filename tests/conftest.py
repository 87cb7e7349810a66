"""Makes the shared helpers (``fakes``) importable from every folder of tests, and times no property."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

# Nothing of the user's is read or written.
os.environ["FULLTUNE_CACHE"] = tempfile.mkdtemp(prefix="fulltune-tests-")

# A busy machine is no reason to fail.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log what is logged once in a process again in each test."""
    monkeypatch.setattr("fulltune.runtime.log_once._written", set())
