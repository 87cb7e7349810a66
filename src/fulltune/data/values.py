"""Check the values of rows: return each as its role needs it, or a problem."""

from __future__ import annotations

import math
import re
import unicodedata
from typing import Any

from fulltune.errors import Problem

#: Roles whose values are names of rows and groups, not texts: integers are accepted too.
_NAMES = frozenset({"id", "group"})

#: Invisible characters that Unicode does not class as spaces or format characters: fillers, the Braille blank, the
#: grapheme joiner, and variation selectors.
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0") | {chr(code) for code in range(0xFE00, 0xFE10)}


#: A byte that could not be decoded, as PEP 383 represents it; not half of an escaped pair.
_UNDECODED = re.compile("(?<![\ud800-\udbff])[\udc80-\udcff]")


def clean(value: Any, role: str, *, may_be_empty: bool = False) -> Any:
    """Return the value as the role needs it, or a :class:`Problem` without a position.

    Texts are unchanged, including spaces; only their line ends become LF. Ids and groups are stripped, and integers are
    converted to text.
    """
    if value is None:
        if may_be_empty:
            return ""
        return Problem("nothing (the column is missing or null)", "a value", "fill it in, or remove the row")
    return _name(value) if role in _NAMES else clean_text(value, may_be_empty=may_be_empty)


def clean_number(value: Any, kind: type) -> Any:
    """Return a finite number of the given type (``int`` or ``float``), or a :class:`Problem` without a position."""
    expected = "a whole number" if kind is int else "a number"
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or (kind is int and number != int(number)):
        return Problem(describe(value), expected, "correct it, or remove the row")
    return kind(number)


def clean_text(value: Any, *, may_be_empty: bool = False) -> str | Problem:
    """Return well-formed text with LF as line ends, or a :class:`Problem` without a position.

    Texts from Windows would otherwise have a token of their own at the end of every line.
    """
    if not isinstance(value, str):
        return Problem(describe(value), "text", "write it as text, or remove the row")
    if not may_be_empty and is_blank(value):
        return Problem(_blank(value), "text", "fill it in, or remove the row")
    if "\0" in value:
        problem = f"a NUL character at position {value.index(chr(0))}"
        return Problem(problem, "text without NUL characters", "remove it: text never contains it")
    if not value.isascii() and (undecoded := _UNDECODED.search(value)):
        problem = f"the byte 0x{ord(undecoded[0]) - 0xDC00:02X}, which is not UTF-8, at position {undecoded.start()}"
        return Problem(problem, "UTF-8", "correct the row, or set data.encoding if the file has another encoding")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        fix = "correct the escape (\\ud83d\\ude00 is one character)"
        return Problem("half of a surrogate pair", "well-formed Unicode", fix)
    return with_line_feeds(value)


def with_line_feeds(text: str) -> str:
    """Return a text whose line ends are LF, whichever it has."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def is_invisible(character: str) -> bool:
    """Return True for an invisible character: whitespace, format characters (such as zero-width ones), fillers."""
    return character.isspace() or unicodedata.category(character) == "Cf" or character in _BLANK


def is_padding(character: str) -> bool:
    """Return True for an invisible character that is not part of an emoji, as variation selectors are."""
    return is_invisible(character) and unicodedata.category(character) != "Mn"


def is_padded(text: str) -> bool:
    """Return True if a text begins or ends with an invisible character."""
    return bool(text) and (is_padding(text[0]) or is_padding(text[-1]))


def is_blank(text: str) -> bool:
    """Return True if a text has no visible character."""
    return all(map(is_invisible, text))


def _blank(value: str) -> str:
    if not value:
        return "empty text"
    if not value.strip():
        return "text of whitespace only"
    codes = ", ".join(dict.fromkeys(f"U+{ord(character):04X}" for character in value))
    return f"text of invisible characters only ({codes[:60]})"


def _name(value: Any) -> str | Problem:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        return Problem(describe(value), "text or a whole number", "write it as text")
    text = clean_text(value)
    return text.strip() if isinstance(text, str) else text


def well_formed(text: str) -> str:
    """Return a text with escapes instead of lone surrogates, which neither UTF-8 nor JSON records can store."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def describe(value: Any) -> str:
    """Return a value for messages: its type, and the value itself if it is short."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"a boolean ({str(value).lower()})"
    if isinstance(value, int | float):
        return f"a number ({value})"
    if isinstance(value, str):
        return f"text ({value[:40]!r})"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "an object" if isinstance(value, dict) else f"a value of type {type(value).__name__}"
