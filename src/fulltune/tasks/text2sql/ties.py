"""Handle ties: rows with equal sort keys, which an ORDER BY leaves in any order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations, groupby
from typing import Any

from fulltune.tasks.text2sql.comparison import rows_match
from fulltune.tasks.text2sql.normalize import parsed, rendered

Rows = Sequence[tuple[Any, ...]]

#: Largest number of aliases inside sort expressions whose meaning is tried.
_MOST_ALIASES = 4


def with_ranks(sql: str, width: int) -> Iterator[str]:
    """Yield queries for the same rows with an additional last column: the rank by the outermost ORDER BY.

    SQLite itself compares the keys, so that collations are respected. Rows are sorted by rank; rows of equal rank are
    in any order. The first query that runs is right: a name inside an expression, as in ``ORDER BY -x``, is a column if
    there is one, and otherwise an alias, so that queries with fewer aliases come first.

    Args:
        sql: The query.
        width: Number of its columns.

    Yields:
        The queries; none without such an ORDER BY, for a compound of several SELECTs, or if it cannot be parsed.
    """
    from sqlglot import exp

    tree = parsed(sql)
    if not isinstance(tree, exp.Select) or not tree.args.get("order"):
        return
    aliases = {column.alias.lower(): column for column in tree.expressions if isinstance(column, exp.Alias)}
    used = _used(tree.args["order"].expressions, aliases)[:_MOST_ALIASES]
    for count in range(len(used) + 1):
        for chosen in combinations(used, count):
            ranked = _with_ranks(tree, width, {name: aliases[name].unalias() for name in chosen})
            if ranked is not None:
                yield ranked


def _used(terms: Iterable[Any], names: Iterable[str]) -> list[str]:
    """Return those names that occur in sort terms as columns without a table."""
    from sqlglot import exp

    found = {column.name.lower() for term in terms for column in term.find_all(exp.Column) if not column.table}
    return [name for name in names if name in found]


def _with_ranks(tree: Any, width: int, aliases: Mapping[str, Any]) -> str | None:
    """Return the query with ranks in which these names inside expressions are aliases; None if it is too deep."""
    from sqlglot import exp

    keys = list[Any]()
    terms = list[Any]()
    for term in tree.args["order"].expressions:
        inner, collation = _without_collation(term.this)
        position = _position(inner)
        if position is None:
            name = f"sort key {len(keys)}"
            key = _collated(_key(inner, tree.expressions, aliases), collation)
            keys.append(exp.alias_(key, name, quoted=True))
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


def _key(term: Any, columns: Sequence[Any], aliases: Mapping[str, Any]) -> Any:
    """Return the expression of a sort term, which may be the alias of a column, or contain some of ``aliases``."""
    from sqlglot import exp

    if isinstance(term, exp.Column) and not term.table:
        aliased = [column for column in columns if isinstance(column, exp.Alias)]
        matches = [column for column in aliased if column.alias.lower() == term.name.lower()]
        return (matches[0].unalias() if matches else term).copy()

    def expanded(node: Any) -> Any:
        is_alias = isinstance(node, exp.Column) and not node.table and node.name.lower() in aliases
        return exp.paren(aliases[node.name.lower()].copy()) if is_alias else node

    return term.copy().transform(expanded)


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
    rows = next(filter(None, map(run, with_ranks(sql, width))), ())
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
