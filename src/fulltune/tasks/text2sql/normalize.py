"""Normalize queries that differ only in notation, and extract the query from a model's answer."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from fulltune.tasks.text2sql.lexer import (
    QUERY_WORDS,
    STATEMENT_WORDS,
    Token,
    fence,
    first_word,
    masked,
    tokens,
    trimmed,
)

_FENCE = re.compile(r"(?:```+|(?<![^\n])~~~+)(?:[ \t]*\w*[ \t]*\r?\n|(?:sql|sqlite)\s)?", re.IGNORECASE)
# Text before a query: a label, a heading, a bold line, a list number or bullet.
_LEAD = re.compile(r"\s*(?:\#{1,6}[^\n]*\n|\*\*[^\n*]{1,80}\*\*\s|\d{1,3}[.)]\s|[-*+•]\s|[^\n:;]{1,80}:[*_\s]*)")
_LEADS = 4
_QUOTED_LINE = re.compile(r"^[ \t]*(?:sqlite|\.\.\.)?>[ \t]?", re.MULTILINE)
_NEXT_LABEL = re.compile(r"(?<=\S)(\s+)[A-Z][\w ]{0,30}:")
# Tokens that end a model's text, and closing tags; none of them is SQL.
_END = re.compile(r"</(?:s|sql|query|answer|sql_query)>|<\|\w{1,40}\|>|<(?:eos|pad|end_of_turn)>\s*\Z", re.IGNORECASE)
_BEGIN = re.compile(r"(?:\s*(?:<\|\w{1,40}\|>(?:assistant\b)?|<s>|<bos>))+", re.IGNORECASE)
_TAG = re.compile(r"<(?:sql|query|answer|sql_query)>", re.IGNORECASE)
_THINK = re.compile(r"<(think(?:ing)?|thoughts?|reasoning)>", re.IGNORECASE)
_THOUGHT = re.compile(r"</(?:think(?:ing)?|thoughts?|reasoning)>", re.IGNORECASE)
# Without an opening tag, only if the answer follows: the tag may be part of a string.
_LONE_THOUGHT = re.compile(rf"{_THOUGHT.pattern}(?=[ \t]*(?:\n|\Z|```)|\s*(?:SELECT|WITH|VALUES)\b)", re.IGNORECASE)
_CODE_SPAN = re.compile(r"``([^`\n]+(?:`[^`\n]+)*)``|`([^`\n]+)`")
_BARE_QUERY = re.compile(r"\bSELECT\s|\bWITH\s+\w+(?:\s*\([^()]*\))?\s+AS\s*\(")
_NO_PROSE = re.compile(r"[()=]|\n\s*\n")
_NEXT_SENTENCE = re.compile(r"\.\s+[A-Z][a-z]*[,']?\s+[a-z]")
_SET_WORD = re.compile(r"\b(?:UNION|INTERSECT|EXCEPT)\b", re.IGNORECASE)
_JSON_KEYS = ("sql", "query", "sql_query", "answer")
_QUOTES = {'"': '"', "'": "'", "“": "”", "`": "`"}
# A sentence after an empty line: a capitalized word, then a lowercase word or an apostrophe (masked).
_SENTENCE = re.compile(r"(?<=\S)(\s+)([A-Z][a-z]*)(?:(?<=[a-z])\0|,?[ \t]+[a-z])")
_CLAUSES = frozenset(
    re.findall(
        r"\w+",
        """
