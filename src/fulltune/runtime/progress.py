"""Show the progress of long stages: bars on a terminal, a line per stage in a notebook, a few lines elsewhere.

    with progress.stage("train", total=300, unit="step") as bar:
        bar.advance(note="loss 1.23")

Everything but the lines of a notebook is written to stderr, so that stdout contains only results.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskID
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.text import Text

from fulltune.runtime import distributed
from fulltune.runtime.terminal import escape_controls, plain_console, write_line

#: Maximum number of lines per stage, besides the first and the last.
LOG_LINES = 8

#: Columns of a bar, and of the terminals that have room for one.
BAR_WIDTH, WIDE = 24, 100

#: Columns up to which the counts of all stages are aligned.
NAME_WIDTH = 52

#: Minimum seconds between two lines.
LOG_SECONDS = 2.0

#: Seconds after which a stage of known length prints a line even if little of it is done; the next after twice that.
LONG_SECONDS = 30.0

#: Minimum seconds between two updates of a line in a notebook.
NOTEBOOK_SECONDS = 0.5


class Bar(ABC):
    """A running stage."""

    @abstractmethod
    def advance(self, count: int = 1, note: str = "") -> None:
        """Report ``count`` more completed units; ``note`` is shown next to the bar until the next one."""


class Progress(ABC):
    """Receiver of progress reports."""

    @abstractmethod
    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "row") -> Iterator[Bar]:
        """Open a stage of ``total`` units (None: unknown); stages may be nested."""

    @abstractmethod
    def note(self, text: str) -> None:
        """Print one line of text above the bars."""

    @staticmethod
    def quiet() -> Progress:
        """Return a progress that prints nothing."""
        return NullProgress()


def open_progress(quiet: bool = False, stream: TextIO | None = None) -> Progress:
    """Return the progress for a stream: one line per stage that is redrawn on a terminal, a few lines elsewhere.

    Args:
        quiet: Print nothing.
        stream: Default: stderr.
    """
    stream = stream or sys.stderr
    if quiet or stream is None:
        return NullProgress()
    can_redraw = stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    return BarProgress(stream) if can_redraw else LogProgress(stream)


def progress_of(progress: Progress | bool | None) -> Progress:
    """Return the progress that a Python function was given, or the usual one.

    Args:
        progress: A progress; None for bars on a terminal, lines in a notebook and nothing elsewhere; True to report
            everywhere; False for nothing. Of several processes, only the main process reports.
    """
    if not distributed.is_main() or progress is False:
        return NullProgress()
    if isinstance(progress, Progress):
        return progress
    display = _notebook_display()
    if display is not None:
        return NotebookProgress(display)
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    return open_progress(quiet=not (progress or is_terminal))


def _notebook_display() -> Callable[..., Any] | None:
    """Return the display function of a notebook; None in any other program, IPython on a terminal included."""
    ipython = sys.modules.get("IPython")
    shell = ipython and ipython.get_ipython()
    if shell is None or not hasattr(shell, "kernel"):
        return None
    display: Callable[..., Any] = importlib.import_module("IPython.display").display
    return display


class _NullBar(Bar):
    def advance(self, count: int = 1, note: str = "") -> None:
        return None


class NullProgress(Progress):
    """A progress that prints nothing."""

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "row") -> Iterator[Bar]:
        yield _NullBar()

    def note(self, text: str) -> None:
        return None


class _LogBar(Bar):
    """A bar that prints a line at equal parts of the total, and before the first of them when the time has doubled.

    If the total is unknown, it prints a line each time the elapsed time doubles.
    """

    def __init__(self, name: str, total: int | None, unit: str, stream: TextIO) -> None:
        self.name = name
        self.total = total
        self.unit = unit
        self.stream = stream
        self.done = 0
        self.lines = 0
        self.wait = LONG_SECONDS if total else 10.0
        self.started = time.monotonic()
        self.last_line = self.started

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count
        now = time.monotonic()
        if self.total and self.done >= self.total:
            return  # the last line is that of the stage
        if self._has_part(now):
            self.lines += 1
            self.wait *= 2
            self.line(note)
        elif now - self.started >= self.wait and not self.lines:
            self.wait *= 2
            self.line(note)

    def _has_part(self, now: float) -> bool:
        """Return True if another part of the total is done; if it is unknown, if the time has doubled."""
        if self.lines >= LOG_LINES or now - self.last_line < LOG_SECONDS:
            return False
        if not self.total:
            return now - self.started >= self.wait
        return self.lines < self.done * (LOG_LINES + 1) // self.total

    def line(self, note: str = "") -> None:
        self.last_line = time.monotonic()
        elapsed = self.last_line - self.started
        of = f"/{self.total}" if self.total else ""
        times = [f"{elapsed:.0f} s"]
        if self.total and _is_measured(self.done, self.total) and elapsed >= LOG_SECONDS:
            times.append(f"about {_rough(elapsed * (self.total - self.done) / self.done)} left")
        parts = [f"{self.name}: {self.done}{of} {_units(self.unit, self.total or self.done)}", *times, note]
        write_line(self.stream, ", ".join(part for part in parts if part))


def _units(unit: str, count: float) -> str:
    return unit if count == 1 else f"{unit}s"


def _is_measured(done: float, total: float) -> bool:
    """Return True if the time left can be estimated: units differ in length, and the first ones load and compile."""
    return max(3.0, min(8.0, total / 20)) <= done < total


def _rough(seconds: float) -> str:
    """Return a duration in seconds, or in minutes if it is long."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


