"""Find values of a predicted query that occur neither in its question nor in the column they are compared with."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fulltune.errors import abridged
from fulltune.tasks.text2sql import normalize
from fulltune.tasks.text2sql.stored_values import quoted

if TYPE_CHECKING:
    from fulltune.tasks.text2sql.execution import Results

#: Numbers that queries need without a question naming them.
_COMMON = frozenset({0.0, 1.0})
#: Factors by which a question may write a number: percent, thousand, million, billion.
_FACTORS = (1.0, 0.01, 1e3, 1e6, 1e9)
_NUMBER = re.compile(r"\d+(?:[,.'’ \u00a0\u202f]\d{3})+(?!\d)(?:\.\d+)?|\d+(?:[.,]\d+)?")
_SEPARATORS = re.compile(r"[,'’ \u00a0\u202f]|\.(?=\d{3}(?:\D|$))")
_WORD = re.compile(r"\w+")
#: Number of values that a warning names.
_SHOWN = 3


@dataclass(frozen=True)
class Literal:
    """A value that a query compares with a column.

    Attributes:
        value: A text or a number.
        table: Name or alias of the table, empty if the query names none.
        column: Name of the column.
        kind: ``equal``, ``pattern`` (LIKE, GLOB), or ``order`` (less than, BETWEEN): no value of the column is needed.
    """

    value: str | float
    table: str
    column: str
    kind: str

    @property
    def written(self) -> str:
        return f"'{self.value}'" if isinstance(self.value, str) else f"{self.value:.15g}"


@dataclass
class Compared:
    """The values that a query compares with columns.

    Attributes:
        literals: The values.
        tables: Names of the tables by their names and aliases in lowercase; subqueries may repeat an alias.
    """

    literals: list[Literal] = field(default_factory=list)
    tables: dict[str, set[str]] = field(default_factory=dict)

    def tables_of(self, literal: Literal) -> set[str]:
        """Return the tables that may have the column of a value."""
        if literal.table:
            return self.tables.get(literal.table.lower(), set())
        return set().union(*self.tables.values())


def warning(results: Results, database: str | Path, question: str, query: str) -> str:
    """Return which values of a query occur neither in the question nor in their column; empty if there are none.

    Texts are compared without regard to case, numbers by their value. Values that are compared with anything but a
    column (a count, a function) and the numbers 0 and 1 are not examined, and neither is a query that cannot be parsed.

    Args:
        results: Runs the queries that look up values, within its time limit.
        database: The SQLite file.
        question: The question, and whatever else a user has stated.
        query: The predicted query.
    """
    columns = _Columns(results, str(database))
    found = compared(query, columns.is_name)
    missing = dict[str, None]()
    for literal in found.literals:
        if is_stated(literal, question):
            continue
        places = [
            (table, column)
            for table in sorted(found.tables_of(literal))
            if (column := columns.named(table, literal.column))
        ]
        if places and not any(columns.may_hold(table, column, literal) for table, column in places):
            missing[f"{literal.written} ({places[0][0]}.{places[0][1]})"] = None
    if not missing:
        return ""
    verb = "occurs" if len(missing) == 1 else "occur"
    return f"{abridged(list(missing), _SHOWN)} {verb} neither in the question nor in the column"


def compared(query: str, is_name: Any = lambda table, name: True) -> Compared:
    """Return the values that a query compares with columns.

    Args:
        query: The query.
        is_name: Function from tables and a name in double quotes to whether a table has such a column; SQLite reads it
            as a text otherwise.
    """
    from sqlglot import exp

    tree = normalize.parsed(query)
    if tree is None:
        return Compared()
    found = Compared()
    for table in tree.find_all(exp.Table):
        for name in {table.name, table.alias_or_name}:
            found.tables.setdefault(name.lower(), set()).add(table.name)
    every = set().union(*found.tables.values()) if found.tables else set()
    for kind, column, value in _pairs(tree):
        for one, other in ((column, value), (value, column)):
            side = _column(one)
            literal = _value(other, lambda name: any(is_name(table, name) for table in every))
            if side is not None and literal is not None and literal not in _COMMON:
                found.literals.append(Literal(literal, side.table, side.name, kind))
                break
    return found


def _pairs(tree: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the sides of all comparisons of a query."""
    from sqlglot import exp

    for node in tree.find_all(exp.EQ, exp.NEQ, exp.Is):
        yield "equal", node.this, node.expression
    for node in tree.find_all(exp.Like, exp.ILike, exp.Glob):
        yield "pattern", node.this, node.expression
    for node in tree.find_all(exp.GT, exp.GTE, exp.LT, exp.LTE):
        yield "order", node.this, node.expression
    for node in tree.find_all(exp.Between):
        yield "order", node.this, node.args["low"]
        yield "order", node.this, node.args["high"]
    for node in tree.find_all(exp.In):
        for value in node.expressions:
            yield "equal", node.this, value