AND AS ASC BETWEEN BY CASE COLLATE CROSS DESC DISTINCT ELSE END EXCEPT EXISTS FROM FULL GROUP HAVING
IN INNER INTERSECT IS JOIN LEFT LIKE LIMIT NATURAL NOT OFFSET ON OR ORDER OUTER RIGHT SELECT THEN
UNION USING VALUES WHEN WHERE WINDOW WITH
""",
    )
)
_PLAIN = re.compile(r"[a-z_]\w*\Z")
#: Maximum number of characters of a query that is parsed; longer ones are compared token by token.
_PARSED = 20_000
#: Maximum number of fences of an answer that are examined.
_FENCES = 20


def strip_fences(text: str) -> str:
    """Extract the query from a model's answer, by rules that leave a plain query unchanged.

    The rules do not apply inside string literals, quoted names and comments of the query.

    1. Remove reasoning (``<think>…</think>``, also if unclosed) and tokens such as ``<|im_end|>``.
    2. If there are Markdown fences (closed or not), take the inside of the first one that begins like a query.
    3. Otherwise, if the text does not begin like a query, take the inside of quotes or backquotes around the entire
       text, of ``<sql>…</sql>``, of a JSON object under ``sql`` or ``query``, or of backquotes within prose; or the
       text after the beginning of a sentence (``The query is SELECT …``), if only one position can begin a query.
    4. Remove a leading label such as ``SQL:``, a heading, a list marker, ``>`` and ``sqlite>`` if a query follows.
    5. End the query at a line that begins with a label such as ``Question:``, or at a sentence after an empty line.
    6. Remove everything after the first semicolon, unless another statement follows: two statements are kept, and
       rejected when they are run.
    """
    answer = _without_thoughts(_without_tokens(trimmed(text)))
    query = trimmed(_without_fence(_without_lead(answer)))
    for rule in (_without_quotes, _in_tag, _in_json, _without_lead, _in_code_span, _after_prose):
        query = query if _is_query(query) else trimmed(rule(query))
    return trimmed(_first_statement(_without_sequel(query)))


def _is_query(text: str) -> bool:
    return first_word(text) in QUERY_WORDS


def _without_thoughts(text: str) -> str:
    """Remove reasoning before the answer; the opening tag may be in the prompt, and the closing one may be missing."""
    opened = _THINK.match(text)
    if opened:
        closed = _THOUGHT.search(text)
        return _without_tokens(trimmed(text[closed.end() :])) if closed else ""
    closed = _LONE_THOUGHT.search(masked(text) if _is_query(text) else text)
    return trimmed(text[closed.end() :]) if closed else text


def _without_tokens(text: str) -> str:
    """Remove tokens that begin a model's turn."""
    begin = _BEGIN.match(text)
    return trimmed(text[begin.end() :]) if begin else text


def _without_lead(text: str) -> str:
    """Remove labels and markers before a query."""
    rest = text
    for _ in range(_LEADS):
        if _is_query(rest):
            return rest
        lead = _LEAD.match(rest)
        if _QUOTED_LINE.match(rest):
            rest = _QUOTED_LINE.sub("", rest)
        elif lead:
            rest = rest[lead.end() :]
    return rest if _is_query(rest) else text


def _without_quotes(text: str) -> str:
    """Return the inside of quotes around the entire text if it is a query; no query begins with a quote."""
    is_quoted = len(text) > 1 and _QUOTES.get(text[0]) == text[-1]
    return text[1:-1] if is_quoted and (text[0] == "`" or _is_query(text[1:-1])) else text


def _in_tag(text: str) -> str:
    """Return the text after the first tag with a query; the closing tag is removed later."""
    return next(
        (text[tag.end() :] for tag in islice(_TAG.finditer(text), _FENCES) if _is_query(text[tag.end() :])), text
    )


def _in_json(text: str) -> str:
    """Return the query in a JSON object or string."""
    start = min((place for place in map(text.find, '{"') if place >= 0), default=0)
    try:
        value, _ = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        return text
    values: list[Any] = [value]
    if isinstance(value, dict):
        lowered = {key.lower(): item for key, item in value.items()}
        values = [lowered.get(key) for key in _JSON_KEYS]
    return next((item for item in values if isinstance(item, str) and _is_query(item)), text)


def _in_code_span(text: str) -> str:
    """Return the first query in backquotes within prose."""
    insides = (span[1] or span[2] for span in _CODE_SPAN.finditer(text))
    return next(filter(_is_query, insides), text)


def _after_prose(text: str) -> str:
    """Return the text after a short prose beginning, from the only position where a query begins (in capitals)."""
    begins = list(islice(_BARE_QUERY.finditer(text), 2))
    if not begins or first_word(text) in STATEMENT_WORDS or _NO_PROSE.search(text[: begins[0].start()]):
        return text
    query = text[begins[0].start() :]
    if len(begins) > 1 and not _is_joined(text[begins[0].start() : begins[1].start()]):
        return text
    sequel = _NEXT_SENTENCE.search(masked(query))
    return (query[: sequel.start()] if sequel else query).rstrip(". \n")


