"""Batches as the trainer makes them, also where a test observes them."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def hooks_only_observe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let hooks of these tests count as fulltune's own: those of a user leave the batches to transformers."""
    monkeypatch.setattr("fulltune.training.user_code.hooked", lambda modules: None)
