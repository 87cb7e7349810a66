"""Split one table into two so that neither has a near duplicate of a row in the other."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fulltune.data.duplicates import clusters, normalize
from fulltune.data.load import Table
from fulltune.errors import DataError, Problem

#: Roles of the model's input; the first one that a row has is used.
_INPUTS = ("text", "source", "question", "prompt", "completion")


def input_text(fields: Mapping[str, Any]) -> str:
    """Return the input text of a row; for an empty prompt, the completion."""
    return next((str(fields[role]) for role in _INPUTS if fields.get(role)), "")


def split_table(
    table: Table,
    fraction: float,
    *,
    groups: str | None = None,
    stratify: str | None = None,
    seed: int = 17,
    name: str = "eval",
    spare: bool = False,
) -> tuple[Table, Table]:
    """Hold out a fraction of the rows.

    Rows of one group stay together: those with the same value of the ``groups`` role, by default those that are equal
    or near duplicates. Groups are drawn by systematic sampling: sorted by their rarest label, then by a seeded hash of
    their content, every ``1 / fraction``-th row is held out, so that each label is held out at that rate. Of texts in
    folders, each folder is, unless ``groups`` is given. No label is held out completely: a label that only one group
    has stays in the rest. The draw depends on the rows and the seed, not on the order of the rows.

    Args:
        table: The table to split.
        fraction: Fraction of the rows, 0 to 1; approximated as closely as the groups allow.
        groups: A role (``group``), or None for clusters of near duplicates.
        stratify: A role (``label`` or ``labels``) for stratification, or None.
        seed: Seed of the draw.
        name: Purpose of the held-out part (``eval`` or ``valid``), for messages.
        spare: Keep a group in the rest that can in turn be held out of it without removing a label completely.

    Returns:
        The rest and the held-out part, each in the order of ``table``. The problems stay with the rest.

    Raises:
        DataError: There are fewer than two groups.
    """
    members = _members(table, groups)
    if len(members) < 2:
        raise _too_few(table, groups, name)
    drawn = [_Group.of(table, rows, stratify, seed, by_folder=groups is None) for rows in members]
    held_out = _draw(drawn, fraction, spare)
    rest_rows = tuple(row for number, row in enumerate(table) if number not in held_out)
    held_out_rows = tuple(row for number, row in enumerate(table) if number in held_out)
    source = f"{fraction:.4g} held out of {table.source}"
    return replace(table, rows=rest_rows), Table(source, held_out_rows, label_kind=table.label_kind, files=table.files)


def fold_tables(
    table: Table, folds: int, *, groups: str | None = None, stratify: str | None = None, seed: int = 17
) -> list[tuple[Table, Table]]:
    """Divide the rows into folds, and return the rest and the fold for each of them.

    Rows of one group stay together, as in :func:`split_table`. Groups are dealt in the order of their rarest label,
    each to the fold with the fewest rows of that label, so that all folds have all labels at about the same rate, and
    all folders, as in :func:`split_table`. A label that only one group has stays in the rest: no model could have
    learned it.

    Args:
        table: The rows.
        folds: Number of folds.
        groups, stratify, seed: As in :func:`split_table`.

    Raises:
        DataError: There are fewer groups than folds.
    """
    members = [_Group.of(table, rows, stratify, seed, by_folder=groups is None) for rows in _members(table, groups)]
    counts = Counter(label for group in members for label in group.labels)
    free = [group for group in members if all(counts[label] > 1 for label in group.labels)]
    if len(free) < folds:
        raise _too_few_for_folds(table, groups, len(free), folds)
    dealt = _deal(free, counts, folds)
    pairs = []
    for number, chosen in enumerate(dealt, start=1):
        rest = tuple(row for place, row in enumerate(table) if place not in chosen)
        fold = tuple(row for place, row in enumerate(table) if place in chosen)
        source = f"fold {number} of {folds} of {table.source}"
        pairs.append((replace(table, rows=rest), Table(source, fold, label_kind=table.label_kind, files=table.files)))
    return pairs


def _deal(groups: Sequence[_Group], counts: Mapping[str, int], folds: int) -> list[set[int]]:
    """Return the numbers of the rows of each fold; no fold is empty."""
    dealt = [set[int]() for _ in range(folds)]
    of_label = [Counter[str]() for _ in range(folds)]
    for group in sorted(groups, key=lambda group: (_rarest(group, counts), group.folder, -len(group.rows), group.lot)):
        label = _rarest(group, counts)
        place = min(range(folds), key=lambda fold: (of_label[fold][label], len(dealt[fold]), fold))
        dealt[place].update(group.rows)
        of_label[place][label] += len(group.rows)
    return dealt


def _too_few_for_folds(table: Table, groups: str | None, count: int, folds: int) -> DataError:
    kind = "values of the group column" if groups else "rows without near duplicates"
    return DataError(
        f"{count} {kind} for {folds} folds",
        expected=f"at least {folds}, without those that alone have a label",
        where=table.source,
        fix=f"lower data.folds to {count} or less" if count >= 2 else "bring more rows, and remove data.folds",
        field="data.folds",
    )


@dataclass(frozen=True)
class _Group:
    """Rows that stay together: their numbers and labels, and seeded hashes of their content and folder."""

    rows: tuple[int, ...]
    labels: frozenset[str]
    folder: str
    lot: str

    @classmethod
    def of(
        cls, table: Table, rows: Sequence[int], stratify: str | None, seed: int, *, by_folder: bool = False
    ) -> _Group:
        """Create a group. Its smallest text represents its content, so the order of the rows does not matter.

        The folder is hashed so that it depends on the seed which of many small folders are held out.
        """
        values = [table[number].fields.get(stratify, ()) for number in rows] if stratify else []
        labels = frozenset(label for value in values for label in ([value] if isinstance(value, str) else value))
        content = min(normalize(input_text(table[number].fields)) for number in rows)
        folder = min(table[number].folder for number in rows) if by_folder else ""
        return cls(tuple(rows), labels, _hash(seed, folder), _hash(seed, content))


def _hash(seed: int, text: str) -> str:
    return hashlib.sha256(f"{seed}:{text}".encode()).hexdigest()


def _members(table: Table, groups: str | None) -> list[list[int]]:
    """Return the row numbers of each group."""
    if groups is not None:
        keys: Sequence[Any] = [row.fields[groups] for row in table]
    else:
        keys = clusters([input_text(row.fields) for row in table])
    members: dict[Any, list[int]] = defaultdict(list)
    for number, key in enumerate(keys):
        members[key].append(number)
    return list(members.values())


def _draw(groups: Sequence[_Group], fraction: float, spare: bool) -> set[int]:
    """Return the numbers of the rows to hold out: at least one group, never all."""
    counts = Counter(label for group in groups for label in group.labels)
    ordered = sorted(groups, key=lambda group: (_rarest(group, counts), group.folder, group.lot))
    # A label of only one group must stay in the rest.
    free = [group for group in ordered if all(counts[label] > 1 for label in group.labels)] or ordered
    size = sum(len(group.rows) for group in groups)
    rate = min(1.0, fraction * size / sum(len(group.rows) for group in free))
    held_out = list[_Group]()
    due = 0.0
    for group in free:
        due += rate * len(group.rows)
        if 2 * due >= len(group.rows):
            held_out.append(group)
            due -= len(group.rows)
    if not held_out:
        held_out.append(min(free, key=lambda group: len(group.rows)))
    elif len(held_out) == len(groups):
        held_out.remove(min(held_out, key=lambda group: len(group.rows)))
    held_out = _without_complete_labels(held_out, groups)
    if spare and len(held_out) > 1 and not _has_spare([group for group in groups if group not in held_out]):
        held_out.remove(min(held_out, key=lambda group: len(group.rows)))
    return {number for group in held_out for number in group.rows}


def _without_complete_labels(held_out: Sequence[_Group], groups: Sequence[_Group]) -> list[_Group]:
    """Return the held-out groups without those that have all rows of a label, smallest first; at least one is left."""
    kept = list(held_out)
    rest = {label for group in groups if group not in held_out for label in group.labels}
    for group in sorted(held_out, key=lambda group: len(group.rows)):
        if not group.labels <= rest and len(kept) > 1:
            kept.remove(group)
            rest |= group.labels
    return kept


def _has_spare(groups: Sequence[_Group]) -> bool:
    """Return True if a group can be removed without losing a label."""
    counts = Counter(label for group in groups for label in group.labels)
    return any(all(counts[label] > 1 for label in group.labels) for group in groups)


def _rarest(group: _Group, counts: Mapping[str, int]) -> str:
    """Return the group's label that the fewest groups have."""
    return min(group.labels, key=lambda label: (counts[label], label), default="")


def _too_few(table: Table, groups: str | None, name: str) -> DataError:
    rows = f"{len(table)} row{'s' if len(table) != 1 else ''}"
    if groups is not None:
        problem = f"{rows} with a single value in the group column"
        fix = f"choose another data.group, or name a file in data.{name}"
    elif len(table) < 2:
        problem = f"{rows} to split"
        fix = f"add rows, or name a file in data.{name}"
    else:
        problem = f"all {rows} are near duplicates of each other"
        fix = f"add other rows, name a file in data.{name}, or set data.group to a column that distinguishes them"
    few = Problem(problem, "at least two groups of rows, to hold one out", fix, table.source)
    return DataError([few, *table.problems])
