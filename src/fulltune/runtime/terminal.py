"""Print text of data, models and files safely: without control characters, and to streams of any encoding."""

from __future__ import annotations

import codecs
import errno
import io
import os
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import IO, Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Column, Table

from fulltune.errors import UNSAFE
from fulltune.errors import escape_controls as escape_controls


def portable_json(text: str, encoding: str | None) -> str:
    """Return the same JSON value with JSON escapes for control characters and characters that the encoding lacks."""
    is_unicode = (encoding or "").lower().replace("-", "").startswith("utf")
    return (UNSAFE if is_unicode else _NOT_ASCII).sub(_json_escape, text)


_NOT_ASCII = re.compile(r"[^\t\n\x20-\x7e]")


def _json_escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x10000:
        return f"\\u{code:04x}"
    high, low = divmod(code - 0x10000, 0x400)
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"


#: Error numbers of a stream without a reader, or on a disk that is full or broken.
_UNWRITABLE = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

#: Columns below which the cells of a table with six columns lose their content.
_NARROWEST = 40


class EscapedRenderable:
    """A renderable with control characters escaped (:func:`escape_controls`); styles and layout are kept."""

    def __init__(self, inner: RenderableType) -> None:
        self._inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[Segment]:
        for segment in console.render(self._inner, options):
            yield segment if segment.control else Segment(escape_controls(segment.text), segment.style)


def wrapping_table(*headers: str, **options: Any) -> Table:
    """Return a table whose cells wrap on narrow terminals, so that no digit is cut off."""
    return Table(*(Column(header, overflow="fold") for header in headers), **options)


class _Console(Console):
    """A console that tolerates a closed pipe; rich's own would exit with code 1."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        discard_output(self.file)


def plain_console(stream: TextIO | None = None, **options: Any) -> Console:
    """Return a console that prints texts unchanged: no markup, no emoji codes, no highlighting.

    A variable ``COLUMNS`` of 0, as some terminals without a size set it, would leave no room for any text.
    """
    if not os.environ.get("COLUMNS", "80").strip("0"):
        options.setdefault("width", 80)
    return _Console(file=stream, markup=False, emoji=False, highlight=False, **options)


def answer_console() -> Console:
    """Return a console for stdout, wide enough for the numbers of a table; a narrower terminal wraps the lines."""
    console = plain_console()
    if console.width < _NARROWEST:
        console.width = _NARROWEST
    return console


def write_line(stream: TextIO | None, text: str) -> None:
    """Write a line of human-readable text; does nothing if the stream is closed, has no reader, or its disk is full."""
    if stream is None:
        return
    try:
        print(escape_controls(text), file=stream, flush=True)
    except OSError:  # messages must not cost a result
        discard_output(stream)


def discard_output(stream: IO[str]) -> None:
    """Redirect a pipe without a reader to the null device, so that buffered output causes no error at exit."""
    null_device = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null_device, stream.fileno())
    os.close(null_device)


def is_unwritable(error: OSError) -> bool:
    """Return True for the error of a stream that cannot be written: unlike that of a file, it has no name."""
    return error.filename is None and error.errno in _UNWRITABLE


def wait_for_readers() -> None:
    """Make writing to stdout and stderr wait for a slow reader, also of a pipe that another program made non-blocking.

    Python would drop what does not fit into such a pipe.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # no stream, or none of the operating system
            os.set_blocking(stream.fileno(), True)


#: ASCII for the signs of messages. A minus that became ``?`` would leave a number without its sign.
_ASCII = {"−": "-", "–": "-", "—": "-", "→": "->", "…": "...", "×": "x", "·": "*", "≤": "<=", "≥": ">=", "∞": "inf"}


def replace_unknown_characters() -> None:
    """Make stdout and stderr write ASCII for characters that their encoding lacks, instead of raising."""
    codecs.register_error("fulltune.ascii", _in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=_encoding_of_lines(stream.encoding), errors="fulltune.ascii")


def _encoding_of_lines(encoding: str) -> str:
    """Return the encoding, or UTF-8 for one that is made for host names and writes no lines of text, as ``idna``."""
    try:
        "−\n".encode(encoding, "fulltune.ascii")
    except UnicodeError:
        return "utf-8"
    return encoding


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """Return what replaces the characters that could not be encoded, ``?`` for those that are no signs."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(_ASCII.get(one, "?") for one in missing), error.end
