"""Names become classes: built-ins, installed packages, and a clear message where neither has it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fulltune.errors import ConfigError
from fulltune.runtime import plugins


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create an installed package, as pip leaves it, with four entry points."""
    info = tmp_path / "shop-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shop\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[fulltune.tasks]\nranking = shop_tasks:Ranking\nlost = shop_nowhere:Lost\nempty = shop_tasks:Missing\n"
        "classification = shop_tasks:Ranking\n[fulltune.methods]\nsoup = shop_tasks:Ranking\n"
    )
    (tmp_path / "shop_tasks.py").write_text("class Ranking:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "shop_tasks", raising=False)
    return tmp_path


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, row in plugins.BUILT_IN.items() for name in row])
def test_every_built_in_loads_and_knows_its_name(kind: plugins.PluginKind, name: str) -> None:
    assert plugins.load(kind, name).name == name


def test_the_built_ins_are_those_of_the_documentation() -> None:
    assert set(plugins.names("task")) >= {"causal-lm", "classification", "seq2seq", "text2sql"}
    assert "full" in plugins.names("method")


def test_an_installed_package_adds_a_task_and_a_method(package: Path) -> None:
    assert plugins.load("task", "ranking").__module__ == "shop_tasks"
    assert plugins.load("method", "soup").__name__ == "Ranking"
    assert "ranking" in plugins.names("task")


def test_a_package_cannot_replace_a_built_in(package: Path) -> None:
    assert plugins.load("task", "classification").__module__ == "fulltune.tasks.classification"


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("task", "clasification", "did you mean 'classification'"),
        ("task", "zzz", "one of causal-lm, classification, seq2seq, text2sql"),
        ("method", "fulll", "did you mean 'full'"),
    ],
)
def test_an_unknown_name_names_the_known_ones(kind: plugins.PluginKind, name: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plugins.load(kind, name)
    assert message in str(caught.value).replace("Did", "did")


@pytest.mark.parametrize(("name", "reason"), [("lost", "ModuleNotFoundError"), ("empty", "AttributeError")])
def test_a_broken_package_is_named(package: Path, name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name!r} of shop cannot be loaded \({reason}.*Reinstall or upgrade shop"):
        plugins.load("task", name)
