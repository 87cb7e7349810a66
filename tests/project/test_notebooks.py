"""The tutorial notebooks: small files, and every cell runs on reduced data without a network."""

from __future__ import annotations

import ast
import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest

import fulltune

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))

#: Values of the cell with the tag ``parameters``.
SMALL = {"STEPS": 1, "ROWS": 150}


def cells(path: Path, kind: str = "code") -> list[dict[str, Any]]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def is_parameters(cell: dict[str, Any]) -> bool:
    return "parameters" in cell["metadata"].get("tags", ())


def execute(source: str, names: dict[str, Any]) -> Any:
    """Execute a cell, and return the value of its last line if that is an expression."""
    tree = ast.parse(source)
    last = tree.body[-1]
    if not isinstance(last, ast.Expr):
        exec(compile(tree, "cell", "exec"), names)
        return None
    exec(compile(ast.Module(tree.body[:-1], []), "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def test_there_is_a_notebook_for_each_kind_of_model() -> None:
    text = "".join("".join(cell["source"]) for path in NOTEBOOKS for cell in cells(path))
    assert {"starter:bert", "starter:gpt2", "starter:t5"} == set(re.findall(r"starter:\w+", text))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_says_nothing_of_a_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    notebook = json.loads(text)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    assert len(text) < 60_000
    assert len(cells(path)) <= 10
    assert not re.search(r"/home/|/root/|/tmp/|/work/|C:\\\\", text)
    assert [is_parameters(cell) for cell in cells(path)].count(True) == 1
    assert cells(path, "markdown")[0]["source"][0].startswith("# ")
    assert all(output["output_type"] != "error" for cell in cells(path) for output in cell["outputs"])


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore:.*had no room for all", "ignore:.*script", "ignore:the label")
def test_every_cell_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", closed)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    shown = list[str]()
    for cell in cells(path):
        value = execute("".join(cell["source"]), names)
        if is_parameters(cell):
            assert set(SMALL) <= set(names)
            names.update(SMALL)
        if hasattr(value, "_repr_html_"):
            shown.append(str(value._repr_html_()))
    assert shown
    assert isinstance(names["record"], fulltune.Record)
    assert names["record"].report.is_file()
    assert any(names["record"].run_id in html for html in shown)
