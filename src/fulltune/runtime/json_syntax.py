"""Explain syntax errors of JSON that was written by hand."""

from __future__ import annotations

import json
import re

_SPACE = re.compile(r"\s*")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

#: Literals of Python, JavaScript and YAML, and their spelling in JSON.
_SPELLINGS = {"true": "true", "false": "false", "none": "null", "null": "null", "nan": "null", "undefined": "null"}


def json_fault(text: str, error: json.JSONDecodeError) -> tuple[str, str, int]:
    """Explain a JSON syntax error.

    Returns:
        The problem with its column, the fix, and the line number.
    """
    problem, fix, at = _fault(text, error)
    line = text.count("\n", 0, at) + 1
    column = at - text.rfind("\n", 0, at)
    return f"{problem} at column {column}", fix, line


def unreadable(error: Exception) -> str:
    """Return why well-formed JSON cannot be parsed: nested too deeply, or a number with too many digits."""
    return "it is nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"


def _fault(text: str, error: json.JSONDecodeError) -> tuple[str, str, int]:
    """Return the problem, the fix and the position."""
    at = _end_of_space(text, error.pos)
    comma = at if text[at : at + 1] == "," else len(text[:at].rstrip()) - 1
    if text[comma : comma + 1] == "," and text[_end_of_space(text, comma + 1) :][:1] in ("]", "}"):
        return "a comma after the last element", "remove the comma", comma
    if text[at : at + 1] == "\0":
        return "a NUL byte", "remove it, or write the file again", at
    if text.startswith(("//", "/*", "#"), at):
        return "a comment", "remove it: JSON has no comments", at
    if error.msg.startswith("Extra data"):
        return (*_extra_data(text[at : at + 1]), at)
    for start, (problem, fix) in _MESSAGES.items():
        if error.msg.startswith(start):
            return problem, fix, error.pos
    return (*_unexpected(text, at, text[at : at + 1], error.msg), at)


def _extra_data(character: str) -> tuple[str, str]:
    """Return the problem and the fix for text after the first value."""
    if character == ",":
        return "a comma after the value", "remove it, or write [ and ] around all values"
    if character and character in "{[":
        return "a second value", "write each value on its own line"
    return "more text after the end of the value", "remove it, or close the value later"


#: Problem and fix for errors of Python's parser, by the beginning of its message.
_MESSAGES = {
    "Unterminated string": (
        "a string that is never closed",
        'add the closing ", or fetch the file again if its end is missing',
    ),
    "Invalid control character": (
        "a line break or control character inside a string",
        "write it as an escape, such as \\n",
    ),
    "Invalid \\": ("an invalid escape sequence", "write two backslashes for a backslash"),
}


def _unexpected(text: str, at: int, character: str, message: str) -> tuple[str, str]:
    """Return the problem and the fix for an unexpected character, or the end of the text."""
    if not character and not text.strip():
        return "nothing", "write the value"
    if not character:
        return "an unexpected end of the text", "fetch or write it again: its end is missing"
    if character in "'‘’“”`":
        return f"the quote {character}", 'write texts and keys in straight double quotes: "text"'
    if word := _WORD.match(text, at):
        spelling = _SPELLINGS.get(word[0].lower())
        fix = f"write {spelling}" if spelling else f'write it in quotes: "{word[0][:40]}"'
        return f"the word {word[0][:40]} without quotes", fix
    delimiter = re.search(r"'(.)' delimiter", message)
    expected = f"where {delimiter[1]!r} was expected" if delimiter else "where a value or a quoted key was expected"
    return f"{character!r} {expected}", "correct the syntax there"


def _end_of_space(text: str, at: int) -> int:
    """Return the position of the first character at or after ``at`` that is not white space."""
    match = _SPACE.match(text, at)
    return match.end() if match else at
