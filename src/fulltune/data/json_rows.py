"""Parse JSON documents and JSON Lines in the common layouts of rows."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fulltune.data.raw import Item, RawRow
from fulltune.errors import DataError, Problem, did_you_mean
from fulltune.records.run import FileFormat
from fulltune.runtime.json_syntax import json_fault, unreadable
from fulltune.runtime.split_names import SPLIT_NAMES

#: Keys of a JSON object that hold its rows.
_WRAPPERS = ("data", "rows", "records", "examples", "instances", "items")

_LINE_END = re.compile(r"\r\n|\n|\r")
_NOT_SPACE = re.compile(r"\S")

_JSON_TYPES = {list: "list", str: "string", int: "number", float: "number", bool: "boolean", type(None): "null"}


def json_rows(
    text: str, form: FileFormat, split: str, named_part: str = "", wanted: Collection[str] = ()
) -> Iterator[Item]:
    """Yield the format and the rows of one JSON document, of consecutive JSON objects, or of JSON Lines.

    The suffix does not decide: all of these are called both ``.json`` and ``.jsonl``.

    Args:
        text: The complete text.
        form: The format of the file, without the part.
        split: The split to read from a document with several.
        named_part: The split or key that the user named explicitly.
        wanted: Columns that are read, which distinguish a row from an object around rows.

    Raises:
        DataError: The text is one invalid document, or has no such split.
    """
    text = text.lstrip("\ufeff")
    name = form.file
    try:
        value = json.loads(text, object_pairs_hook=_pairs) if text.strip() else []
    except (ValueError, RecursionError) as error:
        rows = _objects(text, name)
        if not rows and _is_one_document(text, name):
            expected = "an array of objects" if text.lstrip().startswith("[") else "one JSON object"
            raise DataError(_broken(text, error, name, expected)) from None
        if named_part:
            raise _no_splits(name, named_part) from None
        yield form
        yield from rows or _json_lines(text, name)
        return
    yield from _document(value, form, split, named_part, wanted)


def stream_json_lines(lines: Iterable[str], form: FileFormat) -> Iterator[Item]:
    """Yield the format and the rows of JSON Lines that are read line by line."""
    yield form
    yield from _line_objects(lines, form.file)


def is_json_lines(text: str) -> bool:
    """Return True if the first line of a text that is not blank is a JSON object."""
    line = _LINE_END.split(text.lstrip("\ufeff \t\r\n"), maxsplit=1)[0]
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def starts_with_object(text: str) -> bool:
    """Return True if text begins with a JSON object, or with an array of objects."""
    try:
        value, _ = json.JSONDecoder().raw_decode(text.lstrip("\ufeff \t\r\n"))
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def _broken(text: str, error: Exception, name: str, expected: str) -> Problem:
    if not isinstance(error, json.JSONDecodeError):
        return Problem(f"JSON that cannot be read ({unreadable(error)})", expected, "correct it there", name)
    problem, fix, line = json_fault(text, error)
    return Problem(f"not valid JSON ({problem})", expected, fix, f"{name}:{line}")


def _is_one_document(text: str, name: str) -> bool:
    """Return True if invalid JSON was meant as one document, not as one object per line."""
    stripped = text.lstrip()
    if Path(name.removesuffix(".gz")).suffix == ".json" and stripped.startswith(("[", "/*", "//")):
        return True
    first = _LINE_END.split(stripped, maxsplit=1)[0].rstrip()
    return stripped[:1] in ("[", "{") and first != stripped.rstrip() and first.endswith(("[", "{", ",", ":"))


def _no_splits(name: str, named_part: str, value: Any = None) -> DataError:
    if isinstance(value, dict) and value:
        expected = f"one of {', '.join(list(value)[:10])}"
        fix = did_you_mean(named_part, value) or f"write it without #{named_part}"
        return DataError("there is no such key", expected=expected, where=name, field=f"#{named_part}", fix=fix)
    fix = f"write it without #{named_part}"
    return DataError("a file has no splits", where=name, field=f"#{named_part}", fix=fix)


def _json_lines(text: str, name: str) -> Iterator[RawRow | Problem]:
    # str.splitlines would also split at U+2028 and U+0085, which may occur inside a JSON string.
    return _line_objects(_LINE_END.split(text), name)


def _line_objects(lines: Iterable[str], name: str) -> Iterator[RawRow | Problem]:
    for number, raw in enumerate(lines, start=1):
        line = raw.lstrip("\ufeff")  # concatenated files each begin with a byte-order mark
        if line.strip():
            yield _json_object(line, f"{name}:{number}")


def _json_object(line: str, where: str) -> RawRow | Problem:
    try:
        value = json.loads(line, object_pairs_hook=_pairs)
    except json.JSONDecodeError as error:
        problem, fix, _ = json_fault(line, error)
        problem = "a NUL byte" if "\0" in line else f"not valid JSON ({problem})"
        return Problem(problem, "one JSON object per line", f"{fix}, or remove the line", where)
    except (ValueError, RecursionError) as error:
        problem = f"JSON that cannot be read ({unreadable(error)})"
        return Problem(problem, "one JSON object per line", "correct or remove the line", where)
    return _object(value, where)


class _Repeating(dict[str, Any]):
    """The repeated keys of a JSON object, and their values."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object, or a :class:`_Repeating` if keys are repeated (``json.loads`` would keep the last value)."""
    value = dict(pairs)
    if len(value) == len(pairs):
        return value
    repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    return _Repeating({key: [item for name, item in pairs if name == key] for key in repeated})


