"""Rows that an ORDER BY leaves in any order: those with equal sort keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from fulltune.tasks.text2sql.comparison import rows_match
from fulltune.tasks.text2sql.normalise import parsed, rendered

Rows = Sequence[tuple[Any, ...]]


def with_sort_keys(sql: str) -> str | None:
    """Return the query with its outermost sort keys as further columns, after its own.

    None when it has no such ORDER BY, is a compound of several SELECTs, or cannot be parsed.
    """
    from sqlglot import exp

    tree = parsed(sql)
    if not isinstance(tree, exp.Select) or not tree.args.get("order"):
        return None
    columns = list(tree.expressions)
    keys = [_key(term.this, columns) for term in tree.args["order"].expressions]
    if any(key is None for key in keys):
        return None
    named = [exp.alias_(key, f"sort key {number}", quoted=True) for number, key in enumerate(keys)]
    return rendered(tree.select(*named, copy=True))


def _key(term: Any, columns: Sequence[Any]) -> Any:
    """The expression behind a sort term, which may be the position or the alias of a column; None behind a star."""
    from sqlglot import exp

    if isinstance(term, exp.Literal) and not term.is_string:
        place = int(term.this) - 1 if str(term.this).isdigit() else -1
        before = columns[: place + 1]
        known = 0 <= place < len(columns) and not any(column.is_star for column in before)
        return columns[place].unalias().copy() if known else None
    if isinstance(term, exp.Column) and not term.table:
        aliased = [column for column in columns if isinstance(column, exp.Alias)]
        found = [column for column in aliased if column.alias.lower() == term.name.lower()]
        return (found[0].unalias() if found else term).copy()
    return term.copy()


def match_but_for_ties(sql: str, gold: Rows, predicted: Rows, run: Callable[[str], Rows]) -> bool:
    """Return whether the predicted rows are in the order of the gold query, rows with equal sort keys in any order.

    Args:
        sql: The gold query.
        gold: Its rows.
        predicted: As many rows.
        run: Runs a query and returns its rows; none when it fails.
    """
    extended = with_sort_keys(sql)
    if extended is None or len(gold) != len(predicted) or not gold:
        return False
    width, rows = len(gold[0]), list(run(extended))
    # The keys belong to these rows only if the query returns the same with them.
    if [row[:width] for row in rows] != list(gold):
        return False
    start = 0
    for _, group in groupby(rows, key=lambda row: row[width:]):
        end = start + len(list(group))
        if not rows_match(gold[start:end], predicted[start:end], ordered=False):
            return False
        start = end
    return True
