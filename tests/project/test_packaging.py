"""The installed package: every module and data file, the version, the pins and the metadata."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import fulltune

#: Packages that always come with a declared one, and packages of extras.
CAME_ALONG = {"pydantic_core", "typing_extensions", "tokenizers", "huggingface_hub", "pyarrow", "scipy"}
OPTIONAL = {
    *("fastapi", "gguf", "onnx", "onnxruntime", "openpyxl", "optuna", "prometheus_client", "sentencepiece"),
    *("starlette", "uvicorn"),
}

ROOT = Path(__file__).parents[2]
tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")


@pytest.fixture(scope="module")
def project() -> dict[str, object]:
    found: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


def requirement_names(lines: list[str]) -> set[str]:
    return {re.match(r"[\w.-]+", line)[0].lower().replace("_", "-") for line in lines}  # type: ignore[index]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {name.lower().replace("_", "-"): version for name, version in pairs}


def test_every_requirement_is_pinned_exactly(project: dict[str, object]) -> None:
    extras: dict[str, list[str]] = project["optional-dependencies"]  # type: ignore[assignment]
    core: list[str] = project["dependencies"]  # type: ignore[assignment]
    wanted = requirement_names([*core, *(line for lines in extras.values() for line in lines)])
    assert len(wanted) > 20
    assert sorted(wanted - pins().keys()) == []
    assert all(re.fullmatch(r"[\w.]+", version) for version in pins().values()), "no local versions such as +cpu"


def test_core_dependencies_have_lower_bounds_only(project: dict[str, object]) -> None:
    core: list[str] = project["dependencies"]  # type: ignore[assignment]
    assert len(core) > 10
    assert all(re.fullmatch(r"[\w.-]+>=[\d.]+", line) for line in core), core


def test_the_core_dependencies_are_what_the_code_imports(project: dict[str, object]) -> None:
    """Every third-party module in the code belongs to a declared package, and every core package is imported."""
    names = {
        "charset-normalizer": "charset_normalizer",
        "rouge-score": "rouge_score",
        "ruamel.yaml": "ruamel",
        "scikit-learn": "sklearn",
    }
    core: list[str] = project["dependencies"]  # type: ignore[assignment]
    declared = {names.get(name, name) for name in requirement_names(core)}
    found = {name for path in (ROOT / "src").rglob("*.py") for name in imported(path)}
    third_party = found - sys.stdlib_module_names - {"fulltune"}
    assert sorted(third_party - declared - CAME_ALONG - OPTIONAL) == []
    assert sorted(declared - found - {"accelerate"}) == [], "declared but never imported"


def imported(path: Path) -> Iterator[str]:
    """Yield the top-level names of all modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def test_nothing_names_a_registry_host_or_a_machine() -> None:
    files = ["pyproject.toml", "constraints.txt", "Makefile", ".ci/run", "CONTRIBUTING.md"]
    text = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in files)
    recipes = [path.read_text(encoding="utf-8") for path in (ROOT / "recipes").rglob("*") if path.is_file()]
    assert [line for recipe in recipes for line in re.findall(r".*(?<![\w/])/work\b.*", recipe)] == []
    assert not re.search(r"https?://|--index-url|--extra-index|--find-links|/home/|/root/|/work/", text)


def test_the_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    code = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    wheel = next(tmp_path.glob("*.whl"))
    assert wheel.name == f"fulltune-{fulltune.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("fulltune/")}
        metadata = archive.read(next(name for name in archive.namelist() if name.endswith("/METADATA"))).decode()
        scripts = archive.read(next(name for name in archive.namelist() if name.endswith("entry_points.txt"))).decode()
    source = {
        str(path.relative_to(ROOT / "src"))
        for path in (ROOT / "src" / "fulltune").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert len(source) > 30
    assert sorted(source - packed) == []
    assert "fulltune/py.typed" in packed
    assert "License-Expression: Apache-2.0" in metadata
    assert "fulltune = fulltune.__main__:main" in scripts