def _object(value: Any, where: str) -> RawRow | Problem:
    if isinstance(value, _Repeating):
        key, values = next(iter(value.items()))
        problem = f"the key {key!r} {len(values)} times"
        return Problem(problem, "each key once", "keep the value that is meant", where, key)
    if isinstance(value, dict):
        return where, value
    if isinstance(value, str) and value.lstrip().startswith("{"):
        problem = "a JSON object that is written as a string"
        return Problem(problem, "a JSON object", "write it without the quotes: it was encoded twice", where)
    return Problem(f"a JSON {_JSON_TYPES.get(type(value), 'value')}", "a JSON object", "correct or remove it", where)


def _document(value: Any, form: FileFormat, split: str, named_part: str, wanted: Collection[str]) -> Iterator[Item]:
    """Yield the rows of a JSON document: an array of rows, an object of splits or of columns, or a single row."""
    part, value = _part(value, form.file, split, named_part, wanted)
    name = f"{form.file}.{part}" if part else form.file
    frame = _frame_rows(value)
    assumed = ["the file is a data frame as pandas writes it: read by rows"] if frame is not None else []
    yield form.model_copy(update={"part": part, "assumed": (*form.assumed, *assumed)})
    value = value if frame is None else frame
    if value == []:
        yield Problem("no rows", "at least one", "check the file: it holds an empty list, or nothing", name)
    elif isinstance(value, list):
        yield from (_object(item, f"{name}[{index}]") for index, item in enumerate(value))
    elif _is_columns(value):
        yield from _of_columns(value, name)
    else:
        yield _object(value, f"{name}:1")


def _part(value: Any, name: str, split: str, named_part: str, wanted: Collection[str]) -> tuple[str, Any]:
    """Return the key of the rows, with dots between the keys of nested objects, and the rows.

    Raises:
        DataError: There is no such key.
    """
    keys = list[str]()
    if named_part and isinstance(value, dict) and not _has_splits(value):
        keys = [named_part] if named_part in value else named_part.split(".")
        for key in keys:
            if not isinstance(value, dict) or key not in value:
                raise _no_splits(name, named_part, value)
            value = value[key]
    elif _has_splits(value):
        keys = [_split_key(value, name, split, named_part)]
        value = value[keys[0]]
    elif named_part:
        raise _no_splits(name, named_part)
    while (inner := _wrapping_key(value, wanted) or _envelope(value, wanted)) is not None:
        keys.append(inner)
        value = value[inner]
    return ".".join(keys), value


def _envelope(value: Any, wanted: Collection[str]) -> str | None:
    """Return the usual key under which an object with the rows is, as in ``{"data": {"clauses": […]}}``, or None."""
    if not isinstance(value, dict) or isinstance(value, _Repeating):
        return None
    inner = [str(key) for key, part in value.items() if key in _WRAPPERS and _wrapping_key(part, wanted) is not None]
    return inner[0] if len(inner) == 1 else None


def _has_splits(value: Any) -> bool:
    """Return True if an object has one key per split, whose values are lists of rows or objects around them."""
    if not isinstance(value, dict) or isinstance(value, _Repeating):
        return False
    known = {name for names in SPLIT_NAMES.values() for name in names}
    return bool(value) and all(str(key).lower() in known and _holds_rows(part) for key, part in value.items())


