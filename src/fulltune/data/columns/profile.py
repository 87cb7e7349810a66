"""Describe the columns of a table by their values: texts, labels, ids, dates, numbers, lists, queries."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from fulltune.data.label_values import indicator, parse_list
from fulltune.data.values import is_blank, well_formed

#: Kinds of columns, by their values.
#:
#: ``text``: long varied strings; ``short text``: varied strings of a few words; ``category``: few repeated values;
#: ``repeated``: values that occur several times, but too many of them to be classes; ``labels``: several categories
#: per cell; ``tokens`` and ``tags``: two lists of the same length per row.
ColumnKind = Literal[
    "text", "short text", "category", "repeated", "labels", "id", "date", "URL", "number", "constant", "empty",
    "SQL", "tokens", "tags", "messages", "vector", "list", "object",
]  # fmt: skip

#: Number of rows that are enough to describe a column.
SAMPLE = 20_000

#: Fraction of the values that must match a pattern, because real columns have exceptions.
_MOST = 0.9

#: Mean number of words from which varied strings are texts.
_TEXT_WORDS = 4.0

#: Longest mean of words of a category.
_CATEGORY_WORDS = 8.0

#: Mean number of rows per value from which values count as repeated categories; fewer rows are compared with 2.
_PER_CATEGORY, _FEW_ROWS = 3, 40

_URL = re.compile(r"(?:https?://|www\.)\S+", re.IGNORECASE)
_DATE = re.compile(
    r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}(?:[T ].*)?|\d{1,2}[-/.] ?\d{1,2}[-/.] ?\d{2,4}(?: .*)?|\d{1,2}:\d{2}(?::\d{2})?"
)
_NUMBER = re.compile(
    r"[-+]?[$€£]? ?\d{1,3}(?:[ ,.\u00a0]\d{3})*(?:[.,]\d+)? ?%?|[-+]?\d+(?:[.,]\d+)?(?:[eE][-+]?\d+)? ?%?"
)
_INTEGER = re.compile(r"[-+]?\d{1,4}(?:\.0)?")
_SQL = re.compile(r"\(*\s*(?:SELECT|WITH)\s.*(?:\bFROM\b|\(|\*|\d).*", re.IGNORECASE | re.DOTALL)
#: One word with a digit, an e-mail address or a hexadecimal hash.
_ID = re.compile(r"\S*\d\S*|\S+@\S+\.\w+|[0-9a-f-]{8,}", re.IGNORECASE)
_TAG = re.compile(r"O|[BIESLU][-_].+")
_SEPARATORS = ("|", ";", ",", "/")


@dataclass(frozen=True)
class Profile:
    """Contents of one column.

    Attributes:
        name: Name of the column.
        kind: Kind of its values.
        filled: Number of values that are neither missing nor blank.
        rows: Number of rows.
        distinct: Number of distinct values; of a column with several labels per cell, the number of labels.
        words: Mean number of words of a value.
        examples: The most frequent values if they are repeated, else the first ones.
        counts: Rows with each of the examples.
        separator: Separator of the labels in a cell of text, if there are several.
        runs: Fraction of the rows whose value is that of the row before.
        largest: Fraction of the rows with the most frequent value.
    """

    name: str
    kind: ColumnKind
    filled: int
    rows: int
    distinct: int = 0
    words: float = 0.0
    examples: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    separator: str = ""
    runs: float = 0.0
    largest: float = 0.0

    @property
    def is_numeric(self) -> bool:
        """True for a category whose values are written as numbers."""
        return self.kind == "category" and all(_INTEGER.fullmatch(value) for value in self.examples)

    def to_dict(self) -> dict[str, Any]:
        """Return the facts that messages and JSON show."""
        return {
            "name": well_formed(self.name),
            "kind": self.kind,
            "rows": self.filled,
            "distinct": self.distinct,
            "example": well_formed(self.examples[0]) if self.examples else "",
        }


def holds(column: Profile) -> str:
    """Return what a column holds as a phrase for messages: its kind, distinct values and an example."""
    if column.kind in ("empty", "object", "messages"):
        return {"empty": "no values", "object": "objects", "messages": "chats"}[column.kind]
    example = f", such as {_short(column.examples[0])}" if column.examples else ""
    return f"{column.kind}, {column.distinct:,} distinct in {column.filled:,} rows{example}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= 40 else f"{line[:39]}…")


def profiles(rows: Iterable[Mapping[str, Any]]) -> tuple[Profile, ...]:
    """Describe every column of some rows, in the order in which they first occur."""
    columns = dict[str, list[Any]]()
    size = 0
    for size, row in enumerate(rows, start=1):
        for name, value in row.items():
            column = columns.setdefault(name, [])
            column += [None] * (size - 1 - len(column))
            column.append(value)
    return _paired([profile(name, values + [None] * (size - len(values))) for name, values in columns.items()], columns)


def profile(name: str, values: Sequence[Any]) -> Profile:
    """Describe one column by the values of all rows."""
    filled = [value for value in values if not _is_missing(value)]
    empty = Profile(name, "empty", len(filled), len(values))
    if not filled:
        return empty
    lists = [value for value in map(_as_list, filled) if value is not None]
    if len(lists) >= _MOST * len(filled):
        return _of_lists(empty, [value for value in lists if value])
    if sum(isinstance(value, Mapping) for value in filled) >= _MOST * len(filled):
        return replace(empty, kind="object")
    return _of_texts(empty, [_spelled(value) for value in filled])


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and is_blank(value)) or value != value


def _as_list(value: Any) -> list[Any] | None:
    if isinstance(value, (list, tuple)):
        return list(value)
    return parse_list(value) if isinstance(value, str) and value[:1] in "[{(" else None


def _spelled(value: Any) -> str:
    return value.strip() if isinstance(value, str) else str(value)


# ---- Columns of strings and numbers ----


def _of_texts(empty: Profile, values: Sequence[str]) -> Profile:
    counts = Counter(values)
    words = sum(len(value.split()) for value in values[:2000]) / len(values[:2000])
    repeated = len(counts) < len(values)
    shown = [value for value, _ in counts.most_common(50)] if repeated else list(values[:3])
    profile = replace(
        empty,
        distinct=len(counts),
        words=words,
        examples=tuple(shown),
        counts=tuple(counts[value] for value in shown),
        runs=sum(one == other for one, other in pairwise(values)) / len(values),
        largest=counts.most_common(1)[0][1] / len(values),
    )
    separated = _separated(profile, values, counts)
    return separated or replace(profile, kind=_kind(profile, values, counts))


def _kind(profile: Profile, values: Sequence[str], counts: Counter[str]) -> ColumnKind:
    if len(counts) == 1 and len(values) > 1:
        return "constant"
    patterns: Sequence[tuple[ColumnKind, re.Pattern[str]]] = (("URL", _URL), ("date", _DATE), ("SQL", _SQL))
    for kind, pattern in patterns:
        if _share(pattern, values) >= _MOST:
            return kind
    if _share(_NUMBER, values) >= _MOST:
        return "category" if _share(_INTEGER, values) == 1 and _are_classes(counts) else "number"
    if profile.words <= _CATEGORY_WORDS and _is_repeated(counts):
        return "category" if len(counts) <= 1000 else "repeated"
    is_unspaced = _is_unspaced(values)
    if profile.words < 1.5 and not is_unspaced and (_share(_ID, values) >= _MOST or len(counts) == len(values) > 2):
        return "repeated" if 2 * len(counts) <= len(values) else "id"
    if 2 * len(counts) <= len(values) and profile.words <= 2 * _CATEGORY_WORDS:
        return "repeated"
    return "text" if profile.words >= _TEXT_WORDS or is_unspaced else "short text"


def _share(pattern: re.Pattern[str], values: Sequence[str]) -> float:
    """Return the fraction of (the first) values that match a pattern."""
    head = values[:2000]
    return sum(pattern.fullmatch(value) is not None for value in head) / len(head)


def _is_repeated(counts: Counter[str]) -> bool:
    """Return True if each value occurs several times on average, and most values more than once."""
    total = sum(counts.values())
    often = 2 if total <= _FEW_ROWS else _PER_CATEGORY
    return total >= often * len(counts)


def _are_classes(counts: Counter[str]) -> bool:
    """Return True if whole numbers are class numbers or grades: few of them, each several times."""
    return len(counts) <= 100 and _is_repeated(counts)


def _is_unspaced(values: Sequence[str]) -> bool:
    """Return True for texts in scripts without spaces between words."""
    head = values[:200]
    wide = [sum("\u3040" <= sign <= "\u9fff" or "\u0e00" <= sign <= "\u0eff" for sign in value) for value in head]
    return sum(wide) >= 8 * len(head)


def _separated(profile: Profile, values: Sequence[str], counts: Counter[str]) -> Profile | None:
    """Return the description of a column with several labels per cell, or None."""
    if profile.words > 3 * _CATEGORY_WORDS:
        return None
    for sign in _SEPARATORS:
        cells = [[part.strip() for part in value.split(sign) if part.strip()] for value in values]
        several = [cell for cell in cells if len(cell) > 1]
        if len(several) < max(2, 0.03 * len(cells)):
            continue
        parts = Counter(part for cell in cells for part in dict.fromkeys(cell))
        words = sum(len(part.split()) * count for part, count in parts.items()) / parts.total()
        later = {part for cell in several for part in cell[1:]}
        # In an address or a name the first part never comes second; labels have no fixed places.
        others = {cell[0] for cell in cells} & later
        if words <= 4 and _is_repeated(parts) and 3 * len(others) >= len(later) and not _is_number(parts):
            shown = parts.most_common(50)
            return replace(
                profile,
                kind="labels",
                distinct=len(parts),
                examples=tuple(part for part, _ in shown),
                counts=tuple(count for _, count in shown),
                separator=sign,
            )
    return None


def _is_number(parts: Counter[str]) -> bool:
    return all(_NUMBER.fullmatch(part) for part in parts)


# ---- Columns of lists ----


def _of_lists(empty: Profile, lists: Sequence[Sequence[Any]]) -> Profile:
    items = [item for value in lists for item in value]
    if not items:
        return empty
    if all(isinstance(item, Mapping) for item in items):
        is_chat = all({"role", "content"} <= item.keys() or {"from", "value"} <= item.keys() for item in items)
        return replace(empty, kind="messages" if is_chat else "list")
    sizes = {len(value) for value in lists}
    if len(sizes) == 1 and sizes != {1} and all(indicator(item) is not None for item in items):
        return replace(empty, kind="vector", distinct=len(lists[0]), examples=(str(list(lists[0]))[:60],))
    texts = [_spelled(item) for item in items]
    counts = Counter(texts)
    words = sum(len(text.split()) for text in texts) / len(texts)
    shown = counts.most_common(50)
    profile = replace(
        empty,
        distinct=len(counts),
        words=words,
        examples=tuple(text for text, _ in shown),
        counts=tuple(count for _, count in shown),
    )
    is_labels = words <= _CATEGORY_WORDS and _is_repeated(counts)
    return replace(profile, kind="labels" if is_labels else "list")


def _paired(parts: Sequence[Profile], columns: Mapping[str, Sequence[Any]]) -> tuple[Profile, ...]:
    """Return the descriptions with tokens and tags: two columns of lists that have the same length in every row."""
    lists = [one for one in parts if one.kind in ("labels", "list") and not one.separator]
    for tags in lists:
        if not all(_TAG.fullmatch(text) for text in tags.examples):
            continue
        for tokens in lists:
            if tokens is not tags and _same_lengths(columns[tokens.name], columns[tags.name]):
                kinds: dict[str, ColumnKind] = {tokens.name: "tokens", tags.name: "tags"}
                return tuple(replace(one, kind=kinds.get(one.name, one.kind)) for one in parts)
    return tuple(parts)


def _same_lengths(one: Sequence[Any], other: Sequence[Any]) -> bool:
    pairs = [(_as_list(a), _as_list(b)) for a, b in zip(one[:1000], other[:1000], strict=False)]
    return all(len(a or ()) == len(b or ()) for a, b in pairs)
