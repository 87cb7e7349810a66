"""Chat templates are programs that come with a checkpoint: one that does not end is stopped."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

#: Seconds of the processor that a template may take for one conversation.
SECONDS = 5.0

#: How jinja calls the code that it makes of a template.
_TEMPLATE_FILES = ("<template>", "<unknown>")


class EndlessTemplate(Exception):
    """A template did not end in time."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Stop the code of templates in this thread after some seconds of its processor; other code runs untouched.

    Raises:
        EndlessTemplate: In the block, at the next line of the template.
    """
    end, before = time.thread_time() + seconds, sys.gettrace()

    def in_template(frame: FrameType, event: str, argument: Any) -> Any:
        if time.thread_time() > end:
            raise EndlessTemplate(f"it does not end within {seconds:g} seconds")
        return in_template

    def called(frame: FrameType, event: str, argument: Any) -> Any:
        return in_template(frame, event, argument) if frame.f_code.co_filename in _TEMPLATE_FILES else None

    sys.settrace(called)
    try:
        yield
    finally:
        sys.settrace(before)
