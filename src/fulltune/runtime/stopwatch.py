"""Collect what a run needs to report of itself: seconds per stage, and warnings."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any


class Stopwatch:
    """Seconds of wall time a named stage: ``with watch("train"): …``."""

    def __init__(self) -> None:
        self.started, self.seconds = time.perf_counter(), dict[str, float]()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = round(time.perf_counter() - started, 3)

    @property
    def total(self) -> float:
        return time.perf_counter() - self.started


class Warnings:
    """Keeps what libraries and stages warned of, once each, so that the report shows it; they still reach the user."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self._catch = warnings.catch_warnings()

    def __enter__(self) -> Warnings:
        self._catch.__enter__()
        show: Any = warnings.showwarning

        def keep(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
            if str(message) not in self.messages and issubclass(category, UserWarning):
                self.messages.append(str(message))
            show(message, category, *rest, **named)

        warnings.showwarning = keep
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._catch.__exit__(kind, error, trace)
