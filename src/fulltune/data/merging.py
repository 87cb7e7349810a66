"""Merge labels that differ only in case, whitespace and Unicode normal form (``data.merge_labels``)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fulltune.data.findings import LISTED, Finding, some
from fulltune.data.load import Row, Table
from fulltune.data.spellings import Places, merge_key, variants, without_padding
from fulltune.errors import abridged

#: Roles of labels: one per row, or a list.
_ROLES = ("label", "labels")


def merged(table: Table, train: Table | None = None, label_names: Sequence[str] = ()) -> Table:
    """Return a table whose labels have one spelling each.

    A label is named as the config names it, or else as most of its rows write it, without blanks at its ends. Names
    come from train, so that what other splits write changes none of them.

    Args:
        table: The rows.
        train: The merged rows of train; None if ``table`` is train.
        label_names: Names in the config (``data.label_names``).
    """
    ids = label_places(table)
    known = {merge_key(label): label for label in label_places(train)} if train is not None else {}
    names = _names(ids) | known | {merge_key(label): label for label in label_names}
    changed = defaultdict[str, dict[str, tuple[str, ...]]](dict)
    for label in sorted(ids, key=lambda label: (-len(ids[label]), label)):
        changed[names[merge_key(label)]][label] = tuple(ids[label])
    changes = {name: written for name, written in changed.items() if set(written) != {name}}
    if not changes:
        return table
    return replace(table, rows=tuple(_renamed(row, names) for row in table), merged=changes)


def label_places(table: Table) -> Places:
    """Return the ids of the rows with each label."""
    ids = defaultdict[str, list[str]](list)
    for row in table:
        for label in _labels(row.fields):
            ids[label].append(row.id)
    return ids


def _labels(fields: Mapping[str, Any]) -> list[str]:
    value: Any = next((fields[role] for role in _ROLES if role in fields), [])
    return [value] if isinstance(value, str) else list(value)


def _names(ids: Places) -> dict[str, str]:
    """Return the most frequent spelling of each label, by what its spellings have in common."""
    counts = Counter[str]()
    for label, rows in ids.items():
        counts[without_padding(label)] += len(rows)
    ranked = sorted(counts, key=lambda label: (counts[label], label))
    return {merge_key(label): label for label in ranked}


def _renamed(row: Row, names: Mapping[str, str]) -> Row:
    fields = dict(row.fields)
    if "label" in fields:
        fields["label"] = names[merge_key(fields["label"])]
    if "labels" in fields:
        fields["labels"] = list(dict.fromkeys(names[merge_key(label)] for label in fields["labels"]))
    return replace(row, fields=fields)


def merge_findings(tables: Sequence[Mapping[str, Mapping[str, Sequence[str]]]]) -> Iterator[Finding]:
    """Yield a finding about the labels that were merged: the ``merged`` of all tables."""
    changes = combined(tables)
    if not changes:
        return
    renamed = [ids for name, written in changes.items() for label, ids in written.items() if label != name]
    changed = [row for ids in renamed for row in ids]
    count = f"{len(changes)} label{'s' * (len(changes) != 1)}"
    yield Finding(
        kind="merged_labels",
        level="info",
        message=f"data.merge_labels gives {count} one spelling: {abridged(merge_phrases(changes))}",
        count=len(changed),
        ids=some(changed),
        details={
            "merged": {
                name: {label: len(ids) for label, ids in written.items()}
                for name, written in list(changes.items())[:LISTED]
            }
        },
    )


def combined(tables: Sequence[Mapping[str, Mapping[str, Sequence[str]]]]) -> dict[str, dict[str, list[str]]]:
    """Return the changes of several tables as one: name → spelling → ids of its rows."""
    changes = defaultdict[str, dict[str, list[str]]](dict)
    for table in tables:
        for name, written in table.items():
            for label, ids in written.items():
                changes[name].setdefault(label, []).extend(ids)
    return dict(changes)


def merge_phrases(changes: Mapping[str, Mapping[str, Sequence[str]]]) -> list[str]:
    """Return a phrase for each merged label: its spellings with their rows, and its name."""
    return [f"{variants(list(written), written)} as {name!r}" for name, written in changes.items()]
