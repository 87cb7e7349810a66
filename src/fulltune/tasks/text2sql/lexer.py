"""SQL as a flat list of tokens: enough to find a keyword, a semicolon or a bracket outside quotes."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import NamedTuple

_TOKEN = re.compile(
    r"""(?P<space>\s+|--[^\n]*|/\*.*?(?:\*/|\Z))
      | (?P<string>'(?:[^']|'')*')
      | (?P<quoted>"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\])
      | (?P<word>[^\W\d][\w$]*)
      | (?P<number>\d[\w.]*)
      | (?P<sign><>|!=|<=|>=|\|\||==|.)""",
    re.VERBOSE | re.DOTALL,
)

#: What a query may begin with.
QUERY_WORDS = frozenset({"SELECT", "WITH", "VALUES"})
#: What any statement of SQLite may begin with.
STATEMENT_WORDS = QUERY_WORDS | {
    "ALTER",
    "ANALYZE",
    "ATTACH",
    "BEGIN",
    "COMMIT",
    "CREATE",
    "DELETE",
    "DETACH",
    "DROP",
    "END",
    "EXPLAIN",
    "INSERT",
    "PRAGMA",
    "REINDEX",
    "RELEASE",
    "REPLACE",
    "ROLLBACK",
    "SAVEPOINT",
    "UPDATE",
    "VACUUM",
}


class Token(NamedTuple):
    """``kind`` is one of string, quoted, word, number, sign; ``depth`` counts the brackets around it."""

    kind: str
    text: str
    start: int
    depth: int


def tokens(sql: str) -> list[Token]:
    """Tokens without white space and comments. Never raises: a quote that is not closed becomes a sign."""
    found, depth = [], 0
    for match in _TOKEN.finditer(sql):
        kind, text = str(match.lastgroup), match.group()
        if kind == "space":
            continue
        depth -= text == ")"
        found.append(Token(kind, text, match.start(), depth))
        depth += text == "("
    return found


def first_word(sql: str) -> str:
    """The first token in upper case when it is a word, else an empty string."""
    first = next(iter(tokens(sql)), None)
    return first.text.upper() if first and first.kind == "word" else ""


def is_ordered(sql: str) -> bool:
    """Whether the outermost query has an ORDER BY; those of subqueries, windows and aggregates stand in brackets."""
    top = [token.text.upper() if token.kind == "word" else token.text for token in tokens(sql) if token.depth == 0]
    return any(pair == ("ORDER", "BY") for pair in pairwise(top))
