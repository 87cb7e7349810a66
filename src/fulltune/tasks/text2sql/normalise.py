"""One form for queries that differ only in how they are written, and the query out of a model's answer."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

from fulltune.tasks.text2sql.lexer import QUERY_WORDS, STATEMENT_WORDS, Token, first_word, tokens

_FENCE = re.compile(r"```(?:[ \t]*\w*[ \t]*\n|(?:sql|sqlite)\s)?(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_LABEL = re.compile(r"^\s*[^\n:;'\"]{1,80}:\s*")
_NEXT_LABEL = re.compile(r"\n\s*[A-Z][\w ]{0,30}:")
_PLAIN = re.compile(r"[a-z_]\w*\Z")


def strip_fences(text: str) -> str:
    """The query in a model's answer, by rules that leave a plain query as it is.

    1. Of a Markdown fence (closed or not) the inside of the first; of one pair of backquotes the inside.
    2. A leading label such as ``SQL:`` or ``Here is the query:`` goes, when a query follows it.
    3. A line that begins with a label such as ``Question:`` ends the query.
    4. After the first semicolon all goes, unless another statement follows: two stay, and are refused when run.
    """
    fence = _FENCE.search(text)
    query = (fence.group(1) if fence else text).strip()
    if len(query) > 1 and query[0] == query[-1] == "`" and query.count("`") == 2:
        query = query[1:-1].strip()
    label = _LABEL.match(query)
    if label and first_word(query) not in QUERY_WORDS and first_word(query[label.end() :]) in QUERY_WORDS:
        query = query[label.end() :]
    follows = _NEXT_LABEL.search(query)
    return _first_statement(query[: follows.start()] if follows else query).strip()


def normalise_sql(sql: str) -> str:
    """Canonical SQLite text for exact match: keywords, spacing, ``!=``, aliases with AS, the case of bare names.

    String literals and double-quoted names that are not lower-case words stay as they are (SQLite reads a double-quoted
    name that is no column as a string, so its case may matter). What sqlglot cannot parse is compared token by token,
    with the case ignored outside quotes. Never raises.
    """
    parsed = _canonical(sql) if first_word(sql) in QUERY_WORDS else None
    return parsed if parsed is not None else _fallback(sql)


def _first_statement(query: str) -> str:
    found = tokens(query)
    for index, token in enumerate(found):
        if token.text == ";":
            follows = found[index + 1] if index + 1 < len(found) else None
            if follows is None or follows.text.upper() not in STATEMENT_WORDS:
                return query[: token.start]
            return query
    return query


def _canonical(sql: str) -> str | None:
    import sqlglot
    from sqlglot import exp
    from sqlglot.errors import ErrorLevel, SqlglotError

    try:
        with _silent("sqlglot"):
            statements = [tree for tree in sqlglot.parse(sql, read="sqlite", error_level=ErrorLevel.IMMEDIATE) if tree]
            if len(statements) != 1:
                return None
            for name in statements[0].find_all(exp.Identifier):
                _fold(name)
            return statements[0].sql(dialect="sqlite", comments=False, unsupported_level=ErrorLevel.IGNORE)
    except (SqlglotError, RecursionError, ValueError):
        return None


def _fold(name: object) -> None:
    """SQLite takes bare names in any case."""
    text, quoted = name.args["this"], name.args.get("quoted")  # type: ignore[attr-defined]
    if not quoted:
        name.set("this", text.lower())  # type: ignore[attr-defined]
    elif _PLAIN.match(text):
        name.set("quoted", False)  # type: ignore[attr-defined]


def _fallback(sql: str) -> str:
    found = tokens(sql)
    while found and found[-1].text == ";":
        found.pop()
    return " ".join(_folded(token) for token in found)


def _folded(token: Token) -> str:
    return token.text if token.kind in ("string", "quoted") else token.text.casefold()


@contextmanager
def _silent(name: str) -> Iterator[None]:
    """sqlglot logs what it cannot parse; a bad prediction is not news."""
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