class LogProgress(Progress):
    """A progress of plain lines: :data:`LOG_LINES` per stage, its first and last one, and a few of a long stage."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "row") -> Iterator[Bar]:
        bar = _LogBar(name, total, unit, self.stream)
        bar.line("started")
        yield bar
        bar.line("done")

    def note(self, text: str) -> None:
        write_line(self.stream, text)


class _RichBar(Bar):
    def __init__(self, bars: RichProgress, task: TaskID) -> None:
        self.bars = bars
        self.task = task

    def advance(self, count: int = 1, note: str = "") -> None:
        if note:
            self.bars.update(self.task, advance=count, note=escape_controls(note))
        else:
            self.bars.update(self.task, advance=count)


class _Line(ProgressColumn):
    """The line of a stage, without its bar."""

    def __init__(self, console: Console, reserved: int) -> None:
        super().__init__(Column(no_wrap=True))
        self.console, self.reserved = console, reserved

    def render(self, task: Task) -> Text:
        count = f"{task.completed:,.0f}" + (f"/{task.total:,.0f}" if task.total is not None else "")
        times = [_clock(task.finished_time or task.elapsed)]
        if task.time_remaining is not None and _is_measured(task.completed, task.total or 0):
            times.append(f"{_clock(task.time_remaining)} left")
        note = str(task.fields["note"])
        return Text(stage_line(task.description, count, times, note, self.console.width - self.reserved))


def stage_line(name: str, count: str, times: Sequence[str], note: str, width: int) -> str:
    """Return the line of a stage in at most ``width`` columns.

    The count always stays. If there is no room, the note is left out, then the times, and then the middle of the name:
    names of stages often differ at their end alone.

    Args:
        name: Name of the stage.
        count: Completed units, and their total.
        times: Elapsed and remaining time.
        note: Last note of the stage.
        width: Columns of the terminal.
    """
    for shown in ([count, *times, note], [count, *times], [count, *times[:1]], [count]):
        room = width - sum(cell_len(part) + 2 for part in shown if part)
        if cell_len(name) <= room:
            break
    name = _without_middle(name, max(1, room))
    return "  ".join(filter(None, [name + " " * (min(room, NAME_WIDTH) - cell_len(name)), *shown])).rstrip()


def _without_middle(text: str, width: int) -> str:
    """Return a text in at most ``width`` columns, with a mark in place of its middle."""
    if cell_len(text) <= width:
        return text
    end = set_cell_size(text[::-1], (width - 1) // 2)[::-1]
    return set_cell_size(text, width - 1 - cell_len(end)) + "…" + end


def _clock(seconds: float | None) -> str:
    minutes, rest = divmod(int(seconds or 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class BarProgress(Progress):
    """A progress of :mod:`rich` bars; nested stages share one live display."""

    def __init__(self, stream: TextIO) -> None:
        self.console = plain_console(stream)
        self.depth = 0
        bar = [BarColumn(BAR_WIDTH)] if self.console.width >= WIDE else []
        line = _Line(self.console, reserved=BAR_WIDTH + 1 if bar else 0)
        self.bars = RichProgress(line, *bar, console=self.console)

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "row") -> Iterator[Bar]:
        if self.depth == 0:
            self.bars.start()
        self.depth += 1
        task = self.bars.add_task(escape_controls(name), total=total, note=_units(unit, total or 0))
        try:
            yield _RichBar(self.bars, task)
        finally:
            self.depth -= 1
            self.bars.stop_task(task)
            if self.depth == 0:
                self.bars.stop()
                for ended in self.bars.task_ids:  # its line stays on the screen; the next stage has its own
                    self.bars.remove_task(ended)

    def note(self, text: str) -> None:
        self.console.print(escape_controls(text))


class _NotebookBar(Bar):
    """A line of a notebook that is replaced while the stage runs."""

    def __init__(self, name: str, total: int | None, unit: str, display: Callable[..., Any]) -> None:
        self.name = name
        self.total = total
        self.unit = unit
        self.done = 0
        self.note = ""
        self.started = time.monotonic()
        self.last_line = self.started
        self.handle = display({"text/plain": self._text()}, raw=True, display_id=True)

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count
        self.note = note or self.note
        if time.monotonic() - self.last_line >= NOTEBOOK_SECONDS:
            self.show()

    def show(self, ending: str = "") -> None:
        """Replace the line."""
        self.last_line = time.monotonic()
        self.handle.update({"text/plain": self._text(ending)}, raw=True)

    def _text(self, ending: str = "") -> str:
        of = f"/{self.total}" if self.total else ""
        counted = f"{self.done}{of} {_units(self.unit, self.total or self.done)}" if self.done or self.total else ""
        parts = [counted, f"{time.monotonic() - self.started:.0f} s", self.note, ending]
        return f"{self.name}: " + ", ".join(part for part in parts if part)


class NotebookProgress(Progress):
    """A progress of one line per stage in the output of a notebook cell.

    Args:
        display: ``IPython.display.display``.
    """

    def __init__(self, display: Callable[..., Any]) -> None:
        self.display = display

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "row") -> Iterator[Bar]:
        bar = _NotebookBar(name, total, unit, self.display)
        try:
            yield bar
        except BaseException:
            bar.show("interrupted")
            raise
        bar.show("done")

    def note(self, text: str) -> None:
        self.display({"text/plain": text}, raw=True)
