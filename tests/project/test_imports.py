"""Light modules import nothing heavy, and the public names exist; `make check` enforces the layers (import-linter)."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fulltune

SOURCE = Path(__file__).parents[2] / "src" / "fulltune"

#: Modules that a command such as `fulltune compare` or `fulltune --help` loads.
LIGHT = ("config", "cli", "data", "errors", "metrics", "records", "report", "store")
#: Light modules of packages that are not light otherwise.
LIGHT_MODULES = (
    "evaluation.prediction_files",
    "evaluation.verdict",
    "experiments.methods.recommend",
    "pipeline.planning.engine_memory",
    "pipeline.planning.plan",
    "pipeline.proposal",
    "runtime.class_labels",
    "runtime.config_file",
    "runtime.distributed",
    "runtime.launch",
    "runtime.machine",
    "runtime.paths",
    "runtime.plugins",
    "runtime.progress",
    "runtime.rows_file",
    "runtime.terminal",
)
#: What a config and its data are checked with, before the model is loaded: torch is imported after these.
BEFORE_THE_MODEL = (
    "evaluation.retention_sets",
    "experiments.methods.comparison",
    "experiments.methods.worker",
    "experiments.search",
    "experiments.sweep",
    "models.sources",
    "models.token_ids",
    "pipeline.job",
    "pipeline.model_loading",
    "pipeline.resume",
    "evaluation.prompt_use",
    "pipeline.run",
    "tasks.causal_lm",
    "tasks.classification",
    "tasks.dataset",
    "tasks.encoding",
    "tasks.prompts",
    "tasks.seq2seq",
    "tasks.text2sql.task",
    "training.engine_check",
    "training.methods.bitfit",
    "training.methods.full",
    "training.methods.linear_probe",
    "training.methods.prompt_tuning",
    "training.methods.qlora",
    "training.option_check",
)
HEAVY = (
    *("accelerate", "bitsandbytes", "datasets", "matplotlib", "pandas", "peft"),
    *("scipy", "sklearn", "torch", "transformers"),
)


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def dotted(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_imports_are_absolute() -> None:
    relative = [
        f"{path.relative_to(SOURCE.parents[1])}:{node.lineno}"
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


def loaded_by(code: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded after running the code."""
    code += "\nimport sys\nprint(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def below(name: str) -> list[str]:
    """Return a module of fulltune and those in it."""
    own = f"fulltune.{name}"
    found = [module for module in map(dotted, modules()) if module == own or module.startswith(f"{own}.")]
    assert found, f"there is no module {name}"
    return found


def test_all_light_modules_together_load_nothing_heavy() -> None:
    names = [module for name in (*LIGHT, *LIGHT_MODULES) for module in below(name)]
    loaded = loaded_by("\n".join(f"import {name}" for name in names))
    assert "fulltune" in loaded
    assert loaded & set(HEAVY) == set()


@pytest.mark.slow  # all together in make test
@pytest.mark.parametrize("name", [*LIGHT, *LIGHT_MODULES])
def test_light_modules_load_nothing_heavy(name: str) -> None:
    loaded = loaded_by("\n".join(f"import {module}" for module in below(name)))
    assert "fulltune" in loaded
    assert loaded & set(HEAVY) == set()


def test_what_is_checked_before_the_model_is_loaded_needs_nothing_heavy() -> None:
    loaded = loaded_by("\n".join(f"import fulltune.{name}" for name in BEFORE_THE_MODEL))
    assert loaded & set(HEAVY) == set()


def test_importing_the_package_loads_almost_nothing() -> None:
    assert loaded_by("import fulltune; fulltune.__version__") & {*HEAVY, "pydantic", "typer", "rich", "numpy"} == set()


def test_help_loads_nothing_heavy() -> None:
    loaded = loaded_by(
        "from typer.testing import CliRunner; from fulltune.cli.main import app; CliRunner().invoke(app, ['--help'])"
    )
    assert "typer" in loaded
    assert loaded & {*HEAVY, "pydantic", "numpy"} == set()


def test_every_export_exists_and_is_named_in_dir() -> None:
    assert len(fulltune.__all__) > 15
    for name in fulltune.__all__:
        assert getattr(fulltune, name) is not None
        assert name in dir(fulltune)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        fulltune.nothing  # noqa: B018
