"""The page that explains reports: its blocks run on a finished run, and it explains what reports have."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import samples
from typer.testing import CliRunner

from fulltune.cli.main import app
from fulltune.report import tiles, write_report

PAGE = Path(__file__).parents[2] / "docs" / "report.md"
TEXT = PAGE.read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of one of two runs, in a working directory with them alone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clauses.jsonl").touch()
    for run_id in ("20250302-090000-clauses", "20250301-101530-clauses"):
        sample = samples.classification(run_id=run_id)
        path = sample.write(tmp_path / "runs" / run_id)
        (path / "status.json").write_text('{"state": "finished"}')
        (path / "config.yaml").write_text("model: m\ntask: classification\ndata: {train: clauses.jsonl}\n")
    return path


def test_the_python_block_reads_a_record(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [block] = blocks("python")
    exec(compile(block, "docs/report.md", "exec"), {})

    assert capsys.readouterr().out.startswith("accepted Improved: macro-F1")
    assert folder.name in block


def test_the_commands_run(folder: Path) -> None:
    [block] = blocks("bash")
    words = shlex.split(block)
    result = CliRunner().invoke(app, words[1:])

    assert words[0] == "fulltune"
    assert result.exit_code == 0, result.output
    assert folder.name in result.output


def test_the_commands_that_repeat_a_run_are_those_of_its_report(folder: Path) -> None:
    [block] = blocks("text")
    page = write_report(folder).read_text(encoding="utf-8")

    assert f'<pre tabindex="0"><code>{block.strip()}</code></pre>' in page


def test_every_section_and_outcome_is_explained(folder: Path) -> None:
    page = write_report(folder).read_text(encoding="utf-8")
    titles = re.findall(r"<h2>(.*?)</h2>", page)

    assert [title for title in titles if title.lower() not in TEXT.lower()] == []
    assert [outcome for outcome in tiles.SIGNS if f"`{outcome}`" not in TEXT] == []
