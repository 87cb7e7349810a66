"""The package in ``examples/`` is installed by pip, and its task then runs like a built-in one."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import fakes
import pytest

import fulltune
from fulltune.errors import ConfigError
from fulltune.runtime import plugins

PACKAGE = Path(__file__).parents[2] / "examples" / "fulltune-translation"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "source", tmp_path / "site"
    shutil.copytree(PACKAGE, source)  # the build writes into the source folder
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(source)], check=True)
    monkeypatch.syspath_prepend(str(target))
    importlib.invalidate_caches()


@pytest.mark.usefixtures("installed")
def test_an_external_task_runs_end_to_end(tmp_path: Path) -> None:
    assert "translation" in plugins.names("task")
    rows = [
        {"source": f"the cat has {n} films", "target": f"die Katze hat {n} Filme", "field": ("law", "zoo")[n % 2]}
        for n in range(24)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    record = fulltune.run(
        model=str(fakes.save("t5", tmp_path / "base")),
        task="translation",
        data={"train": str(path), "eval": 0.25, "columns": {"domain": "field"}},
        train={"max_steps": 2, "batch_size": 4},
        evaluation={"max_new_tokens": 4},
        out=tmp_path / "runs",
    )
    assert record.task == "translation"
    assert record.metric == "chrf"
    assert 0 <= record.scores["tuned"]["untranslated"].value <= 1
    report = (tmp_path / "runs" / record.run_id / "report.html").read_text(encoding="utf-8")
    assert "untranslated" in report.lower()
    predictions = [json.loads(line) for line in (record.folder / "predictions.jsonl").read_text().splitlines()]
    assert {one["input"][:5] for one in predictions} == {"[law]", "[zoo]"}
    model = fulltune.load(record)
    with_field = {"source": "the cat has 3 films", "field": "law"}
    tuned = {one["input"]: one["output"] for one in predictions if one["system"] == "tuned"}
    known = next(iter(tuned))
    assert model({"source": known[6:], "field": known[1:4]})["text"] == tuned[known]
    assert model(with_field) == model({**with_field, "target": "ignored"})
    with pytest.raises(ConfigError, match=r"translation reads no column with the role 'domian'.*'domain'"):
        fulltune.plan(record.folder / "config.yaml", data={"columns": {"domian": "field"}})
