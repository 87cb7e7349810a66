"""The hub library of this process, directed to a server on loopback: a new process would import torch for seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import close_session, constants


def connect(monkeypatch: pytest.MonkeyPatch, endpoint: str, home: Path) -> None:
    """Set what the library reads from its environment variables on import."""
    values = {"ENDPOINT": endpoint, "HF_HUB_CACHE": str(home / "hub"), "HF_TOKEN_PATH": str(home / "token")}
    values["HUGGINGFACE_CO_URL_TEMPLATE"] = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    for name, value in values.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    close_session()
