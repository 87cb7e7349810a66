"""One form for queries that differ only in how they are written, and the query out of a model's answer."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from fulltune.tasks.text2sql.lexer import QUERY_WORDS, STATEMENT_WORDS, Token, first_word, masked, tokens

_FENCE = re.compile(r"```+(?:[ \t]*\w*[ \t]*\r?\n|(?:sql|sqlite)\s)?", re.IGNORECASE)
_LABEL = re.compile(r"\s*[^\n:;]{1,80}:[*_\s]*")
_NEXT_LABEL = re.compile(r"\n\s*[A-Z][\w ]{0,30}:")
_PLAIN = re.compile(r"[a-z_]\w*\Z")
#: Characters of a query that are parsed; longer ones are compared token by token.
_PARSED = 20_000
#: Fences of an answer that are looked into.
_FENCES = 20


def strip_fences(text: str) -> str:
    """Return the query in a model's answer, by rules that leave a plain query as it is.

    Nothing inside a string literal, a quoted name or a comment of the query is taken for any of these.

    1. Of a Markdown fence (closed or not) the inside, the first that begins like a query; of one pair of backquotes
       the inside.
    2. A leading label such as ``SQL:`` or ``Here is the query:`` goes, when a query follows it.
    3. A line that begins with a label such as ``Question:`` ends the query.
    4. After the first semicolon all goes, unless another statement follows: two stay, and are refused when run.
    """
    query = _without_backquotes(_without_fence(_without_label(text)).strip())
    query = _without_label(query)
    follows = _NEXT_LABEL.search(masked(query))
    return _first_statement(query[: follows.start()] if follows else query).strip()


def _is_query(text: str) -> bool:
    return first_word(text) in QUERY_WORDS


def _without_label(text: str) -> str:
    label = _LABEL.match(text)
    return text[label.end() :] if label and not _is_query(text) and _is_query(text[label.end() :]) else text


def _without_backquotes(query: str) -> str:
    """No query begins with a backquote."""
    return query[1:-1].strip() if len(query) > 1 and query[0] == query[-1] == "`" else query


def _without_fence(text: str) -> str:
    """Return what is inside a fence; of a query that a fence follows, the query.

    A text that begins like a query is read as SQL, so that a fence in one of its strings is none. Prose has apostrophes
    that are no quotes: there every fence counts.
    """
    fences = list(islice(_FENCE.finditer(text), _FENCES))
    if _is_query(text):
        found = tokens(text)
        fence = next((token for token in found if token.kind == "fence"), None)
        if fence is not None:
            inside = _inside(text, _end_of_fence(text, fence.start))
            return inside if _is_query(inside) else text[: fence.start]
        apostrophe = next((token.start for token in found if token.kind == "open"), len(text))
        insides = [_inside(text, match.end()) for match in fences if match.start() > apostrophe]
        return next(filter(_is_query, insides), text)
    insides = [_inside(text, match.end()) for match in fences]
    return next(filter(_is_query, insides), insides[0] if insides else text)


def _end_of_fence(text: str, start: int) -> int:
    match = _FENCE.match(text, start)
    return match.end() if match else start


def _inside(text: str, start: int) -> str:
    """Return what begins at ``start`` up to the next fence outside quotes and comments."""
    inside = text[start:]
    fence = next((token for token in tokens(inside) if token.kind == "fence"), None)
    return inside[: fence.start] if fence else inside


def normalise_sql(sql: str) -> str:
    """Return canonical SQLite text for exact match: keywords, spacing, ``!=``, aliases with AS, the case of bare names.

    String literals and double-quoted names that are not lower-case words stay as they are (SQLite reads a double-quoted
    name that is no column as a string, so its case may matter). What sqlglot cannot parse, or is longer than 20,000
    characters, is compared token by token, with the case ignored outside quotes. Never raises.
    """
    canonical = _canonical(sql)
    return canonical if canonical is not None else _fallback(sql)


def _first_statement(query: str) -> str:
    found = tokens(query)
    for index, token in enumerate(found):
        if token.text == ";":
            follows = found[index + 1] if index + 1 < len(found) else None
            if follows is None or follows.text.upper() not in STATEMENT_WORDS:
                return query[: token.start]
            return query
    return query


def parsed(sql: str) -> Any:
    """Return the sqlglot tree of a query; None for several statements, long ones, and what does not parse."""
    import sqlglot
    from sqlglot.errors import ErrorLevel, SqlglotError

    if len(sql) > _PARSED or not _is_query(sql):
        return None
    try:
        with _silent("sqlglot"):
            statements = [tree for tree in sqlglot.parse(sql, read="sqlite", error_level=ErrorLevel.IMMEDIATE) if tree]
    except (SqlglotError, RecursionError, ValueError):
        return None
    return statements[0] if len(statements) == 1 else None


def rendered(tree: Any) -> str | None:
    """Return a tree as SQLite text; None when it is too deep."""
    from sqlglot.errors import ErrorLevel, SqlglotError

    try:
        with _silent("sqlglot"):
            return str(tree.sql(dialect="sqlite", comments=False, unsupported_level=ErrorLevel.IGNORE))
    except (SqlglotError, RecursionError, ValueError):
        return None


def _canonical(sql: str) -> str | None:
    from sqlglot import exp

    tree = parsed(sql)
    if tree is None:
        return None
    for name in tree.find_all(exp.Identifier):
        _fold(name)
    return rendered(tree)


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
    return token.text if token.kind in ("string", "quoted", "open") else token.text.casefold()


@contextmanager
def _silent(name: str) -> Iterator[None]:
    """sqlglot logs what it cannot parse; a bad prediction is not news."""
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
