"""Extracting the query from an answer, and a normal form for queries written in different ways."""

from __future__ import annotations

import logging
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matrix import often

from fulltune.tasks.text2sql.normalize import normalize_sql, strip_fences

PLAIN = [
    "SELECT 1",
    "WITH x AS (SELECT 1) SELECT * FROM x",
    "SELECT a\n\nFROM t\nWHERE b = 'Note: x'",
    "SELECT * FROM `t` WHERE `a` = 1",
    "SELECT 'a;b' FROM t",
    "SELECT 1; DROP TABLE t",
    "SELECT 1; SELECT 2",
    "DELETE FROM t",
    "I do not know.",
]


@pytest.mark.parametrize("query", PLAIN)
def test_a_plain_answer_is_kept(query: str) -> None:
    assert strip_fences(query) == query
    assert strip_fences(f"  {query}\n") == query


@pytest.mark.parametrize(
    "answer",
    [
        "```sql\nSELECT a FROM t\n```",
        "```\nSELECT a FROM t\n```",
        "```SQL SELECT a FROM t```",
        "```sqlite\nSELECT a FROM t;\n```\nThis query selects a.",
        "Here is the query:\n```sql\nSELECT a FROM t\n```",
        "```sql\nSELECT a FROM t",
        "```SELECT a FROM t```",
        "`SELECT a FROM t`",
        "SQL: SELECT a FROM t",
        "sql:\nSELECT a FROM t",
        "Here is the query:\n\nSELECT a FROM t;",
        "SELECT a FROM t; This gives a of every row.",
        "SELECT a FROM t;\n\nQuestion: what is b?\nSQL: SELECT b FROM t",
        "SELECT a FROM t\n\nQuestion: what is b?\nSQL: SELECT b FROM t",
        "SELECT a FROM t\nExplanation: every row",
        "SELECT a FROM t;;",
        "You can use `SELECT a FROM t` to get them.",
        "The table `t` has them: use ``SELECT a FROM t``.",
        "~~~sql\nSELECT a FROM t\n~~~",
        "Here's one:\n\n~~~\nSELECT a FROM t;\n~~~\nThat's all.",
        "SELECT a FROM t</s>",
        "SELECT a FROM t;<|im_end|>\n<|im_start|>user\nand b?",
        "SELECT a FROM t <|endoftext|><|endoftext|>",
        "<|im_start|>assistant\nSELECT a FROM t<|im_end|>",
        "<s> SELECT a FROM t </s>",
        "SELECT a FROM t<eos>",
        "<sql>SELECT a FROM t</sql>",
        "Sure.\n<SQL>\nSELECT a FROM t;\n</SQL> It's done.",
        "<think>SELECT b FROM t? It isn't.</think>\nSELECT a FROM t",
        "<think>\n```sql\nSELECT b FROM t\n```\n</think>\n\n```sql\nSELECT a FROM t\n```",
        "Let me think: SELECT b FROM t.\n</think>\nSELECT a FROM t",
        "SELECT b FROM t would not do\n</think>\nSELECT a FROM t",
        "### SQL\nSELECT a FROM t",
        "## Answer\n\n1. SELECT a FROM t",
        "1. SELECT a FROM t",
        "1) SELECT a FROM t;",
        "- SELECT a FROM t",
        "* `SELECT a FROM t`",
        "> SELECT a FROM t",
        "sqlite> SELECT a FROM t;\nant\nbee",
        "Query:\n> SELECT a FROM t",
        "**SQL**\nSELECT a FROM t",
        '{"sql": "SELECT a FROM t"}',
        '```json\n{"Query": "SELECT a FROM t;", "why": "it is asked"}\n```',
        'The answer is {"sql": "SELECT a FROM t"}.',
        '"SELECT a FROM t"',
        "'SELECT a FROM t;'",
        "“SELECT a FROM t”",
        "\ufeffSELECT a FROM t",
        "\u200b\ufeff SELECT a FROM t\u200b",
        "\u200b```sql\nSELECT a FROM t\n```",
        "SELECT a FROM t\n\nThis query returns a of every row.",
        "SELECT a FROM t\n \nIt's the shortest one.",
        "SELECT a FROM t\n\nNote that there's no filter.\n\nSELECT b FROM t",
    ],
)
def test_text_around_a_query_is_removed(answer: str) -> None:
    assert strip_fences(answer) == "SELECT a FROM t"


