"""Measure the seconds of each stage of a run, and collect its warnings."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

_log = logging.getLogger(__name__)


class Stopwatch:
    """Wall time of named stages in seconds: ``with watch("train"): …``."""

    def __init__(self) -> None:
        self._computed = time.process_time()
        self.started = time.perf_counter()
        self.seconds = dict[str, float]()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = round(time.perf_counter() - started, 3)
            _log.info("stage %s: %.1f s", stage, self.seconds[stage])

    @property
    def total(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started

    @property
    def core_seconds(self) -> float:
        """Seconds that the threads of this process computed since the start, all of them together."""
        return time.process_time() - self._computed


class Warnings:
    """Collect each distinct user warning for the report; warnings are still shown to the user."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self._catch = warnings.catch_warnings()

    def __enter__(self) -> Warnings:
        self._catch.__enter__()
        show: Any = warnings.showwarning

        def keep(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
            if str(message) not in self.messages and issubclass(category, UserWarning):
                self.messages.append(str(message))
                _log.info("warning: %s", message)
            show(message, category, *rest, **named)

        warnings.showwarning = keep
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._catch.__exit__(error_type, error, trace)
