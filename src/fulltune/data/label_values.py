"""Parse values of a label column: names, numbers, lists in several notations, and 0/1 vectors."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fulltune.data.spellings import merge_key
from fulltune.data.values import clean_text, describe
from fulltune.errors import DataError, Problem

#: An element of a list in Python's or numpy's notation: quoted text, a number, a Boolean or none.
_QUOTED = r"'(?:[^'\\]|\\['\"\\])*'|\"(?:[^\"\\]|\\['\"\\])*\""
_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
_BARE = rf"{_NUMBER}|True|False|None|nan|null|true|false"
_ELEMENT = re.compile(f"{_QUOTED}|{_BARE}")
_COMMAS = re.compile(rf"\s*(?:(?:{_QUOTED}|{_BARE})\s*(?:,\s*(?:{_QUOTED}|{_BARE})\s*)*,?\s*)?")
_SPACES = re.compile(rf"\s*(?:{_QUOTED}|{_BARE})(?:\s+(?:{_QUOTED}|{_BARE}))*\s*")
_WRAPPED = re.compile(r"(?:np\.|numpy\.)?(?:array|tensor)\((.*?)(?:,\s*(?:dtype|device)=[^()]*)?\)", re.DOTALL)
_SCALAR = re.compile(r"(?:np|numpy)\.\w+\(([^()]*)\)")
_BRACKETS = {"[": "]", "(": ")", "{": "}"}
_CONSTANTS: Mapping[str, Any] = {
    "True": True,
    "true": True,
    "False": False,
    "false": False,
    "None": None,
    "null": None,
    "nan": float("nan"),
}
#: Spellings of the two values of an indicator vector.
_INDICATORS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
#: Separators in a vector without brackets.
_BETWEEN = re.compile(r"[\s,;|]+")


def parse_list(text: str) -> list[Any] | None:
    """Return the list that a cell contains in JSON, Python or numpy notation, or None for any other text.

    Only unambiguous notations are accepted: ``[a, b]`` without quotes gives None.
    """
    text = text.strip()
    if wrapped := _WRAPPED.fullmatch(text):
        text = wrapped[1].strip()
    if text[:1] not in _BRACKETS or text[-1:] != _BRACKETS[text[0]]:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return _elements(_SCALAR.sub(r"\1", text)[1:-1])
    return value if isinstance(value, list) else None


def _elements(body: str) -> list[Any] | None:
    if _COMMAS.fullmatch(body) or _SPACES.fullmatch(body):
        return [_element(token) for token in _ELEMENT.findall(body)]
    return None


def _element(token: str) -> Any:
    if token[0] in "'\"":
        return re.sub(r"\\(.)", r"\1", token[1:-1])
    if token in _CONSTANTS:
        return _CONSTANTS[token]
    return int(token) if re.fullmatch(r"[-+]?\d+", token) else float(token)


def indicator(value: Any) -> bool | None:
    """Return the truth value of 0, 1, 0.0, 1.0, True, False or their spellings, or None for anything else."""
    return _INDICATORS.get(str(value).strip().lower()) if isinstance(value, bool | int | float | str) else None


def _number(value: Any) -> bool:
    text = value.strip() if isinstance(value, str) else ""
    return isinstance(value, int | float) or indicator(value) is not None or re.fullmatch(_NUMBER, text) is not None


def kind_of_label(value: Any) -> str:
    """Return ``"text"``, ``"a number"`` or ``"numbers and text"`` (a list of both); ``""`` for no value."""
    if isinstance(value, list):
        kinds = {kind for item in value if (kind := kind_of_label(item))}
        return "numbers and text" if len(kinds) > 1 else next(iter(kinds), "")
    if value is None:
        return ""
    return "a number" if isinstance(value, int | float) else "text"


@dataclass(frozen=True)
class LabelReader:
    """Parser for the values of one label column.

    Attributes:
        column: Name of the column.
        several: True if a row has a list of labels.
        names: Names of the classes in the order of their numbers, or None.
        separator: Separator of the labels in one cell, or None.
        may_be_empty: True if a row may have no label.
        merges: True if other spellings of the names are accepted, which are merged afterwards.
    """

    column: str
    several: bool
    names: tuple[str, ...] | None = None
    separator: str | None = None
    may_be_empty: bool = False
    merges: bool = False

    def parsed(self, value: Any) -> Any:
        """Return the value; a list in text notation is returned as a list."""
        if not isinstance(value, str):
            return list(value) if isinstance(value, tuple | set) else value
        # "(1)" can be the name of a class; "['a', 'b']" cannot.
        listed = parse_list(value) if self.several or value.lstrip().startswith("[") else None
        if listed is not None or not self.several:
            return value if listed is None else listed
        if self.separator is not None:
            return [part for item in value.split(self.separator) if (part := item.strip())]
        return self._bare_vector(value)

    def _bare_vector(self, value: str) -> Any:
        """Return ``0 1 0`` or ``0,1,0`` as a list if each value has a class name, otherwise the text itself."""
        parts = _BETWEEN.split(value.strip())
        is_vector = self.names is not None and len(parts) == len(self.names) > 1
        return parts if is_vector and all(indicator(part) is not None for part in parts) else value

    def read(self, value: Any) -> str | list[str] | Problem:
        """Return the label or list of labels of a parsed value, or a :class:`Problem` without a position."""
        if self.several:
            return self._list(value)
        if isinstance(value, list):
            fix = f"set `data.labels: {self.column}` to read several labels per row, or write one label"
            return Problem(f"{describe(value)} ({_short(value)})", "one label", fix)
        if value is None:
            return Problem("nothing (the column is missing or null)", "a value", "fill it in, or remove the row")
        return self._named(value) if self.names is not None else label_name(value)

    def _list(self, value: Any) -> list[str] | Problem:
        if not isinstance(value, list):
            return Problem(describe(value), "a list of labels", self._advice(value))
        if not value and not self.may_be_empty:
            return Problem("an empty list", "at least one label", "fill it in, or remove the row")
        if kind_of_label(value) == "numbers and text":
            problem = f"numbers and text in one list ({_short(value)})"
            return Problem(problem, "labels written in one way", "write all labels as text, or all as numbers")
        if self.names is not None:
            return self._indicated(value, self.names)
        labels = [_name_in_list(item) for item in value]
        bad = next((label for label in labels if isinstance(label, Problem)), None)
        if bad:
            nested = any(isinstance(item, list | Mapping) for item in value)
            return Problem(
                f"{bad.found} in the list", "a list of labels", 'write one flat list: ["a", "b"]' if nested else bad.fix
            )
        return list(dict.fromkeys(str(label) for label in labels))

    def _advice(self, value: Any) -> str:
        written = 'write a JSON list: ["a", "b"]'
        if value is None or value == "":
            return "write [] if the row has no label, or remove the row"
        if not isinstance(value, str | int):
            return written
        separator = next((sign for sign in "|;," if isinstance(value, str) and sign in value), "")
        if separator:
            return f"set `data.label_separator: '{separator}'` if that separates labels, or {written}"
        return f"{written}, or set `data.label: {self.column}` if each row has one label"

    def _indicated(self, value: list[Any], names: tuple[str, ...]) -> list[str] | Problem:
        if all(item in names or self._is_spelling(item) for item in value):
            return list(dict.fromkeys(value))
        holds = [indicator(item) for item in value]
        if len(value) == len(names) and None not in holds:
            return [name for name, held in zip(names, holds, strict=True) if held]
        expected = f"{len(names)} values of 0 or 1, or names of data.label_names ({_listed(names)})"
        return Problem(f"{describe(value)} ({_short(value)})", expected, "correct the row, or data.label_names")

    def _named(self, value: Any) -> str | Problem:
        """Return the class name of a number, or a name that is one of ``data.label_names``.

        If a name is a number itself (ratings from 1 to 5), every number is a name, in all formats alike.
        """
        names = self.names or ()
        if isinstance(value, str) and value.strip() in names:
            return value.strip()
        if self._is_spelling(value):
            return str(value)
        number = _whole(value)
        has_numbers = any(_whole(name) is not None for name in names)
        if has_numbers and number is not None:
            named = next((name for name in names if _whole(name) == number), None)
            if named is not None:
                return named
        elif number is not None and 0 <= number < len(names):
            return names[number]
        expected = f"one of data.label_names ({_listed(names)})"
        expected += "" if has_numbers else f", or its number (0 to {len(names) - 1})"
        return Problem(describe(value), expected, "correct the row, or data.label_names")

    @cached_property
    def _name_keys(self) -> frozenset[str]:
        """The keys of the names that all of their spellings share; cached because every row asks."""
        return frozenset(map(merge_key, self.names or ()))

    def _is_spelling(self, value: Any) -> bool:
        """Return True for another spelling of a name, which is merged with it afterwards."""
        return self.merges and isinstance(value, str) and merge_key(value) in self._name_keys

    def wrong_separator(self, lists: Sequence[tuple[str, list[Any]]]) -> Problem | None:
        """Return a problem if ``data.label_separator`` occurs in no cell, but another one does.

        Args:
            lists: The position of each row, and its parsed value.
        """
        if self.separator is None or any(len(row) > 1 for _, row in lists):
            return None
        counts = {sign: sum(sign in str(item) for _, row in lists for item in row) for sign in "|;,/" if lists}
        sign = max(counts, key=lambda one: counts[one], default="")
        if not sign or not counts[sign] or sign == self.separator:
            return None
        problem = f"{self.separator!r} separates no labels, but {sign!r} occurs in {counts[sign]} of {len(lists)} cells"
        fix = f"set `data.label_separator: '{sign}'` if that separates labels, or remove data.label_separator"
        return Problem(problem, "the separator of the cells", fix, field="data.label_separator")

    def vectors(self, lists: Sequence[tuple[str, list[Any]]]) -> Problem | None:
        """Return a problem if the lists of a column are 0/1 vectors (or other vectors of numbers) without names.

        A column has vectors if most rows are lists of numbers that repeat a value, which lists of labels do not, or if
        all lists consist of zeros and ones and have the same length.

        Args:
            lists: The position of each row, and its parsed value.
        """
        rows = [(where, row) for where, row in lists if row]
        long = [(where, row) for where, row in rows if len(row) > 1 and all(map(_number, row))]
        if self.names is not None or not long or 2 * len(long) < len(rows):
            return None
        lengths = sorted({len(row) for _, row in rows})
        binary = all(indicator(item) is not None for _, row in long for item in row)
        repeated = sum(len(set(map(str, row))) < len(row) for _, row in long)
        if not (binary and (repeated or len(lengths) == 1)) and 2 * repeated < len(long):
            return None
        where, example = long[0]
        size = str(lengths[0]) if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
        what = "0/1 vectors" if binary else "vectors of numbers"
        fix = "write the names of the labels that hold in each row"
        if binary:
            fix = f"name the classes in their order in `data.label_names: [first, second, …]`, or {fix}"
            fix += "" if len(lengths) == 1 else "; all vectors must have the same length"
        problem = f"{what} of {size} values in {len(long)} of {len(lists)} rows ({where}: {_short(example)})"
        return Problem(problem, 'lists of label names, like ["a", "c"]', fix, field=self.column)


def label_name(value: Any) -> str | Problem:
    """Return a label as written; numbers become text: whole ones as ``1``, since JSON writes 1 and 1.0 for the same."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # and -0.0 as 0, 1e16 as all of its digits
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    if not isinstance(value, str):
        fix = "write it as text, or name the classes in their order in data.label_names"
        return Problem(describe(value), "text or a whole number", fix)
    return clean_text(value)


