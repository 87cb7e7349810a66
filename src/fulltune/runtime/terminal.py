"""Text from data, models and files on its way to a terminal, and streams that cannot write every character."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterable
from typing import IO, Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Column, Table

#: Control characters but tab and newline, marks that reorder or break lines, invisible tags, halves of surrogate pairs.
_UNSAFE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    r"""Return the text with every character that could steer a terminal written as an escape, e.g. ``\x1b``."""
    return _UNSAFE.sub(_escaped, text.replace("\r\n", "\n"))


def portable_json(text: str, encoding: str | None) -> str:
    """Return the same JSON value for a stream of this encoding: what it lacks, and what could steer a terminal, becomes
    a JSON escape.
    """
    is_unicode = (encoding or "").lower().replace("-", "").startswith("utf")
    return (_UNSAFE if is_unicode else _NOT_ASCII).sub(_json_escape, text)


_NOT_ASCII = re.compile(r"[^\t\n\x20-\x7e]")


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _json_escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x10000:
        return f"\\u{code:04x}"
    high, low = divmod(code - 0x10000, 0x400)
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"


class Visible:
    """A renderable whose texts are made :func:`visible`; styles and layout stay."""

    def __init__(self, inner: RenderableType) -> None:
        self._inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[Segment]:
        for segment in console.render(self._inner, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


def wrapping_table(*headers: str, **options: Any) -> Table:
    """Return a table whose cells are folded where the terminal is narrow, so that no digit is cut off."""
    return Table(*(Column(header, overflow="fold") for header in headers), **options)


class _Console(Console):
    """A console whose reader may go away; rich's own ends the process then, with exit code 1."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        silence(self.file)


def plain_console(stream: TextIO | None = None, **options: Any) -> Console:
    """Return a console that takes texts as they are: no markup, no emoji codes, no highlighting."""
    return _Console(file=stream, markup=False, emoji=False, highlight=False, **options)


def write_line(stream: TextIO | None, text: str) -> None:
    """Write a line of text that people read; a stream that is closed, or whose reader is gone, takes nothing."""
    if stream is None:
        return
    try:
        print(visible(text), file=stream, flush=True)
    except BrokenPipeError:
        silence(stream)


def silence(stream: IO[str]) -> None:
    """Send what is still to be written to a pipe without a reader nowhere, so that the program can end in order."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def replace_unknown_characters() -> None:
    """Let stdout and stderr write ``?`` for a character that their encoding lacks, instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
