"""One value of one row: accepted as what its role needs, or a problem that says what was found."""

from __future__ import annotations

import json
from typing import Any

from fulltune.errors import Problem

#: Roles whose values are names, not texts: whole numbers do as well.
_NAMES = frozenset({"label", "id", "group"})


def clean(value: Any, role: str, kind: type, *, may_be_empty: bool = False) -> Any:
    """The value as the role wants it, or a :class:`Problem` without its place.

    Texts stay as they are, to the last space. Labels, ids and groups lose the whitespace around them, and whole numbers
    become text. Lists of labels lose repetitions; in a text column (CSV) they are written as a JSON list.
    """
    if kind is list:
        return _labels(value, may_be_empty)
    if value is None:
        if may_be_empty:
            return ""
        return Problem("nothing (the column is missing or null)", "a value", "fill it in, or remove the row")
    return _name(value) if role in _NAMES else _text(value, may_be_empty)


def kind_of_name(value: Any) -> str:
    """``"text"`` or ``"a number"``; of a list, that of its first element; ``""`` for an empty one."""
    if isinstance(value, list):
        return kind_of_name(value[0]) if value else ""
    return "a number" if isinstance(value, int) else "text"


def _text(value: Any, may_be_empty: bool) -> str | Problem:
    if not isinstance(value, str):
        return Problem(describe(value), "text", "write it as text, or remove the row")
    if not value.strip() and not may_be_empty:
        return Problem(
            "empty text" if not value else "text of whitespace only", "text", "fill it in, or remove the row"
        )
    if "\0" in value:
        found = f"a NUL character at position {value.index(chr(0))}"
        return Problem(found, "text without NUL characters", "remove it: it is no part of any text")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        return Problem(
            "half of a surrogate pair", "well-formed Unicode", "mend the escape (\\ud83d\\ude00 is one sign)"
        )
    return value


def _name(value: Any) -> str | Problem:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        return Problem(describe(value), "text or a whole number", "write it as text")
    text = _text(value, may_be_empty=False)
    return text.strip() if isinstance(text, str) else text


def _labels(value: Any, may_be_empty: bool) -> list[str] | Problem:
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _parsed(value)
    if not isinstance(value, list):
        return Problem(describe(value), "a list of labels", 'write a JSON list: ["a", "b"]')
    if not value and not may_be_empty:
        return Problem("an empty list", "at least one label", "fill it in, or remove the row")
    names = [_name(item) for item in value]
    bad = next((name for name in names if isinstance(name, Problem)), None)
    if bad:
        return Problem(f"{bad.found} in the list", "a list of labels", bad.fix)
    return list(dict.fromkeys(str(name) for name in names))


def _parsed(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def describe(value: Any) -> str:
    """A value as a message names it: its kind, and itself when it is short."""
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
    return "an object" if isinstance(value, dict) else f"a {type(value).__name__}"
