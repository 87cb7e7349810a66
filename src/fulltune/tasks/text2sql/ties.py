"""Handle ties: rows with equal sort keys, which an ORDER BY leaves in any order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from fulltune.tasks.text2sql.comparison import rows_match
from fulltune.tasks.text2sql.normalize import parsed, rendered

Rows = Sequence[tuple[Any, ...]]


def with_ranks(sql: str, width: int) -> str | None:
    """Return a query for the same rows with an additional last column: the rank by the outermost ORDER BY.

    SQLite itself compares the keys, so that collations are respected. Rows are sorted by rank; rows of equal rank are
    in any order.

    Args:
        sql: The query.
        width: Number of its columns.

    Returns:
        The query, or None without such an ORDER BY, for a compound of several SELECTs, or if it cannot be parsed.
    """
    from sqlglot import exp

    tree = parsed(sql)
    if not isinstance(tree, exp.Select) or not tree.args.get("order"):
        return None
    keys = list[Any]()
    terms = list[Any]()
    for term in tree.args["order"].expressions:
        inner, collation = _without_collation(term.this)
        position = _position(inner)
        if position is None:
            name = f"sort key {len(keys)}"
            keys.append(exp.alias_(_key(inner, tree.expressions, collation), name, quoted=True))
        else:
            name = f"column {position}"
        ranked = term.copy()
        ranked.set("this", _collated(exp.column(exp.to_identifier(name, quoted=True)), collation))
        terms.append(rendered(ranked))
    inside = rendered(tree.select(*keys, copy=True))
    if inside is None or None in terms:
        return None
    columns = ", ".join(f'"column {number}"' for number in range(1, width + 1))
    names = ", ".join([columns, *(f'"sort key {number}"' for number in range(len(keys)))])
    rank = f'dense_rank() OVER (ORDER BY {", ".join(terms)}) AS "rank of row"'
    return (
        f'WITH "sorted rows"({names}) AS ({inside}) SELECT {columns}, {rank} FROM "sorted rows" ORDER BY "rank of row"'
    )


def _without_collation(term: Any) -> tuple[Any, Any]:
    from sqlglot import exp

    return (term.this, term.expression) if isinstance(term, exp.Collate) else (term, None)


def _collated(key: Any, collation: Any) -> Any:
    from sqlglot import exp

    return exp.Collate(this=key, expression=collation.copy()) if collation is not None else key


def _position(term: Any) -> int | None:
    """Return the column number, from 1, if a sort term is one, otherwise None."""
    from sqlglot import exp

    is_number = isinstance(term, exp.Literal) and not term.is_string and str(term.this).isdigit()
    return int(term.this) if is_number else None


def _key(term: Any, columns: Sequence[Any], collation: Any) -> Any:
    """Return the expression of a sort term, which may be the alias of a column."""
    from sqlglot import exp

    if isinstance(term, exp.Column) and not term.table:
        aliased = [column for column in columns if isinstance(column, exp.Alias)]
        matches = [column for column in aliased if column.alias.lower() == term.name.lower()]
        term = matches[0].unalias() if matches else term
    return _collated(term.copy(), collation)


def match_but_for_ties(sql: str, gold: Rows, predicted: Rows, run: Callable[[str], Rows]) -> bool:
    """Return True if the predicted rows are in the order of the reference query, up to rows with equal sort keys.

    Args:
        sql: The reference query.
        gold: Its rows.
        predicted: Predicted rows.
        run: Function that runs a query and returns its rows, none if it fails.
    """
    if len(gold) != len(predicted) or not gold:
        return False
    width = len(gold[0])
    ranked = with_ranks(sql, width)
    rows = list(run(ranked)) if ranked is not None else []
    if len(rows) != len(gold):
        return False
    start = 0
    for _, group in groupby(rows, key=lambda row: row[width]):
        tied = [row[:width] for row in group]
        end = start + len(tied)
        # Use the ranks only if the extended query returns the same rows as the reference query.
        if not all(rows_match(tied, other[start:end], ordered=False) for other in (gold, predicted)):
            return False
        start = end
    return True
