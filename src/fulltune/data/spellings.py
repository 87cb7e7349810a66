"""Audit the spelling of labels: variants of one label, missing values, joined labels."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from fulltune.data.duplicates import fold
from fulltune.data.findings import LISTED, ExampleLike, Finding, Level, quoted, rows, shorten, some
from fulltune.data.values import is_padded, is_padding
from fulltune.errors import abridged
from fulltune.runtime.alphabetical import in_order

#: Ids of the rows with each label, over all splits.
Places = Mapping[str, Sequence[str]]

_NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?")
#: Notations for missing values: those that are hardly ever classes (warning), and those that may be (info).
_MISSING: Mapping[str, Level] = {
    **dict.fromkeys(("nan", "null", "n/a", "#n/a", "<na>", "nat", "nil", "undefined"), "warning"),
    **dict.fromkeys(("none", "na", "missing"), "info"),
}
#: Separators that may join the labels of one cell, and a 0/1 vector written as one label.
_JOINTS = ("|", ";", ",", "\t", "\n", "/", "+", "&")
_VECTOR = re.compile(r"[\[(]?\s*[01](\.0?)?([\s,;|]*[01](\.0?)?)+\s*[\])]?")


def places(*splits: Sequence[ExampleLike]) -> Places:
    """Return the ids of the rows with each label."""
    ids: dict[str, list[str]] = defaultdict(list)
    for examples in splits:
        for example in examples:
            for label in (example.target,) if isinstance(example.target, str) else example.target:
                ids[label].append(example.id)
    return ids


def key(label: str) -> str:
    """Return what all spellings of a label have in common.

    This is :func:`~fulltune.data.duplicates.fold`, without quotes around the label and punctuation after it, with ``_``
    and ``-`` as spaces, and with numbers by value.
    """
    text = fold(label)
    if _NUMBER.fullmatch(text):
        whole, _, fraction = text.lstrip("+-").partition(".")
        value = f"{whole.lstrip('0') or '0'}.{fraction.rstrip('0')}"
        return f"-{value}" if text[0] == "-" and value != "0." else value
    if len(text) > 2 and text[0] == text[-1] and text[0] in "'\"`":
        text = text[1:-1].strip()
    text = text.rstrip(".,;:! ") or text
    return re.sub(r"(?<=\w)[-_\s]+(?=\w)", " ", text)


def without_padding(label: str) -> str:
    """Return a label in Unicode's form NFC, without invisible characters at its ends, and with single spaces."""
    text = unicodedata.normalize("NFC", label)
    start = next((place for place, character in enumerate(text) if not is_padding(character)), len(text))
    end = next((place for place in range(len(text), start, -1) if not is_padding(text[place - 1])), start)
    return " ".join(text[start:end].split())


def merge_key(label: str) -> str:
    """Return what the spellings have in common that ``data.merge_labels`` merges; :func:`key` ignores more."""
    return unicodedata.normalize("NFC", without_padding(label).lower())


def spelling_findings(rows_of: Places, several: bool) -> Iterator[Finding]:
    """Yield findings about suspicious spellings of labels; no labels are merged or changed.

    Args:
        rows_of: Ids of the rows with each label.
        several: True if a row may have several labels.
    """
    yield from _similar(rows_of)
    yield from _padded(rows_of)
    yield from _missing(rows_of)
    yield from _mixed(rows_of)
    if not several:
        yield from _joined(rows_of)
        yield from _vectors(rows_of)


def similar_to(label: str, others: Iterable[str]) -> str | None:
    """Return the label among others that differs from this one only in its spelling, or None."""
    return next((other for other in others if other != label and key(other) == key(label)), None)


def spelled(labels: Sequence[str]) -> list[str]:
    """Return the labels in quotes, with escape codes for non-ASCII characters if two labels would look alike."""
    plain = {" ".join(label.casefold().split()) for label in labels}
    look_alike = len(plain) > len(set(map(fold, labels)))
    return [shorten(ascii(label) if look_alike else repr(label)) for label in labels]


def similar_groups(rows_of: Places) -> list[list[str]]:
    """Return the labels with several spellings: their spellings, the most frequent one first."""
    groups: dict[str, list[str]] = defaultdict(list)
    for label in sorted(rows_of, key=lambda label: (-len(rows_of[label]), label)):
        groups[key(label)].append(label)
    return [group for group in groups.values() if len(group) > 1]


def _similar(rows_of: Places) -> Iterator[Finding]:
    alike = similar_groups(rows_of)
    if not alike:
        return
    shown = [variants(group, rows_of) for group in alike[:LISTED]]
    key_merges, fix = _way_to_merge(alike)
    yield _finding(
        "similar_labels",
        f"{_labels(len(alike), 'is', 'are')} spelled in several ways, each a separate label{key_merges}: "
        f"{abridged(shown)}",
        [name for group in alike for label in group[1:] for name in rows_of[label]],
        fix=fix,
        details={
            "spellings": [{label: len(rows_of[label]) for label in group} for group in alike[:LISTED]],
            "written": len(rows_of),
            "distinct": len(rows_of) - sum(len(group) - 1 for group in alike),
        },
    )


