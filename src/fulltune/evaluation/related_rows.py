"""Find rows that belong together by a column of their file or by their ids: one document, copies of one text."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fulltune.data.columns.roles import is_named, name_words
from fulltune.data.duplicates import fold
from fulltune.metrics.power import least_rows

#: Roles of :mod:`fulltune.data.columns.roles` whose columns group rows, and those with texts, of which equal ones
#: are copies of a row.
_GROUPS, _TEXTS = ("group", "db_id"), ("text", "question")

#: Roles of columns that describe rows, such as ``document_type``.
_DESCRIBING = ("metadata", "label")

#: Words of the former that name a group all the same, and those that do so beside the name of a group.
_FILES, _IDS = frozenset({"file", "filename", "path", "url"}), frozenset({"id", "ids", "uid", "key"})

#: Words for what several answers may be about, such as passages of one page.
_SUBJECTS = (
    frozenset({"problem", "task", "premise", "hypothesis", "context", "instruction", "messages", "subject", "product"})
    | {"movie", "film", "title", "chapter", "section", "paragraph", "page", "site", "hospital", "school", "recipe"}
    | {"repo", "repository", "issue", "song"}
)

#: Words for the number of an answer to one question, which rows of different questions share.
_REPEATS = frozenset({"sample", "seed", "run", "repeat", "trial", "attempt", "generation", "replicate"})

#: Ids with the name of a group and the number of a row in it: ``doc3-7``, ``q17/s2``, ``12#b``.
_NUMBERED = re.compile(r"(.+)[\W_]+(?:[a-z]{0,6}\d{1,6}|[a-z])", re.IGNORECASE)

#: Fraction of the rows that groups by ids may number: two rows each.
_MOST_BY_ID = 0.5

#: Fraction of the rows that groups may number; with more, hardly any rows belong together.
_MOST = 0.95


@dataclass(frozen=True)
class Related:
    """A column whose values several rows share.

    Attributes:
        column: Name of the column; empty if the ids begin with groups.
        groups: Its value on each row by id; empty for a row without one.
    """

    column: str
    groups: Mapping[str, str]

    @property
    def count(self) -> int:
        """Number of groups; a row without a value is one by itself."""
        return len({(group, "" if group else row) for row, group in self.groups.items()})


def related(
    ids: Sequence[str], rows: Sequence[Mapping[str, Any]], columns: Sequence[str], taken: Collection[str]
) -> Related | None:
    """Return the column by which rows belong together, or None.

    A column with the name of a group counts if rows share a value, one with the name of a text or of another id if it
    has as many values as a test needs groups: a few texts are rather templates of prompts than copies. Without such a
    column, ids that number the rows of a group count. Of several columns, that with the largest groups is returned.

    Args:
        ids: Id of each row.
        rows: The rows of the file.
        columns: Its columns.
        taken: Columns with a role: ids, targets, predictions, scores.
    """
    found = []
    for column in columns:
        least = _fewest(column)
        if column in taken or not least:
            continue
        one = Related(column, {key: _value(row.get(column)) for key, row in zip(ids, rows, strict=True)})
        if least <= one.count <= _MOST * len(ids):
            found.append(one)
    return min(found, key=lambda one: one.count, default=_by_id(ids))


def _by_id(ids: Sequence[str]) -> Related | None:
    """Return the groups that ids begin with, or None."""
    matches = {key: _NUMBERED.fullmatch(key) for key in ids}
    found = Related("", {key: match[1] if match else "" for key, match in matches.items()})
    return found if least_rows() <= found.count <= _MOST_BY_ID * len(ids) else None


def _fewest(column: str) -> int:
    """Return the fewest groups that a column of this name has; 0 if it has none."""
    words = name_words(column)
    if words & _FILES and not is_named(column, "label"):
        return 2
    named = " ".join(words - _IDS)
    if is_named(named, *_DESCRIBING) or words & _REPEATS:
        return 0
    if is_named(named, *_GROUPS):
        return 2
    of_subject = bool(words & _SUBJECTS or (words & _IDS and words - _IDS))
    return least_rows() if of_subject or is_named(named, *_TEXTS) else 0


def _value(value: Any) -> str:
    """Return a value such that copies of a text in another case, spacing or Unicode form are equal."""
    return "" if value is None or value != value else fold(str(value))
