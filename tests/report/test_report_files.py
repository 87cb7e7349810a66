from __future__ import annotations

import errno
import json
import tracemalloc
from pathlib import Path

import pytest
import samples

from fulltune.errors import StoreError
from fulltune.records.run import Prediction
from fulltune.report import render, write_report
from fulltune.runtime.json_lines import Lines


@pytest.fixture
def run(tmp_path: Path) -> Path:
    sample = samples.rejected()
    folder = sample.write(tmp_path / "runs" / "run")
    (folder / "audit.json").write_text(json.dumps(sample.audit), encoding="utf-8")
    return folder


def test_the_file_is_the_page_of_the_run_folder(run: Path) -> None:
    sample = samples.rejected()
    path = write_report(run)

    assert path == run / "report.html"
    steps = ("cd ../..", "fulltune run runs/run/config.yaml")
    expected = render(sample.record, sample.steps, sample.predictions, sample.audit, reproduce=steps)
    assert path.read_text(encoding="utf-8") == expected


def test_an_old_report_is_replaced_without_leftovers(run: Path) -> None:
    before = {path.name for path in run.iterdir()}
    (run / "report.html").write_text("old", encoding="utf-8")
    write_report(run)

    assert (run / "report.html").read_text(encoding="utf-8") != "old"
    assert {path.name for path in run.iterdir()} == before | {"report.html"}


def test_a_failed_write_leaves_the_old_report(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (run / "report.html").write_text("old", encoding="utf-8")
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(StoreError, match=r"No space left on device.*[Ff]ree some space"):
        write_report(run)

    assert (run / "report.html").read_text(encoding="utf-8") == "old"
    assert not list(run.glob(".report*"))


@pytest.mark.parametrize("name", ["steps.jsonl", "predictions.jsonl", "audit.json"])
def test_every_file_but_the_record_may_be_missing(run: Path, name: str) -> None:
    (run / name).unlink()

    assert "<h1>" in write_report(run).read_text(encoding="utf-8")


def test_a_missing_record_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no record\.json"):
        write_report(tmp_path)


def test_a_damaged_line_is_named(run: Path) -> None:
    with (run / "predictions.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"system": "tuned", "id": 5}\n')

    with pytest.raises(StoreError, match=r"predictions\.jsonl:1201: the line does not match its schema \(id: .*\)"):
        write_report(run)


def test_a_line_that_is_not_utf8_is_named(run: Path) -> None:
    (run / "steps.jsonl").write_bytes(b'\n{"step": "\xff"}\n')

    with pytest.raises(StoreError, match=r"steps\.jsonl:2: .*restore the file"):
        write_report(run)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not valid JSON: an unexpected end of the text"),
        ("[" * 100_000, "it is nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "a number has too many digits"),
    ],
    ids=["cut off", "nested", "digits"],
)
@pytest.mark.parametrize("name", ["audit", "record"])
def test_a_damaged_file_is_named_with_the_reason(name: str, content: str, reason: str, run: Path) -> None:
    (run / f"{name}.json").write_text(content, encoding="utf-8")

    with pytest.raises(StoreError, match=rf"{name}\.json: the {name} cannot be read \({reason}"):
        write_report(run)


def test_a_bare_list_of_findings_is_an_audit(run: Path) -> None:
    (run / "audit.json").write_text('["three odd rows"]', encoding="utf-8")

    assert "three odd rows" in write_report(run).read_text(encoding="utf-8")


def test_a_line_cut_off_by_a_crash_is_skipped(run: Path) -> None:
    whole = len(list(Lines(run / "predictions.jsonl", Prediction)))
    with (run / "predictions.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"system": "tuned", "id": "te')

    assert len(list(Lines(run / "predictions.jsonl", Prediction))) == whole == 1200
    write_report(run)


def test_long_texts_need_no_memory(tmp_path: Path) -> None:
    sample = samples.classification()
    folder = samples.Sample(sample.record, [], []).write(tmp_path / "run")
    with (folder / "predictions.jsonl").open("w", encoding="utf-8") as file:
        for row in sample.predictions:
            file.write(row.model_copy(update={"input": row.input * 80}).model_dump_json() + "\n")
    size = (folder / "predictions.jsonl").stat().st_size
    write_report(folder)

    tracemalloc.start()
    write_report(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert size > 10_000_000
    assert peak < size / 3
