"""Limit the time and memory of chat templates, which are programs that come with a checkpoint."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import jinja2.filters
import jinja2.utils

from fulltune.runtime.machine import usage_peak_bytes

#: CPU seconds that a template may take for one conversation.
SECONDS = 5.0

#: Bytes by which a template may raise the peak memory of the process.
BYTES = 2**30

#: File names that jinja gives to compiled templates, and its modules with functions that templates call.
_TEMPLATE_FILES = frozenset({"<template>", "<unknown>", jinja2.filters.__file__, jinja2.utils.__file__})


class EndlessTemplate(Exception):
    """A template exceeded its limit of time or memory."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Limit the CPU time and memory of templates in this thread within the block; other code is not affected.

    Args:
        seconds: CPU seconds of the thread.

    Raises:
        EndlessTemplate: Raised at the next line of the template, or of a function of jinja, after the limit.
    """
    deadline = time.thread_time() + seconds
    most = usage_peak_bytes() + BYTES
    previous_trace = sys.gettrace()

    def in_template(frame: FrameType, event: str, argument: Any) -> Any:
        if time.thread_time() > deadline:
            raise EndlessTemplate(f"it does not end within {seconds:g} seconds")
        if usage_peak_bytes() > most:
            raise EndlessTemplate(f"it takes more than {BYTES // 2**20:,} MiB of memory")
        return in_template

    def on_call(frame: FrameType, event: str, argument: Any) -> Any:
        return in_template(frame, event, argument) if frame.f_code.co_filename in _TEMPLATE_FILES else None

    sys.settrace(on_call)
    try:
        yield
    finally:
        sys.settrace(previous_trace)
