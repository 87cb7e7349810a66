"""Handle Ctrl-C and SIGTERM within a block."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

Handler = Callable[[int, "FrameType | None"], None]


@contextmanager
def terminable() -> Iterator[None]:
    """Raise KeyboardInterrupt at SIGTERM as at Ctrl-C, so that a run on a preempted machine can be resumed."""

    def handle(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with handled(handle, (signal.SIGTERM,)):
        yield


@contextmanager
def handled(handle: Handler, signals: tuple[signal.Signals, ...] = _SIGNALS) -> Iterator[None]:
    """Set a signal handler for the duration of the block."""
    # Only the main thread may set handlers.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handle) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
