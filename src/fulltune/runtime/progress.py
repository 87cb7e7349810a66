"""Progress of long stages: bars on a terminal, a few log lines where there is none, silence when asked.

    with progress.stage("train", total=300, unit="step") as bar:
        bar.advance(note="loss 1.23")

Everything goes to stderr, so stdout stays free for results.
"""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from fulltune.runtime.terminal import plain_console, visible, write_line

#: Most log lines that one stage writes between its first and its last, and the seconds between two of them at least.
LOG_LINES = 8
LOG_SECONDS = 2.0


class Bar(ABC):
    """A running stage."""

    @abstractmethod
    def advance(self, count: int = 1, note: str = "") -> None:
        """Say that ``count`` more units are done; ``note`` stands beside the bar until the next one."""


class Progress(ABC):
    """Where stages report. Library code takes one and defaults to :class:`NullProgress`."""

    @abstractmethod
    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "row") -> Iterator[Bar]:
        """A stage of ``total`` units (None: unknown); stages may be nested."""

    @abstractmethod
    def note(self, text: str) -> None:
        """One line for the reader, beside the bars."""

    @staticmethod
    def quiet() -> Progress:
        """A progress that says nothing."""
        return NullProgress()


def open_progress(quiet: bool = False, stream: TextIO | None = None) -> Progress:
    """The progress that suits the stream (stderr unless given): bars on a terminal, log lines elsewhere."""
    stream = stream or sys.stderr
    if quiet or stream is None:
        return NullProgress()
    return BarProgress(stream) if stream.isatty() else LogProgress(stream)


class _NullBar(Bar):
    def advance(self, count: int = 1, note: str = "") -> None:
        return None


class NullProgress(Progress):
    """Says nothing."""

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "row") -> Iterator[Bar]:
        yield _NullBar()

    def note(self, text: str) -> None:
        return None


class _LogBar(Bar):
    """Writes a line at each equal part of the total; where that is unknown, whenever the time gone by has doubled."""

    def __init__(self, name: str, total: int | None, unit: str, stream: TextIO) -> None:
        self.name, self.total, self.unit, self.stream = name, total, unit, stream
        self.done, self.lines, self.wait = 0, 0, 10.0
        self.started = self.spoken = time.monotonic()

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count
        if self.lines < LOG_LINES and self._due():
            self.lines += 1
            self.line(note)

    def _due(self) -> bool:
        if self.total:
            due = self.lines < self.done * (LOG_LINES + 1) // self.total and self.done < self.total
            return due and time.monotonic() - self.spoken >= LOG_SECONDS
        if time.monotonic() - self.started < self.wait:
            return False
        self.wait *= 2
        return True

    def line(self, note: str = "") -> None:
        self.spoken = time.monotonic()
        of = f"/{self.total}" if self.total else ""
        parts = [f"{self.name}: {self.done}{of} {self.unit}s", f"{self.spoken - self.started:.0f} s", note]
        write_line(self.stream, ", ".join(part for part in parts if part))


class LogProgress(Progress):
    """Plain lines, at most :data:`LOG_LINES` + 2 a stage."""

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
        self.bars, self.task = bars, task

    def advance(self, count: int = 1, note: str = "") -> None:
        if note:
            self.bars.update(self.task, advance=count, note=visible(note))
        else:
            self.bars.update(self.task, advance=count)


class BarProgress(Progress):
    """Bars of :mod:`rich`; one live display serves nested stages."""

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
        task = self.bars.add_task(visible(name), total=total, note=f"{unit}s")
        try:
            yield _RichBar(self.bars, task)
        finally:
            self.depth -= 1
            self.bars.stop_task(task)
            if self.depth == 0:
                self.bars.stop()

    def note(self, text: str) -> None:
        self.console.print(visible(text))
