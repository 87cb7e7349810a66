"""Comparison of two results."""

from __future__ import annotations

import math
import sqlite3
import time
from contextlib import closing
from itertools import permutations
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulltune.tasks.text2sql import comparison
from fulltune.tasks.text2sql.comparison import close
from fulltune.tasks.text2sql.execution import Result, execute, is_ordered, match, verdict
from fulltune.tasks.text2sql.lexer import mentions_order

CELLS = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.sampled_from([0.1, 0.1 + 5e-8, 0.1 + 1e-7, 0.1 + 1.5e-7, 1, 1.0]),
    st.text(max_size=3),
    st.binary(max_size=3),
)
ROWS = st.integers(0, 3).flatmap(lambda width: st.lists(st.tuples(*[CELLS] * width), max_size=8))


def same(gold: list[tuple[object, ...]], predicted: list[tuple[object, ...]], ordered: bool = False) -> bool:
    return match(Result(tuple(gold)), Result(tuple(predicted)), ordered=ordered)


@given(ROWS, st.booleans())
def test_a_result_matches_itself(rows: list[tuple[object, ...]], ordered: bool) -> None:
    assert same(rows, rows, ordered)


@given(ROWS, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter_unless_asked(rows: list[tuple[object, ...]], random: object) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert same(rows, shuffled)


@given(ROWS.filter(bool))
def test_one_row_more_or_less_is_another_result(rows: list[tuple[object, ...]]) -> None:
    assert not same(rows, [*rows, rows[0]])
    assert not same([*rows, rows[0]], rows)


@given(ROWS, ROWS)
def test_matching_is_symmetric(a: list[tuple[object, ...]], b: list[tuple[object, ...]]) -> None:
    assert same(a, b) == same(b, a)


NEAR = [1.0, 1.0 + 6e-7, 1.0 + 1.2e-6, 1.0 + 1.8e-6, 2]


@given(
    st.lists(st.tuples(st.sampled_from(NEAR), st.sampled_from(NEAR)), min_size=1, max_size=5),
    st.lists(st.tuples(st.sampled_from(NEAR), st.sampled_from(NEAR)), min_size=1, max_size=5),
)
def test_near_rows_are_paired_as_well_as_any_pairing_can(
    a: list[tuple[float, float]], b: list[tuple[float, float]]
) -> None:
    """Compare with the definition: some order of the rows makes every pair close."""
    fits = len(a) == len(b) and any(
        all(close(x, y) for left, right in zip(a, order, strict=True) for x, y in zip(left, right, strict=True))
        for order in permutations(b)
    )
    assert same(a, b) == fits


def test_a_pairing_that_no_sorting_finds() -> None:
    gold = [(1.0, 5.0), (1.0 + 5e-7, 4.0)]
    assert same(gold, [(1.0 + 4e-7, 5.0), (1.0 + 1e-7, 4.0)])
    assert not same(gold, [(1.0 + 4e-7, 5.0), (1.0 + 1e-7, 5.0)])


def test_multiplicity_counts_among_near_rows() -> None:
    gold, near = [(1.5,)] * 500 + [(2.5,)] * 500, [(1.5 + 1e-9,)] * 500 + [(2.5,)] * 500
    assert same(gold, near)
    assert not same(gold, [(1.5 + 1e-9,)] * 501 + [(2.5,)] * 499)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (3, 3.0, True),
        (3, "3", False),
        ("a", "A", False),
        ("a", "a ", False),
        ("a", b"a", False),
        (None, None, True),
        (None, 0, False),
        (None, "", False),
        (0.1 + 0.2, 0.3, True),
        (1 / 3, 0.333333333, True),
        (1 / 3, 0.3333, False),
        (1e-12, 0.0, True),
        (1_000_000, 1_000_001, False),
        (1_000_000, 1_000_001.0, False),
        (2**60, 2**60 + 1, False),
        (2**60 + 1, float(2**60), True),
        (math.inf, math.inf, True),
        (math.inf, 1e308, False),
        (-math.inf, math.inf, False),
    ],
)
def test_cells(a: object, b: object, expected: bool) -> None:
    assert same([(a,)], [(b,)]) is expected
    assert same([(a,)], [(b,)], ordered=True) is expected
    assert same([("x", a), ("y", 1)], [("y", 1), ("x", b)]) is expected


def test_order_of_rows_and_columns() -> None:
    assert not same([(1,), (2,)], [(2,), (1,)], ordered=True)
    assert same([(1,), (2,)], [(2,), (1,)])
    assert not same([(1, 2)], [(2, 1)])
    assert not same([(1,)], [(1, 1)])
    assert not same([(1,)], [(1, 1)], ordered=True)