def _name_in_list(value: Any) -> str | Problem:
    """Return a label of a list as written; real numbers in lists are measurements, not labels."""
    if isinstance(value, float) and math.isfinite(value) and not value.is_integer():
        return Problem(describe(value), "text or a whole number", "write the names of the labels")
    return label_name(value)


#: Largest number of different real numbers that can be classes, such as ratings in half stars.
_MOST_REALS = 20


def with_whole_numbers(labels: Sequence[str], field: str) -> Sequence[str]:
    """Return the labels of a column; if all are numbers, ``1.0`` is written as ``1``, in all formats and splits.

    Raises:
        DataError: The labels are real numbers, not classes.
    """
    if not all(re.fullmatch(_NUMBER, label) for label in labels) or all(map(str.isdecimal, labels)):
        return labels
    reals = sorted({label for label in labels if not float(label).is_integer()}, key=float)
    if len(reals) > _MOST_REALS:
        raise DataError(
            f"{len(reals)} different real numbers in {len(labels)} labels (such as {', '.join(reals[:3])})",
            expected="the names of classes",
            fix="replace the numbers by classes, for example low, medium and high between thresholds",
            field=field,
        )
    return [_without_zeros(label) for label in labels]


def _without_zeros(number: str) -> str:
    """Return a number without a fraction of zeros, and zero without a sign."""
    text = re.sub(r"\.0*$", "", number)
    return "0" if text in ("-0", "+0", "") else text


def _whole(value: Any) -> int | None:
    """Return 2 for 2, 2.0, ``"2"`` and ``"2.0"``, −2 likewise, 0 and 1 for Booleans, and None for anything else."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, int):
        return int(value)
    text = value.strip() if isinstance(value, str) else ""
    return int(text.split(".")[0]) if re.fullmatch(r"-?\d{1,9}(\.0*)?", text) else None


def _short(value: list[Any]) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