def _way_to_merge(alike: Sequence[Sequence[str]]) -> tuple[str, str]:
    """Return what ``data.merge_labels`` would do to labels of several spellings, in brackets, and the fix."""
    rest = [group for group in alike if len(set(map(merge_key, group))) > 1]
    usual, *others = spelled((rest or alike)[0])
    in_data = f"merge them in the data if they mean the same: write {usual} for {' and '.join(others)}"
    if not rest:
        return " (data.merge_labels: true merges them)", f"set data.merge_labels: true, or {in_data}"
    if len(rest) < len(alike):
        fix = f"set data.merge_labels: true; other spellings than in case and whitespace: {in_data}"
        return f" (data.merge_labels: true merges {len(alike) - len(rest)} of them)", fix
    return "", in_data


def variants(labels: Sequence[str], rows_of: Places) -> str:
    """Return the spellings of one label, each with its number of rows and their first ids."""
    parts = []
    for name, label in zip(spelled(labels), labels, strict=True):
        ids = rows_of[label]
        parts.append(f"{name} ({rows(len(ids))}: {_first(ids)})")
    return " and ".join(parts)


def _padded(rows_of: Places) -> Iterator[Finding]:
    padded = [label for label in in_order(rows_of) if is_padded(label)]
    if padded:
        yield _finding(
            "padded_labels",
            f"{_labels(len(padded), 'has', 'have')} whitespace or invisible characters at an end "
            f"(data.merge_labels: true removes them): {quoted(padded, ascii)}",
            [name for label in padded for name in rows_of[label]],
            fix="set data.merge_labels: true, or remove them in the data: labels are learned, saved and compared as "
            "they are written",
            details={"labels": padded[:LISTED]},
        )


def _missing(rows_of: Places) -> Iterator[Finding]:
    for label in in_order(rows_of):
        if level := _MISSING.get(label.strip().casefold()):
            yield _finding(
                "missing_labels",
                f"{rows(len(rows_of[label]), 'have')} the label {label!r}, which often stands for a missing value",
                rows_of[label],
                fix="fill it in or remove the rows, unless this is a class",
                level=level,
            )


def _mixed(rows_of: Places) -> Iterator[Finding]:
    numbers = [label for label in in_order(rows_of) if _NUMBER.fullmatch(label.strip())]
    texts = [label for label in in_order(rows_of) if label not in numbers]
    if not numbers or not texts:
        return
    fewer = min(numbers, texts, key=lambda labels: sum(len(rows_of[label]) for label in labels))
    yield _finding(
        "mixed_labels",
        f"{_labels(len(numbers), 'is a number', 'are numbers')} ({quoted(numbers)}), and "
        f"{_labels(len(texts), 'is text', 'are text')} ({quoted(texts)})",
        [name for label in fewer for name in rows_of[label]],
        fix="write all labels in one way; data.label_names gives numbers their names",
    )


def _joined(rows_of: Places) -> Iterator[Finding]:
    """Yield a finding about labels whose parts are also labels, or parts of other labels."""
    for joint in _JOINTS:
        parts = {label: {part.strip() for part in label.split(joint)} for label in in_order(rows_of)}
        counts = Counter(part for own in parts.values() for part in own)
        joined = [label for label, own in parts.items() if len(own) > 1 and all(counts[part] > 1 for part in own)]
        if joined:
            yield _finding(
                "joined_labels",
                f"{_labels(len(joined), 'looks', 'look')} like several joined by {joint!r}, each learned as a label of "
                f"its own: {quoted(joined)}",
                [name for label in joined for name in rows_of[label]],
                fix=f"to read several labels per row, name their column in data.labels and set "
                f"data.label_separator: {joint!r}",
            )


def _vectors(rows_of: Places) -> Iterator[Finding]:
    digits = {re.sub(r"\.0?|[^01]", "", label) for label in rows_of if _VECTOR.fullmatch(label.strip())}
    vectors = len(rows_of) > 1 and len(digits) == len(rows_of) and len(set(map(len, digits))) == 1
    if vectors and any(not label.strip().isdigit() or label.strip().startswith("0") for label in rows_of):
        yield _finding(
            "vector_labels",
            f"all labels look like 0/1 vectors, each learned as a label of its own: {quoted(rows_of)}",
            [name for ids in rows_of.values() for name in ids],
            fix="to read several labels per row, name their column in data.labels and the classes in data.label_names",
        )


def _finding(
    kind: str,
    message: str,
    ids: Sequence[str],
    fix: str,
    level: Level = "warning",
    details: Mapping[str, object] | None = None,
) -> Finding:
    rest = {"count": len(ids), "ids": some(ids), "details": dict(details or {})}
    return Finding(kind=kind, level=level, message=message, fix=fix, **rest)


def _labels(count: int, one: str, many: str) -> str:
    return f"{count} label {one}" if count == 1 else f"{count} labels {many}"


def _first(ids: Sequence[str]) -> str:
    return ", ".join(ids[:3]) + (" …" if len(ids) > 3 else "")