def test_an_error_matches_nothing_and_a_cut_result_only_a_cut_one() -> None:
    failed, rows = Result(error="no such table"), ((1,), (2,))
    assert not match(failed, failed, ordered=False)
    assert not match(Result(), failed, ordered=False)
    assert match(Result(rows, truncated=True), Result(rows, truncated=True), ordered=False)
    assert not match(Result(rows, truncated=True), Result(rows), ordered=False)


ORDERED = [
    "SELECT a FROM t ORDER BY a",
    "select a from t order\n by a limit 3",
    "SELECT a FROM t UNION SELECT b FROM u ORDER BY 1",
    "WITH x AS (SELECT 1) SELECT * FROM x ORDER BY /* really */ 1;",
    "SELECT a FROM t WHERE b = ')' ORDER BY a",
]
UNORDERED = [
    "SELECT a FROM t",
    "SELECT a FROM (SELECT a FROM t ORDER BY a)",
    "SELECT a FROM t WHERE a IN (SELECT a FROM t ORDER BY b LIMIT 3)",
    "WITH x AS (SELECT 1 ORDER BY 1) SELECT * FROM x",
    "SELECT rank() OVER (ORDER BY a) FROM t",
    "SELECT group_concat(a ORDER BY a) FROM t",
    "SELECT 'ORDER BY' FROM t -- ORDER BY a",
    'SELECT "order" FROM t GROUP BY a',
]


@pytest.mark.parametrize("sql", [*ORDERED, *UNORDERED])
def test_only_the_outermost_order_counts_as_sqlglot_sees_it(sql: str) -> None:
    import sqlglot

    assert is_ordered(sql) is (sql in ORDERED)
    assert is_ordered(sql) is bool(sqlglot.parse_one(sql, read="sqlite").args.get("order"))


# ---- As Spider ----

FEW = st.sampled_from([None, 0, 1, 1.0, 2, "a", b"a"])


def tables(rows: int = 4, width: int = 4) -> st.SearchStrategy[list[tuple[object, ...]]]:
    return st.integers(1, width).flatmap(lambda n: st.lists(st.tuples(*[FEW] * n), max_size=rows))


def by_definition(gold: list[tuple[object, ...]], predicted: list[tuple[object, ...]], ordered: bool) -> bool:
    """Try every order of the columns; remove rows one by one, without hashing or sorting."""
    if not gold and not predicted:
        return True
    if len(gold) != len(predicted) or len(gold[0]) != len(predicted[0]):
        return False
    for order in permutations(range(len(gold[0]))):
        moved = [tuple(row[i] for i in order) for row in predicted]
        if moved == gold:
            return True
        left = list(gold)
        for row in moved:
            if row in left:
                left.remove(row)
        if not left and not ordered:
            return True
    return False


def as_spider(gold: list[tuple[object, ...]], predicted: list[tuple[object, ...]], ordered: bool = False) -> bool:
    gold_sql = "SELECT a FROM t ORDER BY a" if ordered else "SELECT a FROM t"
    return bool(verdict(gold_sql, Result(tuple(gold)), Result(tuple(predicted)), "spider"))


@given(tables(), tables(), st.booleans())
def test_spider_matching_is_that_of_its_definition(
    a: list[tuple[object, ...]], b: list[tuple[object, ...]], ordered: bool
) -> None:
    assert as_spider(a, b, ordered) is by_definition(a, b, ordered)


@given(tables(rows=6), st.randoms(use_true_random=False), st.booleans(), st.booleans())
def test_spider_matching_of_a_table_that_was_rearranged_and_perhaps_changed(
    rows: list[tuple[object, ...]], random: object, ordered: bool, changed: bool
) -> None:
    """Tables that nearly match are rare among random ones."""
    order = list(range(len(rows[0]))) if rows else []
    random.shuffle(order)  # type: ignore[attr-defined]
    other = [tuple(row[i] for i in order) for row in rows]
    random.shuffle(other)  # type: ignore[attr-defined]
    if changed and other:
        other[0] = (*other[0][1:], other[0][0])
    assert as_spider(rows, other, ordered) is by_definition(rows, other, ordered)


def test_examples_of_spider_matching() -> None:
    assert as_spider([(1, "a"), (2, "b")], [("b", 2), ("a", 1)])
    assert not as_spider([(1, "a"), (2, "b")], [("b", 2), ("a", 1)], ordered=True)
    assert as_spider([(1, "a"), (2, "b")], [("a", 1), ("b", 2)], ordered=True)
    assert not as_spider([(1,), (1,)], [(1,)])
    assert not as_spider([(0.1 + 0.2,)], [(0.3,)])
    assert as_spider([], [])
    failed, cut = Result(error="x"), Result(((1,),), truncated=True)
    assert verdict("SELECT a FROM t", failed, failed, "spider") is False
    assert verdict("SELECT a FROM t", cut, Result(((1,),)), "spider") is False


