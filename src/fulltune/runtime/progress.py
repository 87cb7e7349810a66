"""Show the progress of long stages: bars on a terminal, a line per stage in a notebook, a few lines elsewhere.

    with progress.stage("train", total=300, unit="step") as bar:
        bar.advance(note="loss 1.23")

Everything but the lines of a notebook is written to stderr, so that stdout contains only results.
"""

from __future__ import annotations

import importlib
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from fulltune.runtime import distributed
from fulltune.runtime.terminal import escape_controls, plain_console, write_line

#: Maximum number of lines per stage, besides the first and the last.
LOG_LINES = 8

#: Minimum seconds between two lines.
LOG_SECONDS = 2.0

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
    """Return the progress for a stream: bars on a terminal, lines elsewhere.

    Args:
        quiet: Print nothing.
        stream: Default: stderr.
    """
    stream = stream or sys.stderr
    if quiet or stream is None:
        return NullProgress()
    return BarProgress(stream) if stream.isatty() else LogProgress(stream)


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
    """A bar that prints a line at equal parts of the total; if that is unknown, each time the elapsed time doubles."""

    def __init__(self, name: str, total: int | None, unit: str, stream: TextIO) -> None:
        self.name = name
        self.total = total
        self.unit = unit
        self.stream = stream
        self.done = 0
        self.lines = 0
        self.wait = 10.0
        self.started = time.monotonic()
        self.last_line = self.started

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count
        if self.lines < LOG_LINES and self._due():
            self.lines += 1
            self.line(note)

    def _due(self) -> bool:
        if self.total:
            due = self.lines < self.done * (LOG_LINES + 1) // self.total and self.done < self.total
            return due and time.monotonic() - self.last_line >= LOG_SECONDS
        if time.monotonic() - self.started < self.wait:
            return False
        self.wait *= 2
        return True

    def line(self, note: str = "") -> None:
        self.last_line = time.monotonic()
        of = f"/{self.total}" if self.total else ""
        parts = [f"{self.name}: {self.done}{of} {self.unit}s", f"{self.last_line - self.started:.0f} s", note]
        write_line(self.stream, ", ".join(part for part in parts if part))


class LogProgress(Progress):
    """A progress of plain lines, at most :data:`LOG_LINES` + 2 per stage."""

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


class BarProgress(Progress):
    """A progress of :mod:`rich` bars; nested stages share one live display."""

    def __init__(self, stream: TextIO) -> None:
        self.console = plain_console(stream)
        self.depth = 0
        self.bars = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self.console,
        )

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "row") -> Iterator[Bar]:
        if self.depth == 0:
            self.bars.start()
        self.depth += 1
        task = self.bars.add_task(escape_controls(name), total=total, note=f"{unit}s")
        try:
            yield _RichBar(self.bars, task)
        finally:
            self.depth -= 1
            self.bars.stop_task(task)
            if self.depth == 0:
                self.bars.stop()

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
        counted = f"{self.done}{of} {self.unit}s" if self.done or self.total else ""
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
