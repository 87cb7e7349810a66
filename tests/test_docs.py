"""What the documentation shows must work: code, configs and command lines are checked against the real thing."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from fulltune import plugins
from fulltune.cli import app
from fulltune.config import load_config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))

_BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(*languages: str) -> list[Any]:
    """Every fenced block in one of the languages, named by page and line."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in _BLOCK.finditer(text):
            if match[1] in languages:
                line = text.count("\n", 0, match.start()) + 1
                found.append(pytest.param(match[2], id=f"{page.name}:{line}"))
    return found


def command_lines() -> list[Any]:
    """Every line of a shell block that calls ``fulltune``."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        shell = [match[2] for match in _BLOCK.finditer(text) if match[1] in ("bash", "sh", "shell", "console")]
        lines = [line.strip().removeprefix("$ ") for block in shell for line in block.replace("\\\n", " ").splitlines()]
        found += [pytest.param(line, id=f"{page.name}: {line}") for line in lines if line.startswith("fulltune ")]
    return found


def imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Module and name of everything that a block takes from fulltune."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fulltune":
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "fulltune":
            yield "fulltune", node.attr


def test_there_is_something_to_check() -> None:
    assert len(PAGES) >= 3
    assert len(RECIPES) >= 4
    assert len(blocks("python")) >= 1
    assert len(blocks("yaml")) >= 1
    assert len(command_lines()) >= 3


@pytest.mark.parametrize("code", blocks("python"))
def test_python_compiles_and_its_names_are_there(code: str) -> None:
    tree = ast.parse(code)
    for module, name in imports(tree):
        assert hasattr(importlib.import_module(module), name), f"{module} has no {name}"


@pytest.mark.parametrize("text", blocks("yaml"))
def test_yaml_configs_load(text: str) -> None:
    raw = yaml.safe_load(text)
    if "model" in raw:
        load_config(raw)


@pytest.mark.parametrize("line", command_lines())
def test_command_lines_are_understood(line: str) -> None:
    arguments = shlex.split(line, comments=True)[1:]
    group: Any = typer.main.get_command(app)
    context = typer.Context(group, info_name="fulltune")
    verb = group.get_command(context, arguments[0])
    assert verb is not None, f"there is no verb {arguments[0]}"
    verb.make_context(arguments[0], arguments[1:], parent=context)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_recipes_load_and_name_what_exists(recipe: Path) -> None:
    config = load_config(recipe)
    assert config.task in plugins.names("task")
    assert config.method in plugins.names("method")
