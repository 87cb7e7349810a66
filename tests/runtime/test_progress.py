"""Progress stays on its stream, is bounded without a terminal, and silent on request."""

from __future__ import annotations

import io
import sys
import time
from types import ModuleType, SimpleNamespace

import pytest
from rich.cells import cell_len

from fulltune.runtime.progress import (
    LOG_LINES,
    BarProgress,
    LogProgress,
    NullProgress,
    Progress,
    open_progress,
    progress_of,
    stage_line,
)


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
    written = stream.getvalue().splitlines()
    early = [line for line in written[1:] if int(line.split()[1].partition("/")[0]) < total // (LOG_LINES + 1)]
    lines = [line for line in written if line not in early]
    assert len(early) <= 12  # each after twice the time
    assert lines[0].startswith(f"train: 0/{total} step{'s' * (total != 1)}")
    assert lines[-1].startswith(f"train: {total}/{total} step{'s' * (total != 1)}")
    assert all("loss 1.23" in line for line in lines[1:-1])
    assert len(lines) == min(total - 1, LOG_LINES) + 2


def test_a_slow_stage_soon_logs_how_long_it_will_take(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: seconds)
    stream = io.StringIO()
    with open_progress(stream=stream).stage("train", total=405, unit="step") as bar:
        for _ in range(46):
            seconds += 16.0
            bar.advance()
    assert stream.getvalue().splitlines()[1:] == [
        "train: 2/405 steps, 32 s",  # too few to estimate from
        "train: 4/405 steps, 64 s",
        "train: 8/405 steps, 128 s, about 106 min left",
        "train: 15/405 steps, 240 s, about 104 min left",
        "train: 30/405 steps, 480 s, about 100 min left",
        "train: 45/405 steps, 720 s, about 96 min left",
        "train: 46/405 steps, 736 s, about 96 min left, done",
    ]


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


def test_an_ended_stage_is_not_drawn_again() -> None:
    stream = Terminal()
    progress = open_progress(stream=stream)
    with progress.stage("first", total=1) as bar:
        bar.advance()
    stream.truncate(0)
    with progress.stage("second", total=1) as bar:
        bar.advance()
    assert "second" in stream.getvalue()
    assert "first" not in stream.getvalue()


NAMES = ["tuned: general text (en)", "tuned: general text (ru)", "trial 3: train.learning_rate=0.0003, train.epochs=2"]


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_a_line_fits_with_its_count_and_names_stay_different(width: int) -> None:
    lines = [stage_line(name, "120/1,200", ["1:02", "9:18 left"], "loss 1.2345", width) for name in [*NAMES, "文" * 50]]
    assert max(map(cell_len, lines)) <= width
    assert all("120/1,200" in line for line in lines)
    assert len({line.partition("120/1,200")[0] for line in lines}) == len(lines)
    assert ("loss 1.2345" in lines[0]) == (width >= 80)


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(open_progress(stream=Terminal()), LogProgress)


@pytest.mark.parametrize("progress", [NullProgress(), Progress.quiet(), open_progress(quiet=True)])
def test_quiet_writes_nothing(progress: Progress, capfd: pytest.CaptureFixture[str]) -> None:
    with progress.stage("train", total=3) as bar:
        bar.advance(note="x")
    progress.note("y")
    assert capfd.readouterr() == ("", "")


def test_default_stream_is_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    open_progress().note("hello")
    assert capsys.readouterr() == ("", "hello\n")


class Cell:
    """The output of a notebook cell: lines by id, as ``IPython.display.display`` writes them."""

    def __init__(self) -> None:
        self.lines = list[str]()
        self.updates = 0

    def __call__(self, data: dict[str, str], *, raw: bool, display_id: bool | None = None) -> Handle:
        assert raw
        self.lines.append(data["text/plain"])
        return Handle(self, len(self.lines) - 1)


class Handle:
    def __init__(self, cell: Cell, line: int) -> None:
        self.cell = cell
        self.line = line

    def update(self, data: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.cell.lines[self.line] = data["text/plain"]
        self.cell.updates += 1


def in_notebook(monkeypatch: pytest.MonkeyPatch, cell: Cell, shell: object) -> None:
    ipython, display = ModuleType("IPython"), ModuleType("IPython.display")
    ipython.get_ipython = lambda: shell  # type: ignore[attr-defined]
    display.display = cell  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)


def test_a_notebook_has_one_line_per_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell()
    in_notebook(monkeypatch, cell, SimpleNamespace(kernel=object()))
    monkeypatch.setattr(time, "monotonic", lambda: 7.0)
    progress = progress_of(None)
    with progress.stage("train", total=900, unit="step") as bar:
        for step in range(900):
            bar.advance(note=f"loss {step}")
    progress.note("kept step 300")
    with pytest.raises(ValueError, match="boom"), progress.stage("evaluate"):
        raise ValueError("boom")
    assert cell.lines == [
        "train: 900/900 steps, 0 s, loss 899, done",
        "kept step 300",
        "evaluate: 0 s, interrupted",
    ]
    assert cell.updates == 2  # the end of each stage: no time passed in between


def test_lines_of_a_notebook_are_updated_twice_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell()
    in_notebook(monkeypatch, cell, SimpleNamespace(kernel=object()))
    clock = iter(range(10_000))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock) * 0.01)
    with progress_of(None).stage("train", total=2000, unit="step") as bar:
        for _ in range(2000):
            bar.advance()
    assert 10 <= cell.updates <= 60


def test_the_usual_progress_depends_on_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert isinstance(progress_of(None), NullProgress)
    assert isinstance(progress_of(True), LogProgress)
    assert isinstance(progress_of(False), NullProgress)
    chosen = LogProgress(io.StringIO())
    assert progress_of(chosen) is chosen
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert isinstance(progress_of(None), BarProgress)
    assert isinstance(progress_of(False), NullProgress)
    # IPython on a terminal has no kernel that shows lines.
    in_notebook(monkeypatch, Cell(), SimpleNamespace())
    assert isinstance(progress_of(None), BarProgress)
    monkeypatch.setattr("fulltune.runtime.progress.distributed.is_main", lambda: False)
    assert isinstance(progress_of(chosen), NullProgress)
