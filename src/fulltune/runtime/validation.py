"""Errors of pydantic in plain words: what was found, and what was expected."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fulltune.errors import shortened
from fulltune.runtime.json_syntax import json_fault

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

#: What each kind of error wants, by the beginning of its name. ``{…}`` is filled in from the error.
_EXPECTED = (
    ("string_too_short", "text of at least {min_length} characters"),
    ("string_too_long", "text of at most {max_length} characters"),
    ("string", "text"),
    ("int", "a whole number"),
    ("float", "a number"),
    ("finite", "a finite number"),
    ("bool", "true or false"),
    ("date_", "a date such as 2024-01-31"),
    ("literal", "{expected}"),
    ("enum", "{expected}"),
    ("greater_than_equal", "at least {ge}"),
    ("greater_than", "more than {gt}"),
    ("less_than_equal", "at most {le}"),
    ("less_than", "less than {lt}"),
    ("list", "a list"),
    ("tuple", "a list"),
    ("set", "a list"),
    ("iterable", "a list"),
    ("dict", "keys with values"),
    ("mapping", "keys with values"),
    ("model", "keys with values"),
    ("dataclass", "keys with values"),
    ("none", "nothing (null)"),
    ("missing", "a value"),
    ("path", "a path"),
)


def expectation(item: ErrorDetails) -> str:
    """Return what a field takes."""
    kind, details = item["type"], item.get("ctx", {})
    if kind == "string_too_short" and details.get("min_length") == 1:
        return "text that is not empty"
    text = next((text for start, text in _EXPECTED if kind.startswith(start)), None)
    if text is None:
        message = item["msg"]
        return (message[:1].lower() + message[1:]).removeprefix("input should be ")
    return text.format_map(
        {key: f"{value:g}" if isinstance(value, float) else str(value) for key, value in details.items()}
    )


def spelled(value: Any) -> str:
    """Return a value of a config as a config spells it, shortened."""
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    if isinstance(value, Mapping) and not value:
        return "an empty section"
    return shortened(value)


def explained(error: ValidationError) -> str:
    """Return the first thing that is wrong with a file, in one sentence."""
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    prefix = f"{place}: " if place else ""
    if first["type"] == "json_invalid":
        return _not_json(first["input"])
    if first["type"] == "extra_forbidden":
        return f"{prefix}unknown key"
    if first["type"] == "missing":
        return f"{prefix}missing"
    if first["type"] == "value_error":
        return f"{prefix}{first['ctx']['error']}"
    return f"{prefix}{spelled(first['input'])}, expected {expectation(first)}"


def _not_json(text: Any) -> str:
    written = text.decode("utf-8", errors="replace") if isinstance(text, bytes) else str(text)
    try:
        json.loads(written)
    except json.JSONDecodeError as error:
        what, _, line = json_fault(written, error)
        return f"not valid JSON: {what} of line {line}"
    except (ValueError, RecursionError):
        pass
    return "not valid JSON"


def unread(error: Exception) -> str:
    """Return why a file could not be read, or its content not be taken, without the words of a library."""
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        return explained(error)
    if isinstance(error, json.JSONDecodeError):
        return _not_json(error.doc)
    if isinstance(error, UnicodeDecodeError):
        return f"byte 0x{error.object[error.start]:02X} at offset {error.start} is not UTF-8"
    return (error.strerror if isinstance(error, OSError) else "") or str(error)
