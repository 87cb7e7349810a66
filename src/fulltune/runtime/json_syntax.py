"""What is wrong with a text that is almost JSON, in the words of people who wrote it by hand."""

from __future__ import annotations

import json
import re

_SPACE = re.compile(r"\s*")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

#: Words of Python and YAML for what JSON spells otherwise.
_SPELLINGS = {"true": "true", "false": "false", "none": "null", "null": "null", "nan": "null", "undefined": "null"}


def json_fault(text: str, error: json.JSONDecodeError) -> tuple[str, str, int]:
    """Return what is wrong where a JSON text stops to be one, with the column; how to correct it; and the line."""
    what, fix, at = _fault(text, error)
    line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
    return f"{what} at column {column}", fix, line


def unreadable(error: Exception) -> str:
    """Return why well-formed JSON cannot be read: it is nested too deeply, or has a number of thousands of digits."""
    return "it is nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"


def _fault(text: str, error: json.JSONDecodeError) -> tuple[str, str, int]:
    at = _end_of_space(text, error.pos)
    comma = at if text[at : at + 1] == "," else len(text[:at].rstrip()) - 1
    if text[comma : comma + 1] == "," and text[_end_of_space(text, comma + 1) :][:1] in ("]", "}"):
        return "a comma after the last element", "remove the comma", comma
    if text[at : at + 1] == "\0":
        return "a NUL byte", "remove it, or write the file again", at
    if text.startswith(("//", "/*", "#"), at):
        return "a comment", "remove it: JSON has no comments", at
    if error.msg.startswith("Extra data"):
        return (*_more(text[at : at + 1]), at)
    known = next((words for start, words in _MESSAGES.items() if error.msg.startswith(start)), None)
    return (*(known or _unexpected(text, at, text[at : at + 1], error.msg)), error.pos if known else at)


def _more(sign: str) -> tuple[str, str]:
    if sign == ",":
        return "a comma after the value", "remove it, or write [ and ] around all values"
    if sign and sign in "{[":
        return "a second value", "write each on a line of its own"
    return "more text after the end of the value", "remove it, or close the value later"


#: Errors of the parser whose words are its own, by their beginning.
_MESSAGES = {
    "Unterminated string": (
        "a string that is never closed",
        'add the closing ", or fetch the file again if its end is missing',
    ),
    "Invalid control character": (
        "a line break or control character inside a string",
        "write it as an escape, such as \\n",
    ),
    "Invalid \\": ("a backslash that begins no escape", "write two of them for a backslash"),
}


def _unexpected(text: str, at: int, sign: str, message: str) -> tuple[str, str]:
    if not sign and not text.strip():
        return "nothing", "write the value"
    if not sign:
        return "the end of the text, where more was expected", "fetch or write it again: its end is missing"
    if sign in "'‘’“”`":
        return f"the quote {sign}", 'write texts and keys in straight double quotes: "text"'
    if word := _WORD.match(text, at):
        known = _SPELLINGS.get(word[0].lower())
        fix = f"write {known}" if known else f'write it in quotes: "{word[0][:40]}"'
        return f"the word {word[0][:40]} without quotes", fix
    wanted = re.search(r"'(.)' delimiter", message)
    expected = f"where {wanted[1]!r} was expected" if wanted else "where a value or a key in quotes was expected"
    return f"{sign!r} {expected}", "correct the syntax there"


def _end_of_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at
