"""Progress stays on its stream, is bounded without a terminal, and silent on request."""

from __future__ import annotations

import io
import time

import pytest

from fulltune.runtime.progress import LOG_LINES, BarProgress, LogProgress, NullProgress, Progress, open_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("total", [1, 2, 7, 9, 10, 1000, 12345])
def test_log_lines_are_few_at_any_total(total: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000_000, 10))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    stream = io.StringIO()
    with open_progress(stream=stream).stage("train", total=total, unit="step") as bar:
        for _ in range(total):
            bar.advance(note="loss 1.23")
    lines = stream.getvalue().splitlines()
    assert 2 <= len(lines) <= LOG_LINES + 2
    assert lines[0].startswith(f"train: 0/{total} steps")
    assert lines[-1].startswith(f"train: {total}/{total} steps")
    assert all("loss 1.23" in line for line in lines[1:-1])
    assert len(lines) == min(total - 1, LOG_LINES) + 2


def test_a_quick_stage_logs_only_its_start_and_end() -> None:
    stream = io.StringIO()
    with open_progress(stream=stream).stage("tfidf", total=450) as bar:
        for _ in range(450):
            bar.advance()
    assert [line.rpartition(", ")[2] for line in stream.getvalue().splitlines()] == ["started", "done"]


def test_an_unknown_total_is_bounded_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000_000))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    stream = io.StringIO()
    with open_progress(stream=stream).stage("load") as bar:
        for _ in range(20_000):
            bar.advance()
    lines = stream.getvalue().splitlines()
    assert len(lines) == LOG_LINES + 2
    assert lines[-1].startswith("load: 20000 rows")


def test_a_failed_stage_is_not_reported_as_done() -> None:
    stream = io.StringIO()
    with pytest.raises(ValueError, match="boom"), LogProgress(stream).stage("train", total=2):
        raise ValueError("boom")
    assert "done" not in stream.getvalue()


def test_bars_on_a_terminal_nest_and_show_notes_verbatim() -> None:
    stream = Terminal()
    progress = open_progress(stream=stream)
    assert isinstance(progress, BarProgress)
    with progress.stage("train", total=2, unit="step") as outer:
        outer.advance(note="loss [1.23]")
        with progress.stage("evaluate", total=1) as inner:
            inner.advance()
        progress.note("a [note] in between")
        outer.advance()
    text = stream.getvalue()
    assert all(part in text for part in ("train", "evaluate", "loss [1.23]", "a [note] in between", "2/2"))
    with progress.stage("again", total=1) as bar:
        bar.advance()
    assert "again" in stream.getvalue()


@pytest.mark.parametrize("progress", [NullProgress(), Progress.quiet(), open_progress(quiet=True)])
def test_quiet_writes_nothing(progress: Progress, capfd: pytest.CaptureFixture[str]) -> None:
    with progress.stage("train", total=3) as bar:
        bar.advance(note="x")
    progress.note("y")
    assert capfd.readouterr() == ("", "")


def test_default_stream_is_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    open_progress().note("hello")
    assert capsys.readouterr() == ("", "hello\n")
