"""Write log lines to stderr from a command, and to ``run.log`` in the folder of a run."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from logging.handlers import MemoryHandler
from pathlib import Path

from fulltune.runtime.terminal import discard_output, write_line

#: Lines that are kept before there is a file.
_MOST_LINES = 10_000
_NEVER = logging.CRITICAL + 1

_PACKAGE = logging.getLogger("fulltune")


def log_to_stderr(level: str) -> None:
    """Write the package's log lines of a level and above to stderr, once however often this is called.

    Args:
        level: ``debug``, ``info``, ``warning``, ``error`` or ``critical``.
    """
    for handler in [one for one in _PACKAGE.handlers if isinstance(one, _ToTerminal)]:
        _PACKAGE.removeHandler(handler)
    handler = _ToTerminal()
    handler.setLevel(level.upper())
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    _PACKAGE.addHandler(handler)
    _PACKAGE.setLevel(level.upper())


class _ToTerminal(logging.Handler):
    """Write to the stderr of the moment: a progress display replaces it."""

    def emit(self, record: logging.LogRecord) -> None:
        write_line(sys.stderr, self.format(record))


@contextmanager
def run_log() -> Iterator[Callable[[Path], None]]:
    """Keep the package's log lines of level info and above while the block runs.

    What is shown elsewhere does not change: other handlers get the lines that they would get without this.

    Yields:
        A function that takes the path of a log file. Lines from before its call are written there as well; without a
        call they are dropped.
    """
    shown = _PACKAGE.getEffectiveLevel()
    level, propagates = _PACKAGE.level, _PACKAGE.propagate
    others = [(handler, handler.level) for handler in _PACKAGE.handlers]
    kept = MemoryHandler(_MOST_LINES, flushLevel=_NEVER, flushOnClose=False)
    relay = _ToRoot(shown)
    for other, own in others:
        other.setLevel(max(own, shown))
    _PACKAGE.addHandler(kept)
    if propagates and (logging.getLogger().handlers or not others):
        _PACKAGE.addHandler(relay)  # without any handler, the root logger prints warnings by its last resort
    _PACKAGE.propagate = False
    _PACKAGE.setLevel(min(shown, logging.INFO))
    try:
        yield lambda path: _write_to(kept, path)
    finally:
        _PACKAGE.setLevel(level)
        _PACKAGE.propagate = propagates
        _PACKAGE.removeHandler(relay)
        _PACKAGE.removeHandler(kept)
        for other, own in others:
            other.setLevel(own)
        if kept.target is not None:
            kept.target.close()
        kept.close()


def _write_to(kept: MemoryHandler, path: Path) -> None:
    handler = _ToFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    kept.setTarget(handler)
    kept.flush()
    kept.capacity = 1  # from now on every line is written at once


class _ToFile(logging.FileHandler):
    """Write to a file; a full disk ends the log, not the run."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)
            return
        write_line(sys.stderr, f"Warning: {self.baseFilename} cannot be written: the log ends here.")
        if self.stream is not None:
            discard_output(self.stream)

    def close(self) -> None:
        with suppress(OSError):
            super().close()


class _ToRoot(logging.Handler):
    """Hand lines of a level and above to the root logger, as propagation would."""

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger().callHandlers(record)