@pytest.mark.parametrize("answer", ["<think>SELECT a FROM t", "<think>\n```sql\nSELECT a FROM t\n```"])
def test_no_query_is_taken_from_the_reasoning(answer: str) -> None:
    assert strip_fences(answer) == ""


def test_quoted_lines_and_shell_lines_become_one_query() -> None:
    assert strip_fences("> SELECT a\n> FROM t") == "SELECT a\nFROM t"
    assert strip_fences("sqlite> SELECT a\n   ...> FROM t;") == "SELECT a\nFROM t"
    assert strip_fences('{"sql": "SELECT \\"a\\"\\nFROM t"}') == 'SELECT "a"\nFROM t'


INSIDE = [
    'SELECT \'</s> <|im_end|> </think> <sql>SELECT 2</sql> {"sql": "SELECT 3"}\' FROM t',
    "SELECT 'x\n\nThis is a text.' FROM t",
    "SELECT a,\n\nFirst name FROM t",
    "SELECT a\n\nFrom t\n\nWhere b = 1\n\nOrder by a",
    "SELECT (\n\nMax (a)\n\nAs b) FROM t",
    "SELECT a <s> b, a\n> 3, ~~~1 FROM t",
    "SELECT ';'",
    "SELECT 'a;b', \"c;d\", [e;f], `g;h` FROM t -- i;j\nWHERE k = 'it''s; SELECT 1'",
    "SELECT '```' FROM t",
    "SELECT '```sql\nSELECT 2\n```' FROM t",
    'SELECT "```" FROM t -- ``` and more\nWHERE a = 1',
    "SELECT a /* ```sql\nSELECT 2``` */ FROM t",
    "SELECT 'x\nAnswer: y'",
    "SELECT a -- why\nFROM t /* \nNote: all */ WHERE b = '\n\nQuestion: c'",
    "SELECT 'SQL: SELECT 1' FROM t",
    "SELECT 'a -- b', 'c /* d' FROM t",
    "SELECT 'It''s \"so\"; DROP TABLE t' FROM t",
    "/* SQL: one; two */ SELECT 1",
    "-- how many?\nSELECT count(*) FROM t",
]


@pytest.mark.parametrize("query", INSIDE)
@pytest.mark.parametrize(
    "around",
    [
        "{}",
        "{};",
        "{} ;\n",
        "SQL: {}",
        "Here's the query: {}",
        "**SQL:** {}",
        "```sql\n{}\n```",
        "```\n{};\n```\nIt doesn't matter; this isn't SQL.",
        "Here's what I'd run:\n```sql\n{}\n```\nThat's it.",
        "With this query:\n```sql\n{}\n```",
        "{}\n```",
        "{};\n\nQuestion: what's b?\nSQL: SELECT b FROM t",
        "{}\nExplanation: it isn't hard",
        "{}; This gives what's asked.",
    ],
)
def test_nothing_is_cut_inside_a_string_a_name_or_a_comment(query: str, around: str) -> None:
    assert strip_fences(around.format(query)) == query


def test_the_first_fence_with_a_query_counts() -> None:
    answer = "Let's see:\n```\ntable t\n```\nso\n```sql\nSELECT a FROM t\n```\nor\n```sql\nSELECT b FROM t\n```"
    assert strip_fences(answer) == "SELECT a FROM t"
    assert strip_fences("```sql\nDROP TABLE t\n```") == "DROP TABLE t"


def test_a_query_that_was_cut_in_a_string_keeps_all_of_it() -> None:
    assert strip_fences("SELECT a FROM t WHERE b = 'x; y") == "SELECT a FROM t WHERE b = 'x; y"


@given(st.text(alphabet="';`\"[]()-/*\n SELECT:ax", max_size=60))
def test_the_query_of_any_answer_is_a_part_of_it(text: str) -> None:
    assert strip_fences(text) in text
    normalize_sql(text)


