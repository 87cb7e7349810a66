"""Imports go one way, and light modules stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fulltune

SOURCE = Path(__file__).parents[1] / "src" / "fulltune"

#: From the bottom up: a module imports from its own layer and from those before it. What a task and a method
#: are (`tasks.base`, `methods.base`) is known below the tasks and methods themselves.
LAYERS = (
    (
        "",
        "errors",
        "json_syntax",
        "validation",
        "paths",
        "terminal",
        "machine",
        "progress",
        "plugins",
        "distributed",
        "log_once",
    ),
    ("records", "method_records", "engine_memory"),
    ("class_labels", "config_file", "rows_file", "config"),
    ("data", "metrics"),
    ("compare", "method_choice", "store"),
    (
        *(
            "tasks.base",
            "methods.base",
            "model",
            "models",
            "inference",
            "tokenizing",
            "auto_tokenizer",
            "scoring",
            "prefix",
            "padded",
        ),
        *("fast_paths", "teacher_forcing", "greedy"),
        *("adapters", "kernels", "training", "guards", "starters"),
    ),
    ("methods",),
    ("tasks",),
    ("evaluate", "baselines", "encoding", "dataset", "prompt_use", "retention"),
    ("plan", "memory_parts"),
    ("report",),
    (
        "recording",
        "launch",
        "model_shapes",
        "finishing",
        "stages",
        "forecast",
        "resuming",
        "more_data",
        "trials",
        "search",
    ),
    ("pipeline", "interpolation", "averaging", "asking", "export", "lr_find", "resume_check"),
    ("sweep", "arm", "method_comparison"),
    ("demo", "doctor", "render", "render_answers", "render_registry"),
    ("console",),
    ("cli_models", "cli_launch"),
    ("cli",),
    ("__main__",),
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}

#: Modules that a command such as `fulltune compare` or `fulltune --help` loads.
LIGHT = ("errors", "records", "config", "data", "metrics", "compare", "store", "report", "progress", "plan", "plugins")
LIGHT += ("machine", "doctor", "render", "render_answers", "render_registry", "demo", "console", "cli_models", "cli")
LIGHT += (
    "distributed",
    "engine_memory",
    "launch",
    "cli_launch",
    "class_labels",
    "config_file",
    "json_syntax",
    "validation",
    "rows_file",
    "paths",
    "terminal",
)
HEAVY = ("torch", "transformers", "datasets", "sklearn", "scipy", "pandas", "matplotlib")


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def dotted(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer(module: str) -> str:
    """``fulltune.data.load`` → ``data``; the package itself is the empty name."""
    inner = module.partition(".")[2]
    return inner if inner in RANK else inner.partition(".")[0]


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import of ours, wherever it stands in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            whole_package = node.module == "fulltune"
            names = [f"fulltune.{alias.name}" for alias in node.names] if whole_package else [node.module]
            yield from ((node.lineno, name) for name in names)


def ours(path: Path) -> Iterator[tuple[int, str, str]]:
    for line, name in imported(path):
        if name == "fulltune" or name.startswith("fulltune."):
            target = layer(name)
            yield line, name, target if target in RANK else ""


def test_every_module_has_a_layer() -> None:
    names = {layer(dotted(path)) for path in modules()}
    assert len(names) > 12
    assert sorted(names - RANK.keys()) == [], "name the layer of a new module in LAYERS"


def test_imports_go_one_way() -> None:
    upward, seen = [], 0
    for path in modules():
        own = layer(dotted(path))
        for line, name, target in ours(path):
            seen += 1
            if own and RANK[target] > RANK[own]:
                upward.append(f"{path.relative_to(SOURCE.parents[1])}:{line}: {own} imports {name}")
    assert seen > 50
    assert upward == []


def test_tasks_and_methods_never_import_each_other() -> None:
    crossing = [
        f"{path.relative_to(SOURCE.parents[1])}:{line}: imports {name}"
        for path in modules()
        for line, name, target in ours(path)
        if {layer(dotted(path)), target} == {"tasks", "methods"}
    ]
    assert crossing == []


def test_imports_are_absolute() -> None:
    relative = [
        f"{path.relative_to(SOURCE.parents[1])}:{node.lineno}"
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


def loaded_by(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after running the code."""
    code += "\nimport sys\nprint(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("name", LIGHT)
def test_light_modules_load_nothing_heavy(name: str) -> None:
    below = [dotted(path) for path in modules() if layer(dotted(path)) == name]
    assert below, f"there is no module {name}"
    loaded = loaded_by("\n".join(f"import {module}" for module in below))
    assert "fulltune" in loaded
    assert loaded & set(HEAVY) == set()


def test_importing_the_package_loads_next_to_nothing() -> None:
    assert loaded_by("import fulltune; fulltune.__version__") & {*HEAVY, "pydantic", "typer", "rich", "numpy"} == set()


def test_help_loads_nothing_heavy() -> None:
    loaded = loaded_by(
        "from typer.testing import CliRunner; from fulltune.cli import app; CliRunner().invoke(app, ['--help'])"
    )
    assert "typer" in loaded
    assert loaded & {*HEAVY, "pydantic", "numpy"} == set()


def test_every_export_is_there_and_named_in_dir() -> None:
    assert len(fulltune.__all__) > 15
    for name in fulltune.__all__:
        assert getattr(fulltune, name) is not None
        assert name in dir(fulltune)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        fulltune.nothing  # noqa: B018


@pytest.mark.parametrize("name", ["compare", "evaluate"])
def test_a_function_is_not_hidden_by_the_module_of_its_name(name: str) -> None:
    code = f"import fulltune.{name}, sys, types, fulltune; assert callable(fulltune.{name}), fulltune.{name}\n"
    code += f"assert isinstance(sys.modules['fulltune.{name}'], types.ModuleType)"
    assert "fulltune" in loaded_by(code)
