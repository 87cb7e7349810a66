"""Turn pydantic's validation errors into messages: value and expected value."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fulltune.errors import StoreError, shortened
from fulltune.runtime.json_syntax import json_fault, unreadable

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

#: Expected value by the beginning of an error's type. ``{…}`` is filled in from the error.
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


def expected_input(item: ErrorDetails) -> str:
    """Return a description of the values that a field accepts."""
    error_type = item["type"]
    details = item.get("ctx", {})
    if error_type == "string_too_short" and details.get("min_length") == 1:
        return "text that is not empty"
    template = next((text for start, text in _EXPECTED if error_type.startswith(start)), None)
    if template is None:
        message = item["msg"]
        return (message[:1].lower() + message[1:]).removeprefix("input should be ")
    values = {key: f"{value:g}" if isinstance(value, float) else str(value) for key, value in details.items()}
    return template.format_map(values)


def config_spelling(value: Any) -> str:
    """Return a value as it is written in a config, shortened."""
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    if isinstance(value, Mapping) and not value:
        return "an empty section"
    if isinstance(value, date):
        return f"the date {value}"
    return "binary data" if isinstance(value, bytes) else shortened(value)


def first_problem(error: ValidationError) -> str:
    """Return the first problem of a file in one sentence."""
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
    return f"{prefix}{config_spelling(first['input'])}, expected {expected_input(first)}"


def _not_json(text: Any) -> str:
    """Return the message for a text that is not valid JSON."""
    decoded = text.decode("utf-8", errors="replace") if isinstance(text, bytes) else str(text)
    try:
        json.loads(decoded)
    except json.JSONDecodeError as error:
        problem, _, line = json_fault(decoded, error)
        return f"not valid JSON: {problem} of line {line}"
    except (ValueError, RecursionError):
        pass
    return "not valid JSON"


def read_failure(error: Exception) -> str:
    """Return why a file could not be read or its content was rejected, without wording of libraries."""
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        return first_problem(error)
    if isinstance(error, json.JSONDecodeError):
        return _not_json(error.doc)
    if isinstance(error, UnicodeDecodeError):
        return f"byte 0x{error.object[error.start]:02X} at offset {error.start} is not UTF-8"
    if isinstance(error, RecursionError) or (type(error) is ValueError and "integer string" in str(error)):
        return unreadable(error)
    return (error.strerror if isinstance(error, OSError) else "") or str(error)


def read_json(path: Path, what: str, *, fix: str = "run it again") -> Any:
    """Return the content of a JSON file that fulltune has written.

    Args:
        path: The file.
        what: What it holds, for messages.
        fix: What to do if it is damaged.

    Raises:
        FileNotFoundError: There is no such file.
        StoreError: It cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(
            f"{what} cannot be read ({read_failure(error)})", expected="a JSON object", where=str(path), fix=fix
        ) from error


def read_object(path: Path, what: str, *, fix: str = "run it again") -> dict[str, Any]:
    """Return the JSON object in a file; arguments and errors are those of :func:`read_json`."""
    value = read_json(path, what, fix=fix)
    if not isinstance(value, dict):
        raise StoreError(f"{what} is damaged", expected="a JSON object", where=str(path), fix=fix)
    return value