def _holds_rows(part: Any) -> bool:
    if isinstance(part, _Repeating):
        return True  # reported as such
    if isinstance(part, list):
        return all(isinstance(item, dict) for item in part)
    return isinstance(part, dict) and (_wrapping_key(part) is not None or _is_columns(part))


def _split_key(value: Mapping[str, Any], name: str, split: str, named_split: str) -> str:
    """Return the key of the requested split.

    Raises:
        DataError: There is no such split.
    """
    wanted = (named_split.lower(),) if named_split else SPLIT_NAMES.get(split, (split,))
    matches = [key for key in value if key.lower() in wanted]
    if matches:
        return matches[0]
    requested = named_split or split
    fix = did_you_mean(requested, value) or f"choose one: {name}#{next(iter(value))}"
    raise DataError(f"no split {requested!r}", expected=f"one of {', '.join(value)}", where=name, fix=fix)


def _wrapping_key(value: Any, wanted: Collection[str] = ()) -> str | None:
    """Return the key of the rows in an object such as ``{"version": 1, "data": […]}``, or None.

    Under another key than the usual ones, rows are a list of objects in an object that is not itself a row: it has none
    of the wanted columns, and one of its objects has.
    """
    if not isinstance(value, dict) or isinstance(value, _Repeating):
        return None
    lists = [str(key) for key, part in value.items() if isinstance(part, list)]
    rows = [key for key in lists if value[key] and isinstance(value[key][0], dict)]
    if len(rows) == 1 and (rows[0] in _WRAPPERS or len(value) == 1):
        return rows[0]
    if len(rows) == 1 and not set(wanted) & value.keys() and set(wanted) & value[rows[0]][0].keys():
        return rows[0]
    return lists[0] if len(lists) == 1 and lists[0] in _WRAPPERS and value[lists[0]] == [] else None


def _frame_rows(value: Any) -> list[Any] | None:
    """Return the rows of a data frame as pandas writes it with ``orient`` "split", "columns" or "index", or None."""
    if not isinstance(value, dict) or isinstance(value, _Repeating) or not value:
        return None
    columns, data = value.get("columns"), value.get("data")
    if isinstance(columns, list) and isinstance(data, list) and all(isinstance(row, list) for row in data):
        return [dict(zip(map(str, columns), row, strict=False)) for row in data]
    parts = list(value.values())
    if not all(isinstance(part, dict) and part for part in parts):
        return None
    if all(str(key).isdecimal() for key in value) and not all(str(key).isdecimal() for key in parts[0]):
        return parts  # orient="index"
    if any(part.keys() != parts[0].keys() for part in parts) or not all(str(key).isdecimal() for key in parts[0]):
        return None
    return [{column: part[number] for column, part in value.items()} for number in parts[0]]


def _is_columns(value: Any) -> bool:
    """Return True if an object holds columns, as ``Dataset.to_dict()`` does: a list of values under each key."""
    is_object = isinstance(value, dict) and not isinstance(value, _Repeating)
    return is_object and bool(value) and all(_is_values(part) for part in value.values())


def _is_values(part: Any) -> bool:
    return isinstance(part, list) and not any(isinstance(item, dict) for item in part)


def _of_columns(value: Mapping[str, list[Any]], name: str) -> Iterator[RawRow | Problem]:
    """Yield the rows of columns, numbered from 0."""
    lengths = {key: len(part) for key, part in value.items()}
    if len(set(lengths.values())) > 1:
        problem = "columns of different lengths: " + ", ".join(f"{key} {size}" for key, size in lengths.items())
        yield Problem(problem, "a value in every column for every row", "write one object per row", name)
        return
    if not any(lengths.values()):
        yield Problem("no rows", "at least one", "check the file: its columns are empty", name)
    for index, cells in enumerate(zip(*value.values(), strict=True)):
        yield f"{name}[{index}]", dict(zip(value, cells, strict=True))


def _objects(text: str, name: str) -> list[RawRow | Problem]:
    """Return consecutive objects that span several lines each (pretty-printed), or an empty list for any other text."""
    decoder = json.JSONDecoder(object_pairs_hook=_pairs)
    rows = list[RawRow | Problem]()
    at, line = 0, 1
    if not re.match(r"\s*\{\s*\n", text):
        return []
    while match := _NOT_SPACE.search(text, at):
        line += text.count("\n", at, match.start())
        try:
            value, at = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            return []
        rows.append(_object(value, f"{name}:{line}"))
        line += text.count("\n", match.start(), at)
    return rows