def _is_joined(between: str) -> bool:
    """Return True if a second ``SELECT`` belongs to the query of the first."""
    return "(" in between or bool(_SET_WORD.search(between))


def _without_fence(text: str) -> str:
    """Return the inside of a fence; of a query that is followed by a fence, the query.

    A text that begins like a query is read as SQL, so that a fence in one of its strings does not count. In prose,
    apostrophes are not quotes, so that every fence counts.
    """
    fences = list(islice(_FENCE.finditer(text), _FENCES))
    if _is_query(text):
        start = fence(text)
        if start is not None:
            inside = _inside(text, _end_of_fence(text, start))
            return inside if _is_query(inside) else text[:start]
        apostrophe = next((token.start for token in tokens(text) if token.kind == "open"), len(text))
        insides = [_inside(text, match.end()) for match in fences if match.start() > apostrophe]
        return next(filter(_is_query, insides), text)
    insides = [_inside(text, match.end()) for match in fences]
    return next(filter(_is_query, insides), insides[0] if insides else text)


def _end_of_fence(text: str, start: int) -> int:
    match = _FENCE.match(text, start)
    return match.end() if match else start


def _inside(text: str, start: int) -> str:
    """Return the text from ``start`` to the next fence outside quotes and comments."""
    return text[start : fence(text, start)]


def _without_sequel(query: str) -> str:
    """Cut the text at the first label, special token or sentence that is not part of the query."""
    plain = masked(query)
    labels = (match for match in _NEXT_LABEL.finditer(plain) if "\n" in match[1])
    ends = [match.start() for match in (next(labels, None), _END.search(plain)) if match]
    ends += islice(_sentences(query, plain), 1) if _is_query(query) else ()
    return query[: min(ends, default=len(query))]


def _sentences(query: str, plain: str) -> Iterator[int]:
    """Yield positions of sentences that cannot continue the query: after a complete term, outside brackets."""
    sentences = [match for match in _SENTENCE.finditer(plain) if match[1].count("\n") > 1]
    starts = {match.start(2): match.start() for match in sentences if match[2].upper() not in _CLAUSES}
    before: Token | None = None
    for token in tokens(query) if starts else ():
        if token.start in starts and token.depth == 0 and before is not None and _ends_term(before):
            yield starts[token.start]
        before = token


def _ends_term(token: Token) -> bool:
    return token.text in (")", "*") if token.kind == "sign" else token.text.upper() not in _CLAUSES


def normalize_sql(sql: str) -> str:
    """Return canonical SQLite text for exact match: keywords, spacing, ``!=``, aliases with AS, case of bare names.

    String literals are unchanged, and so are double-quoted names that are not lowercase words (SQLite reads a
    double-quoted name that is not a column as a string, so that its case may matter). Queries that sqlglot cannot
    parse, or that exceed 20,000 characters, are compared token by token, ignoring case outside quotes. Never raises.
    """
    bare = trimmed(sql)
    canonical = _canonical(bare)
    return canonical if canonical is not None else _fallback(bare)


def _first_statement(query: str) -> str:
    parts = tokens(query)
    for index, token in enumerate(parts):
        if token.text == ";":
            follows = parts[index + 1] if index + 1 < len(parts) else None
            if follows is None or follows.text.upper() not in STATEMENT_WORDS:
                return query[: token.start]
            return query
    return query


def parsed(sql: str) -> Any:
    """Return the sqlglot tree of a query; None for several statements, long queries, and parse errors."""
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
    """Return a tree as SQLite text; None if it is nested too deeply."""
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
    """Lowercase a bare name: SQLite ignores its case."""
    text, quoted = name.args["this"], name.args.get("quoted")  # type: ignore[attr-defined]
    if not quoted:
        name.set("this", text.lower())  # type: ignore[attr-defined]
    elif _PLAIN.match(text):
        name.set("quoted", False)  # type: ignore[attr-defined]


def _fallback(sql: str) -> str:
    parts = tokens(sql)
    while parts and parts[-1].text == ";":
        parts.pop()
    return " ".join(_folded(token) for token in parts)


def _folded(token: Token) -> str:
    return token.text if token.kind in ("string", "quoted", "open") else token.text.casefold()


@contextmanager
def _silent(name: str) -> Iterator[None]:
    """Disable a logger: sqlglot logs parse errors, which are expected for predictions."""
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
