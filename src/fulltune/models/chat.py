"""Limit the time of chat templates, which are programs that come with a checkpoint."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

#: CPU seconds that a template may take for one conversation.
SECONDS = 5.0

#: File names that jinja gives to compiled templates.
_TEMPLATE_FILES = ("<template>", "<unknown>")


class EndlessTemplate(Exception):
    """A template exceeded its time limit."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Limit the CPU time of templates in this thread within the block; other code is not affected.

    Args:
        seconds: CPU seconds of the thread.

    Raises:
        EndlessTemplate: Raised at the next line of the template after the limit.
    """
    deadline = time.thread_time() + seconds
    previous_trace = sys.gettrace()

    def in_template(frame: FrameType, event: str, argument: Any) -> Any:
        if time.thread_time() > deadline:
            raise EndlessTemplate(f"it does not end within {seconds:g} seconds")
        return in_template

    def on_call(frame: FrameType, event: str, argument: Any) -> Any:
        return in_template(frame, event, argument) if frame.f_code.co_filename in _TEMPLATE_FILES else None

    sys.settrace(on_call)
    try:
        yield
    finally:
        sys.settrace(previous_trace)