@pytest.mark.parametrize("count", often([4_000, 20_000], lambda count: count == 4_000))
def test_long_answers_take_linear_time(count: int) -> None:
    started = time.perf_counter()
    strip_fences("```sql\n" * 60_000)
    strip_fences("SELECT 1" + "\n" * 60_000 + "x")
    assert time.perf_counter() - started < 2
    pieces = (
        "[",
        "['",
        "'",
        '"',
        "`",
        "```",
        "/*",
        "\nA:",
        "(",
        "SQL: ",
        "`a",
        "> ",
        "<sql>",
        "{",
        "\n\nThe a ",
        "</s>",
        "1. ",
    )
    for piece in pieces:
        strip_fences("SELECT " + piece * count)
        strip_fences("It is " + piece * count)
        normalize_sql("SELECT " + piece * count)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("select  Count( * )\nfrom T", "SELECT COUNT(*) FROM t;"),
        ("SELECT a FROM t WHERE b != 1", "SELECT a FROM t WHERE b <> 1"),
        ("SELECT x.A FROM t x", "SELECT X.a FROM t AS x"),
        ('SELECT "a" FROM [t]', "SELECT a FROM t"),
        ("SELECT a -- why\nFROM t /* here */", "SELECT a FROM t"),
        ("SELECT a FROM t ORDER BY a ASC", "SELECT a FROM t ORDER BY a ASC ;"),
        ("select a from", "SELECT  A FROM ;"),
        ("UPDATE t SET a=1", "update T set a = 1"),
        ("\ufeffSELECT a FROM t", "SELECT a FROM t\u200b"),
    ],
)
def test_writing_does_not_matter(a: str, b: str) -> None:
    assert normalize_sql(a) == normalize_sql(b)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("SELECT a FROM t WHERE b = 'X'", "SELECT a FROM t WHERE b = 'x'"),
        ('SELECT a FROM t WHERE b = "USA"', 'SELECT a FROM t WHERE b = "usa"'),
        ("SELECT a, b FROM t", "SELECT b, a FROM t"),
        ("SELECT a FROM t", "SELECT DISTINCT a FROM t"),
        ("SELECT 'a' FROM", "SELECT 'A' FROM"),
        ("SELECT 1", "SELECT 1; SELECT 2"),
    ],
)
def test_what_matters_stays(a: str, b: str) -> None:
    assert normalize_sql(a) != normalize_sql(b)


PIECES = """
SELECT FROM WHERE ( ) , * = 'a' "b" t a 1 AND ORDER BY GROUP JOIN ON WITH AS CASE WHEN END ; -- /* ' " ` [ UNION CREATE
DROP LIMIT IN NOT NULL BETWEEN CAST || . x'0' ? : @ {
"""
SQL_WORDS = st.sampled_from(PIECES.split())


@given(st.one_of(st.text(max_size=60), st.lists(SQL_WORDS, max_size=25).map(lambda words: "SELECT " + " ".join(words))))
def test_anything_can_be_normalized_and_stripped_silently(text: str) -> None:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logging.getLogger("sqlglot").addHandler(handler)
    try:
        assert isinstance(normalize_sql(text), str)
        assert isinstance(strip_fences(text), str)
    finally:
        logging.getLogger("sqlglot").removeHandler(handler)
    assert records == []
    assert not logging.getLogger("sqlglot").disabled


def test_a_query_too_deep_to_parse_is_still_normalized() -> None:
    deep = "SELECT " + "(" * 3000 + "1" + ")" * 3000
    assert normalize_sql(deep) == normalize_sql(deep.lower())


@pytest.mark.parametrize(
    ("answer", "query"),
    [
        ("The query is SELECT a FROM t", "SELECT a FROM t"),
        ("You can use SELECT a FROM t WHERE b IN (SELECT b FROM u).", "SELECT a FROM t WHERE b IN (SELECT b FROM u)"),
        ("Here it is SELECT a FROM t UNION SELECT b FROM u", "SELECT a FROM t UNION SELECT b FROM u"),
        ("Use WITH q AS (SELECT 1) SELECT * FROM q", "WITH q AS (SELECT 1) SELECT * FROM q"),
        ("The query is SELECT a FROM t. It lists all rows.", "SELECT a FROM t"),
        ("It is SELECT a FROM t WHERE b = 'x. The end'; enjoy", "SELECT a FROM t WHERE b = 'x. The end'"),
    ],
)
def test_a_query_after_prose_without_any_mark(answer: str, query: str) -> None:
    assert strip_fences(answer) == query


@pytest.mark.parametrize(
    "answer",
    [
        "Either SELECT a FROM t or SELECT b FROM t",
        "The SELECT statement is SELECT a FROM t",
        "I would select the name from the table",
        "EXPLAIN SELECT 1",
        "INSERT INTO t SELECT * FROM u",
        "UPDATE t SET a = (SELECT 1)",
        "I do not know.",
    ],
)
def test_without_a_unique_start_everything_is_kept(answer: str) -> None:
    assert strip_fences(answer) == answer