def _column(node: Any) -> Any:
    """Return the column that a side of a comparison is, apart from its case, type and collation; otherwise None."""
    from sqlglot import exp

    while isinstance(node, (exp.Lower, exp.Upper, exp.Trim, exp.Cast, exp.Collate, exp.Paren)):
        node = node.this
    return node if isinstance(node, exp.Column) and not isinstance(node.this, exp.Star) else None


def _value(node: Any, is_name: Any) -> str | float | None:
    """Return the text or number that a side of a comparison is, otherwise None."""
    from sqlglot import exp

    while isinstance(node, (exp.Lower, exp.Upper, exp.Trim, exp.Cast, exp.Collate, exp.Paren)):
        node = node.this
    sign = 1.0
    if isinstance(node, exp.Neg):
        node, sign = node.this, -1.0
    if isinstance(node, exp.Literal):
        return str(node.this) if node.is_string else _number(str(node.this), sign)
    is_text = isinstance(node, exp.Column) and not node.table and node.this.args.get("quoted")
    return str(node.name) if is_text and not is_name(node.name) else None


def _number(text: str, sign: float = 1.0) -> float | None:
    try:
        return sign * float(text)
    except ValueError:  # a hexadecimal number
        return None


def is_stated(literal: Literal, question: str) -> bool:
    """Return True if a value occurs in a question: the words of a text in their order, or a number."""
    if isinstance(literal.value, float):
        return _has_number(question, abs(literal.value))
    words = _WORD.findall(literal.value.casefold().replace("_", " " if literal.kind == "pattern" else "_"))
    asked = _WORD.findall(question.casefold())
    if not words or " ".join(words) in " ".join(asked):
        return True
    number = _number(literal.value)
    if number is not None:
        return _has_number(question, abs(number))
    # A limit such as '2010-01-01' need not be written as in the question.
    return literal.kind == "order" and any(word.isdigit() and word in asked for word in words)


def _has_number(question: str, number: float) -> bool:
    for match in _NUMBER.finditer(question):
        written = match.group()
        readings = {_SEPARATORS.sub("", written), written.replace(",", ".")}
        for value in filter(None, map(_number, readings)):
            if any(abs(value * factor - number) <= 1e-9 * number for factor in _FACTORS):
                return True
    return False


class _Columns:
    """Columns of a database, looked up by queries within their limits."""

    def __init__(self, results: Results, database: str) -> None:
        self._results = results
        self._database = database

    def is_name(self, table: str, name: str) -> bool:
        return bool(self.named(table, name))

    def named(self, table: str, name: str) -> str:
        """Return the name of a column as its table declares it, or an empty text if there is none."""
        result = self._results.execute(self._database, f"SELECT * FROM {quoted(table)} LIMIT 0")
        return next((column for column in result.columns if column.lower() == name.lower()), "")

    def may_hold(self, table: str, column: str, literal: Literal) -> bool:
        """Return False if a column does not have a value; True also if that cannot be found out."""
        cell = f"{quoted(table)}.{quoted(column)}"
        if isinstance(literal.value, float):
            test = f"CAST({cell} AS REAL) = {literal.value!r}"
        else:
            operator = "LIKE" if literal.kind == "pattern" else "="
            forms = sorted({_text(form) for form in _forms(literal.value.strip())})
            test = " OR ".join(f"trim({cell}) {operator} {form} COLLATE NOCASE" for form in forms)
        result = self._results.execute(self._database, f"SELECT 1 FROM {quoted(table)} WHERE {test} LIMIT 1")
        return result.error is not None or bool(result.rows)


def _forms(text: str) -> set[str]:
    """Return a text in the forms that a column may write it in; SQLite ignores the case of ASCII letters only."""
    return {text} if text.isascii() else {text, text.lower(), text.upper(), text.capitalize(), text.title()}


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
