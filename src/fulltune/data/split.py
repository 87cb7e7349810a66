"""One table to two, so that nothing in the one is a near copy of what is in the other."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fulltune.data.duplicates import clusters, normalize
from fulltune.data.load import Table
from fulltune.errors import DataError

#: Roles that hold what the model reads, first found first taken.
_INPUTS = ("text", "source", "question", "prompt", "completion")


def input_text(fields: Mapping[str, Any]) -> str:
    """What the model reads of a row; of an empty prompt, what it learns to say."""
    return next((str(fields[role]) for role in _INPUTS if fields.get(role)), "")


def split_table(
    table: Table,
    share: float,
    *,
    groups: str | None = None,
    stratify: str | None = None,
    seed: int = 17,
    name: str = "eval",
    spare: bool = False,
) -> tuple[Table, Table]:
    """Hold a share of the rows out.

    Rows of one group stay together: those that share the value of the ``groups`` role, else those that are the same or
    near copies of each other. Groups are drawn by systematic sampling: ordered by their rarest label, then by a seeded
    hash of their content, every ``1 / share``-th row falls into the held-out part, so each label gives its share. No
    label is held out whole: one that a single group has stays in the rest. The draw depends on the rows and the seed,
    not on the order of the rows.

    Args:
        table: What to split.
        share: Of the rows, 0 to 1; met as nearly as the groups allow.
        groups: A role (``group``), or None for clusters of near copies.
        stratify: A role (``label`` or ``labels``) whose values should be spread alike, or None.
        seed: Another seed, another draw.
        name: What the held-out part is for (``eval`` or ``valid``), for the message.
        spare: Leave a group in the rest that can be held out of it in turn without taking a label whole.

    Returns:
        The rest and the held-out part, each in the order of ``table``. The problems stay with the rest.

    Raises:
        DataError: There are fewer than two groups.
    """
    members = _members(table, groups)
    if len(members) < 2:
        raise _too_few(table, groups, name)
    held = _draw([_Group.of(table, rows, stratify, seed) for rows in members], share, spare)
    rest_rows = tuple(row for number, row in enumerate(table) if number not in held)
    held_rows = tuple(row for number, row in enumerate(table) if number in held)
    percent = f"{share:.4g} held out of {table.source}"
    return replace(table, rows=rest_rows), Table(percent, held_rows, label_kind=table.label_kind)


@dataclass(frozen=True)
class _Group:
    """Rows that stay together: their numbers, their labels, and a seeded hash of their content."""

    rows: tuple[int, ...]
    labels: frozenset[str]
    lot: str

    @classmethod
    def of(cls, table: Table, rows: Sequence[int], stratify: str | None, seed: int) -> _Group:
        """Make a group. Its least row stands for its content, so the order of the rows does not matter."""
        values = [table[number].fields.get(stratify, ()) for number in rows] if stratify else []
        labels = frozenset(label for value in values for label in ([value] if isinstance(value, str) else value))
        content = min(normalize(input_text(table[number].fields)) for number in rows)
        return cls(tuple(rows), labels, hashlib.sha256(f"{seed}:{content}".encode()).hexdigest())


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


def _draw(groups: Sequence[_Group], share: float, spare: bool) -> set[int]:
    """Return the numbers of the rows to hold out: at least one group, never all."""
    counts = Counter(label for group in groups for label in group.labels)
    ordered = sorted(groups, key=lambda group: (_rarest(group, counts), group.lot))
    # A label of one group would be lost to the rest.
    free = [group for group in ordered if all(counts[label] > 1 for label in group.labels)] or ordered
    size = sum(len(group.rows) for group in groups)
    rate = min(1.0, share * size / sum(len(group.rows) for group in free))
    held, due = list[_Group](), 0.0
    for group in free:
        due += rate * len(group.rows)
        if 2 * due >= len(group.rows):
            held.append(group)
            due -= len(group.rows)
    if not held:
        held.append(min(free, key=lambda group: len(group.rows)))
    elif len(held) == len(groups):
        held.remove(min(held, key=lambda group: len(group.rows)))
    held = _without_whole_labels(held, groups)
    if spare and len(held) > 1 and not _has_spare([group for group in groups if group not in held]):
        held.remove(min(held, key=lambda group: len(group.rows)))
    return {number for group in held for number in group.rows}


def _without_whole_labels(held: Sequence[_Group], groups: Sequence[_Group]) -> list[_Group]:
    """Return the held-out groups without those that alone can give the rest a label, small ones first; one at least
    is left.
    """
    kept = list(held)
    rest = {label for group in groups if group not in held for label in group.labels}
    for group in sorted(held, key=lambda group: len(group.rows)):
        if not group.labels <= rest and len(kept) > 1:
            kept.remove(group)
            rest |= group.labels
    return kept


def _has_spare(groups: Sequence[_Group]) -> bool:
    """Check whether a group could be taken away and every label would still be there."""
    counts = Counter(label for group in groups for label in group.labels)
    return any(all(counts[label] > 1 for label in group.labels) for group in groups)


def _rarest(group: _Group, counts: Mapping[str, int]) -> str:
    """Return the group's label that the fewest groups have."""
    return min(group.labels, key=lambda label: (counts[label], label), default="")


def _too_few(table: Table, groups: str | None, name: str) -> DataError:
    rows = f"{len(table)} row{'s' if len(table) != 1 else ''}"
    if groups is not None:
        found = f"{rows} with a single value in the group column"
        fix = f"choose another data.group, or name a file in data.{name}"
    elif len(table) < 2:
        found, fix = f"{rows} to split", f"add rows, or name a file in data.{name}"
    else:
        found = f"all {rows} are near copies of each other"
        fix = f"add other rows, name a file in data.{name}, or set data.group to a column that tells them apart"
    return DataError(found, expected="at least two groups of rows, to hold one out", where=table.source, fix=fix)