@pytest.mark.parametrize("end", ["ORDER /* the */ BY a", "ORDER BY a /* open", "ORDER BY a --", "ORDER\tBY [a]"])
def test_order_is_found_between_comments_that_sqlite_accepts(end: str) -> None:
    sql = f"SELECT a FROM t {end}"
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE t (a)")
        connection.execute(sql)
    assert is_ordered(sql)


def test_the_rule_is_chosen_by_name_and_order_counts_by_its_own_rule() -> None:
    gold, other = Result(((1, 2), (3, 4))), Result(((2, 1), (4, 3)))
    assert verdict("SELECT a, b FROM t", gold, other, "spider")
    assert verdict("SELECT a, b FROM t", gold, other, "strict") is False
    inside = "SELECT a FROM (SELECT a FROM t ORDER BY a)"
    up, down = Result(((1,), (2,))), Result(((2,), (1,)))
    assert mentions_order(inside)
    assert not mentions_order("SELECT 'ORDER BY' -- ORDER BY")
    assert verdict(inside, up, down, "strict")
    assert verdict(inside, up, down, "spider") is False


def test_matching_terminates_for_any_results() -> None:
    """Permuted columns of one set of values, and thousands of rows that are all near each other."""
    size = 9
    latin = [tuple((i * j) % size for j in range(size)) for i in range(size)]
    other = [tuple((i * j + (i == 4)) % size for j in range(size)) for i in range(size)]
    started = time.perf_counter()
    as_spider(latin * 100, other * 100)
    as_spider([tuple(range(60))] * 500, [tuple(reversed(range(60)))] * 499 + [(*range(1, 60), 0)])
    width, height = 300, 1000
    wide = [tuple(row * column + 0.5 for column in range(width)) for row in range(height)]
    assert as_spider(wide, [row[::-1] for row in wide[::-1]])
    assert not as_spider(wide, [tuple(cell + 1e-9 for cell in row) for row in wide])
    near = [(1 + i * 1e-10, 1 - i * 1e-10) for i in range(3000)]
    assert not same(near, [*near[:-1], (1 + 2e-6, 1.0)])
    assert time.perf_counter() - started < 30


def test_an_abandoned_comparison_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    random = Random(0)
    gold, other = ([tuple(random.sample(range(40), 40)) for _ in range(30)] for _ in range(2))
    left, right = (Result(tuple(zip(*columns, strict=True))) for columns in (gold, other))
    assert verdict("SELECT 1", left, right, "spider") is False
    monkeypatch.setattr(comparison, "MAX_CELLS", 100)
    assert verdict("SELECT 1", left, right, "spider") is None
    assert verdict("SELECT 1", left, right, "strict") is False


# ---- Ties ----


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ties") / "items.sqlite"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, price REAL, kind TEXT)")
        rows = [("ant", 1.5, "x"), ("bee", 1.5, "y"), ("cat", 3.0, "x"), ("dog", None, "y"), ("eel", None, "z")]
        connection.execute("CREATE TABLE mixed (id INTEGER PRIMARY KEY, word TEXT COLLATE NOCASE, plain TEXT)")
        words = ["b", "A", "a", "B", "c"]
        connection.executemany("INSERT INTO mixed (word, plain) VALUES (?, ?)", list(zip(words, words, strict=True)))
        connection.executemany("INSERT INTO item (name, price, kind) VALUES (?, ?, ?)", rows)
    return path


