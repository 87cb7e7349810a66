"""One table to two, so that nothing in the one is a near copy of what is in the other."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fulltune.data.duplicates import clusters, normalise
from fulltune.data.load import Table
from fulltune.errors import DataError

#: Roles that hold what the model reads, first found first taken.
_INPUTS = ("text", "source", "question", "prompt", "completion")


def input_text(fields: Mapping[str, Any]) -> str:
    """What the model reads of a row; of an empty prompt, what it learns to say."""
    return next((str(fields[role]) for role in _INPUTS if fields.get(role)), "")


def split_table(
    table: Table, share: float, *, groups: str | None = None, stratify: str | None = None, seed: int = 17
) -> tuple[Table, Table]:
    """Hold a share of the rows out.

    Rows of one group stay together: those that share the value of the ``groups`` role, else those that are the same or
    near copies of each other. Groups are drawn by systematic sampling: ordered by their most frequent label, then by a
    seeded hash of their content, every ``1 / share``-th row falls into the held-out part, so each label gives its
    share. The draw depends on the rows and the seed, not on the order of the rows.

    Args:
        table: What to split.
        share: Of the rows, 0 to 1; met as nearly as the groups allow.
        groups: A role (``group``), or None for clusters of near copies.
        stratify: A role (``label`` or ``labels``) whose values should be spread alike, or None.
        seed: Another seed, another draw.

    Returns:
        The rest and the held-out part, each in the order of ``table``. The problems stay with the rest.

    Raises:
        DataError: There are fewer than two groups.
    """
    members = _members(table, groups)
    if len(members) < 2:
        raise _too_few(table, groups)
    held = _draw(table, members, share, stratify, seed)
    rest_rows = tuple(row for number, row in enumerate(table) if number not in held)
    held_rows = tuple(row for number, row in enumerate(table) if number in held)
    percent = f"{share:.4g} held out of {table.source}"
    return replace(table, rows=rest_rows), Table(percent, held_rows, label_kind=table.label_kind)


def _members(table: Table, groups: str | None) -> list[list[int]]:
    """Row numbers of each group."""
    if groups is not None:
        keys: Sequence[Any] = [row.fields[groups] for row in table]
    else:
        keys = clusters([input_text(row.fields) for row in table])
    members: dict[Any, list[int]] = defaultdict(list)
    for number, key in enumerate(keys):
        members[key].append(number)
    return list(members.values())


def _draw(table: Table, members: list[list[int]], share: float, stratify: str | None, seed: int) -> set[int]:
    """Row numbers to hold out: at least one group, never all."""
    ordered = sorted(members, key=lambda group: (_stratum(table, group, stratify), _lot(table, group, seed)))
    held, rest, due = list[list[int]](), list[list[int]](), 0.0
    for group in ordered:
        due += share * len(group)
        if 2 * due >= len(group):
            held.append(group)
            due -= len(group)
        else:
            rest.append(group)
    if not held:
        held.append(min(rest, key=len))
    elif not rest:
        held.remove(min(held, key=len))
    return {number for group in held for number in group}


def _stratum(table: Table, group: list[int], stratify: str | None) -> str:
    if stratify is None:
        return ""
    counts = Counter(str(table[number].fields.get(stratify)) for number in group)
    return min(counts, key=lambda label: (-counts[label], label))


def _lot(table: Table, group: list[int], seed: int) -> str:
    """A seeded hash of the group's content. Its least row stands for it, so the order of the rows does not matter."""
    content = min(normalise(input_text(table[number].fields)) for number in group)
    return hashlib.sha256(f"{seed}:{content}".encode()).hexdigest()


def _too_few(table: Table, groups: str | None) -> DataError:
    rows = f"{len(table)} row{'s' if len(table) != 1 else ''}"
    if groups is not None:
        found = f"{rows} with a single value in the group column"
        fix = "choose another data.group, or name a file in data.eval"
    elif len(table) < 2:
        found, fix = f"{rows} to split", "add rows, or name a file in data.eval"
    else:
        found = f"all {rows} are near copies of each other"
        fix = "add other rows, name a file in data.eval, or set data.group to a column that tells them apart"
    return DataError(found, expected="at least two groups of rows, to hold one out", where=table.source, fix=fix)
