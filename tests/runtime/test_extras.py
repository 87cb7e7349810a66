"""Advice on installing fits the way in which fulltune was installed, and the number of packages."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fulltune.errors import MissingDependencyError
from fulltune.runtime import extras


def installed_from(monkeypatch: pytest.MonkeyPatch, origin: dict[str, Any] | None) -> None:
    text = None if origin is None else json.dumps(origin)
    monkeypatch.setattr(extras, "distribution", lambda name: SimpleNamespace(read_text=lambda file: text))


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, "pip install 'fulltune[serve]'"),
        ({"url": "file:///there/my%20clone", "dir_info": {}}, "pip install '/there/my clone[serve]'"),
        ({"url": "file:///there", "dir_info": {"editable": True}}, "pip install -e '/there[serve]'"),
        (
            {"url": "https://example.org/f.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "pip install 'fulltune[serve] @ git+https://example.org/f.git@abc'",
        ),
        (
            {"url": "https://example.org/f.whl", "archive_info": {}},
            "pip install 'fulltune[serve] @ https://example.org/f.whl'",
        ),
    ],
    ids=["index", "folder", "editable", "repository", "archive"],
)
def test_the_command_fits_the_installation(
    origin: dict[str, Any] | None, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed_from(monkeypatch, origin)
    assert extras.install("serve") == command


def test_inside_the_clone_it_is_a_dot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    installed_from(monkeypatch, {"url": Path.cwd().as_uri(), "dir_info": {}})
    assert extras.install("serve") == "pip install '.[serve]'"


@pytest.mark.parametrize(
    ("packages", "sentence"),
    [
        (["no-pack-a"], "a server needs no-pack-a, which is not installed. Install it with "),
        (["no-pack-a", "no-pack-b"], "a server needs no-pack-a and no-pack-b, which are not installed. Install them "),
        (["no-pack-a", "no-pack-b", "no-pack-c"], "a server needs no-pack-a, no-pack-b and no-pack-c, which are not"),
    ],
    ids=len,
)
def test_all_missing_packages_are_in_one_sentence(packages: list[str], sentence: str) -> None:
    with pytest.raises(MissingDependencyError) as caught:
        extras.check("a server", ["json", *packages], "serve")
    assert str(caught.value).startswith(sentence)