@pytest.mark.parametrize(
    ("gold", "predicted", "expected"),
    [
        ("SELECT name FROM item ORDER BY price", "SELECT name FROM item ORDER BY price, name DESC", True),
        ("SELECT name FROM item ORDER BY price DESC", "SELECT name FROM item ORDER BY price DESC, id DESC", True),
        ("SELECT name FROM item ORDER BY price", "SELECT name FROM item ORDER BY price DESC", False),
        ("SELECT name FROM item ORDER BY price", "SELECT name FROM item ORDER BY id", False),
        ("SELECT name FROM item ORDER BY price, id", "SELECT name FROM item ORDER BY price, id DESC", False),
        ("SELECT name, price AS p FROM item ORDER BY p", "SELECT name, price FROM item ORDER BY price, id DESC", True),
        ("SELECT name, price FROM item ORDER BY 2", "SELECT name, price FROM item ORDER BY 2, 1 DESC", True),
        ("SELECT * FROM item ORDER BY price", "SELECT * FROM item ORDER BY price, id DESC", True),
        ("SELECT * FROM item ORDER BY 3", "SELECT * FROM item ORDER BY price, id DESC", True),  # a position behind *
        ("SELECT * FROM item ORDER BY 3", "SELECT * FROM item ORDER BY price DESC", False),
        ("SELECT i.*, id % 2 AS odd FROM item AS i ORDER BY 5", "SELECT *, id % 2 FROM item ORDER BY 5, id DESC", True),
        ("SELECT i.*, id % 2 FROM item AS i ORDER BY 5 DESC", "SELECT *, id % 2 FROM item ORDER BY 5, id DESC", False),
        ("SELECT word FROM mixed ORDER BY word", "SELECT word FROM mixed ORDER BY word, id DESC", True),
        ("SELECT * FROM mixed ORDER BY 2", "SELECT * FROM mixed ORDER BY 2, id DESC", True),
        ("SELECT word AS w FROM mixed ORDER BY w DESC", "SELECT word FROM mixed ORDER BY word DESC, id DESC", True),
        ("SELECT word FROM mixed ORDER BY word", "SELECT word FROM mixed ORDER BY word COLLATE BINARY", False),
        ("SELECT word FROM mixed ORDER BY word COLLATE BINARY", "SELECT word FROM mixed ORDER BY word", False),
        ("SELECT word FROM mixed ORDER BY upper(word)", "SELECT word FROM mixed ORDER BY upper(word), id DESC", True),
        ("SELECT plain FROM mixed ORDER BY plain COLLATE NOCASE",
         "SELECT plain FROM mixed ORDER BY word, id DESC", True),
        ("SELECT plain FROM mixed ORDER BY 1 COLLATE NOCASE", "SELECT plain FROM mixed ORDER BY word, id DESC", True),
        ("SELECT plain FROM mixed ORDER BY plain", "SELECT plain FROM mixed ORDER BY word, id DESC", False),
        ("SELECT DISTINCT word FROM mixed ORDER BY word DESC", "SELECT DISTINCT word FROM mixed ORDER BY 1 DESC", True),
        ("WITH m AS (SELECT * FROM mixed) SELECT id FROM m ORDER BY word",
         "SELECT id FROM mixed ORDER BY word, id DESC", True),
        ("SELECT id FROM item ORDER BY price DESC NULLS FIRST, kind",
         "SELECT id FROM item ORDER BY price DESC NULLS FIRST, kind, id DESC", True),
        ("SELECT kind, count(*) FROM item GROUP BY kind ORDER BY count(*) DESC",
         "SELECT kind, count(*) FROM item GROUP BY kind ORDER BY count(*) DESC, kind DESC", True),
        ("SELECT a.name FROM item AS a JOIN item AS b ON a.id = b.id ORDER BY b.price",
         "SELECT name FROM item ORDER BY price, id DESC", True),
        ("SELECT DISTINCT price FROM item ORDER BY price", "SELECT DISTINCT price FROM item ORDER BY 1 DESC", False),
        ("SELECT name FROM item ORDER BY length(name)", "SELECT name FROM item ORDER BY name DESC", True),
        ("SELECT name, id % 2 AS odd FROM item ORDER BY -odd",
         "SELECT name, id % 2 FROM item ORDER BY -(id % 2), id DESC", True),  # an alias inside an expression
        ("SELECT name, id % 2 AS odd FROM item ORDER BY -odd", "SELECT name, id % 2 FROM item ORDER BY id % 2", False),
        ("SELECT kind, count(*) AS n FROM item GROUP BY kind ORDER BY n + 0 DESC",
         "SELECT kind, count(*) FROM item GROUP BY kind ORDER BY count(*) DESC, kind DESC", True),
        ("SELECT id % 2 AS odd, id AS price FROM item ORDER BY abs(price), -odd",  # the column, not the alias
         "SELECT id % 2, id FROM item ORDER BY price, -(id % 2), id DESC", True),
        ("SELECT id AS price FROM item ORDER BY abs(price)", "SELECT id FROM item ORDER BY id", False),
        ("SELECT name FROM item UNION SELECT kind FROM item ORDER BY 1",
         "SELECT name FROM item UNION SELECT kind FROM item ORDER BY 1 DESC", False),
        ("SELECT name FROM item ORDER BY price LIMIT 4", "SELECT name FROM item ORDER BY price, id DESC LIMIT 4", True),
        ("SELECT name FROM item WHERE id < 3 ORDER BY price LIMIT 1",
         "SELECT name FROM item WHERE id < 3 ORDER BY price, id DESC LIMIT 1", False),
    ],
)  # fmt: skip
def test_rows_with_equal_sort_keys_may_be_in_any_order(items: Path, gold: str, predicted: str, expected: bool) -> None:
    def run(sql: str) -> Result:
        return execute(items, sql)

    assert run(gold).error is None
    assert verdict(gold, run(gold), run(predicted), "strict") is expected
