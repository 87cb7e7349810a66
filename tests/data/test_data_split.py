"""Held-out parts: the right size, by group, by label, and the same for any order of the rows."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matrix import often

from fulltune.data.duplicates import THRESHOLD, normalize, similarity
from fulltune.data.load import Row, Table
from fulltune.data.split import fold_tables, input_text, split_table
from fulltune.errors import DataError, Problem


def distinct(number: int) -> str:
    draw = random.Random(number)
    return " ".join("".join(draw.choices("abcdefghijklmnop", k=8)) for _ in range(8))


def table(rows: list[dict[str, Any]]) -> Table:
    return Table("made.jsonl", tuple(Row(f"made.jsonl:{n}", f"made.jsonl:{n}", row) for n, row in enumerate(rows, 1)))


def texts(count: int, **more: str) -> Table:
    return table([{"text": distinct(number), **more} for number in range(count)])


def ids(part: Table) -> list[str]:
    return [row.id for row in part]


@pytest.mark.parametrize("share", [0.01, 0.1, 0.25, 0.3, 0.5, 0.9])
def test_the_fraction_is_met_and_nothing_is_lost(share: float) -> None:
    whole = texts(200)
    rest, held = split_table(whole, share, seed=3)
    assert len(held) == pytest.approx(200 * share, abs=1)
    assert sorted(ids(rest) + ids(held)) == sorted(ids(whole))
    assert ids(rest) == [name for name in ids(whole) if name in set(ids(rest))]


def test_the_draw_depends_on_the_seed_and_not_on_the_order() -> None:
    whole = texts(100)
    shuffled = list(whole)
    random.Random(1).shuffle(shuffled)
    _, held = split_table(whole, 0.2, seed=5)
    _, again = split_table(Table("made.jsonl", tuple(shuffled)), 0.2, seed=5)
    _, other = split_table(whole, 0.2, seed=6)
    assert set(ids(held)) == set(ids(again)) != set(ids(other))


@pytest.mark.parametrize("seed", range(5))
def test_each_folder_is_held_out_at_the_same_rate(seed: int) -> None:
    sizes = {"krylov": 36, "tolstoy": 50, "afanasyev": 13, "pushkin": 1}
    folders = [name for name, size in sizes.items() for _ in range(size)]
    rows = tuple(replace(row, folder=folder) for row, folder in zip(texts(100), folders, strict=True))
    whole = Table("tales", rows)

    _, held = split_table(whole, 0.2, seed=seed)
    drawn = Counter(row.folder for row in held)
    assert all(abs(drawn[name] - 0.2 * size) <= 1 for name, size in sizes.items())
    assert ids(held) != ids(split_table(whole, 0.2, seed=seed + 5)[1])
    for _, fold in fold_tables(whole, 5, seed=seed):
        dealt = Counter(row.folder for row in fold)
        assert all(abs(dealt[name] - size / 5) <= 1 for name, size in sizes.items())


def test_near_copies_never_straddle() -> None:
    rows = [{"text": distinct(number // 3) + f" {number}"} for number in range(90)]
    rest, held = split_table(table(rows), 0.2)
    assert len(held) == 18
    nearest = [similarity(normalize(a.fields["text"]), normalize(b.fields["text"])) for a in rest for b in held]
    assert max(nearest) < THRESHOLD


def test_groups_never_straddle_even_when_their_rows_differ() -> None:
    rows = [{"text": distinct(number), "group": str(number % 12)} for number in range(120)]
    rest, held = split_table(table(rows), 0.25, groups="group")
    of_rest, of_held = ({row.fields["group"] for row in part} for part in (rest, held))
    assert not of_rest & of_held
    assert len(held) == 30


def test_groups_may_hold_copies() -> None:
    rows = [{"text": "the same text in every row", "group": str(number)} for number in range(10)]
    rest, held = split_table(table(rows), 0.2, groups="group")
    assert (len(rest), len(held)) == (8, 2)


def test_each_label_gives_its_fraction() -> None:
    labels = ["common"] * 300 + ["seldom"] * 60 + ["rare"] * 20
    rows = [{"text": distinct(number), "label": label} for number, label in enumerate(labels)]
    _, held = split_table(table(rows), 0.1, stratify="label")
    assert Counter(row.fields["label"] for row in held) == {"common": 30, "seldom": 6, "rare": 2}


def test_many_small_labels_together_give_their_fraction() -> None:
    rows = [{"text": distinct(number), "label": f"label {number % 77}"} for number in range(77 * 5)]
    _, held = split_table(table(rows), 0.1, stratify="label")
    counts = Counter(row.fields["label"] for row in held)
    assert sum(counts.values()) == pytest.approx(38.5, abs=1)
    assert max(counts.values()) == 1


def labels_of(part: Table) -> set[str]:
    return {label for row in part for label in _several(row.fields)}


def _several(fields: Mapping[str, Any]) -> list[str]:
    return fields["labels"] if "labels" in fields else [fields["label"]]


FRACTIONS = [0.001, 0.1, 0.4, 0.5, 0.9, 0.999]


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(
    ("first", "second"),
    often(product(FRACTIONS, FRACTIONS), lambda pair: pair in [(0.001, 0.999), (0.999, 0.001), (0.5, 0.5), (0.9, 0.9)]),
)
def test_train_keeps_every_label_whatever_is_held_out(first: float, second: float, several: bool) -> None:
    """Labels with one, two and three rows among common ones."""
    labels = ["common"] * 60 + ["other"] * 40 + ["once"] + ["twice"] * 2 + ["thrice"] * 3
    role = "labels" if several else "label"
    values: list[Any] = (
        [["common", label] if n % 3 else [label] for n, label in enumerate(labels)] if several else labels
    )
    whole = table([{"text": distinct(number), role: value} for number, value in enumerate(values)])
    for seed in range(3):
        rest, held = split_table(whole, first, stratify=role, seed=seed, spare=True)
        train, valid = split_table(rest, second, stratify=role, seed=seed, name="valid")
        assert labels_of(train) == set(labels)
        assert sorted(ids(train) + ids(held) + ids(valid)) == sorted(ids(whole))
        assert min(len(train), len(held), len(valid)) > 0


def test_labels_of_single_rows_do_not_shrink_what_is_held_out() -> None:
    labels = ["common"] * 100 + [f"only {number}" for number in range(50)]
    whole = table([{"text": distinct(number), "label": label} for number, label in enumerate(labels)])
    rest, held = split_table(whole, 0.2, stratify="label")
    assert len(held) == 30
    assert labels_of(held) == {"common"}
    assert labels_of(rest) == set(labels)


def test_rows_of_several_labels_are_split_by_the_rarest() -> None:
    rows = [{"text": distinct(n), "labels": ["a", "rare"] if n % 10 == 0 else ["a", f"b{n % 2}"]} for n in range(300)]
    _, held = split_table(table(rows), 0.2, stratify="labels")
    counts = Counter(label for row in held for label in row.fields["labels"])
    assert (counts["a"], counts["rare"]) == (60, 6)
    assert counts["b0"] + counts["b1"] == 54
    assert abs(counts["b0"] / 120 - counts["b1"] / 150) < 0.02


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from("abcdefg")), min_size=4, max_size=40),
    st.sampled_from(FRACTIONS),
    st.integers(0, 9),
)
def test_groups_give_train_every_label_that_two_groups_have(
    rows: list[tuple[int, str]], share: float, seed: int
) -> None:
    whole = table([{"text": f"{g} {n}", "group": str(g), "label": label} for n, (g, label) in enumerate(rows)])
    groups = {label: {g for g, name in rows if name == label} for _, label in rows}
    if len({g for g, _ in rows}) < 2:
        return
    rest, held = split_table(whole, share, groups="group", stratify="label", seed=seed)
    assert {row.fields["group"] for row in rest}.isdisjoint(row.fields["group"] for row in held)
    held_groups = len({row.fields["group"] for row in held})
    assert rest
    assert held
    assert held_groups == 1 or labels_of(rest) == groups.keys()


def test_problems_stay_with_the_remaining_rows() -> None:
    whole = Table("made.jsonl", texts(10).rows, (Problem("broken"),))
    rest, held = split_table(whole, 0.2)
    assert (rest.problems, held.problems) == (whole.problems, ())
    assert "0.2" in held.info.source
    assert "made.jsonl" in held.info.source


@pytest.mark.parametrize(
    ("rows", "groups", "message"),
    [
        ([{"text": "alone"}], None, "1 row to split; expected at least two groups"),
        ([], None, "0 rows to split"),
        ([{"text": "twice the same text"}] * 2, None, "all 2 rows are near duplicates of each other"),
        ([{"text": distinct(n), "group": "a"} for n in range(4)], "group", "4 rows with a single value in the group"),
    ],
)
def test_too_few_groups(rows: list[dict[str, str]], groups: str | None, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        split_table(table(rows), 0.1, groups=groups)
    assert "data.eval" in str(caught.value)


def test_rows_that_cannot_be_used_are_named_where_too_few_are_left() -> None:
    lost = Problem("the id '1' is used before", where="made.jsonl:2", field="id")
    with pytest.raises(DataError, match=r"(?s)1 row to split.*made\.jsonl:2.*the id '1' is used before"):
        split_table(replace(table([{"text": "alone"}]), problems=(lost,)), 0.1)


@pytest.mark.parametrize("share", [0.001, 0.999])
@pytest.mark.parametrize("count", [2, 3])
def test_neither_part_is_ever_empty(share: float, count: int) -> None:
    rest, held = split_table(texts(count), share)
    assert min(len(rest), len(held)) > 0


@settings(max_examples=50)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=30), st.floats(0.05, 0.5), st.integers(0, 99))
def test_the_fraction_is_missed_by_less_than_the_largest_group(sizes: list[int], share: float, seed: int) -> None:
    rows = [{"text": f"{g} {n}", "group": str(g)} for g, size in enumerate(sizes) for n in range(size)]
    rest, held = split_table(table(rows), share, groups="group", seed=seed)
    assert {row.fields["group"] for row in rest}.isdisjoint(row.fields["group"] for row in held)
    assert abs(len(held) - share * len(rows)) <= max(sizes)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"text": "t"}, "t"),
        ({"source": "s", "target": "t"}, "s"),
        ({"question": "q", "sql": "s", "db_id": "d"}, "q"),
        ({"prompt": "p", "completion": "c"}, "p"),
        ({"prompt": "", "completion": "c"}, "c"),
    ],
)
def test_the_input_text_is_what_the_model_reads(fields: dict[str, str], text: str) -> None:
    assert input_text(fields) == text
