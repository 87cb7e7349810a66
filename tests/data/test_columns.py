"""What columns hold, by their values, and which of them a task reads."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulltune.data.columns import roles
from fulltune.data.columns.profile import Profile, profile, profiles

SENTENCE = "The supplier shall deliver item {} to the customer before the end of month {}."


def texts(n: int = 60) -> list[str]:
    return [SENTENCE.format(3 * i, i % 12) for i in range(n)]


def columns(**values: list[Any]) -> dict[str, Profile]:
    size = len(next(iter(values.values())))
    return {one.name: one for one in profiles([{name: values[name][i] for name in values} for i in range(size)])}


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("text", lambda i: SENTENCE.format(i, i % 7)),
        ("text", lambda i: f"東京都の第{i}回の会議は来月の初めに開かれる予定です"),
        ("short text", lambda i: f"{'abcdefgh'[i % 8]}na {'qrstuvwx'[i // 8]}mo"),
        ("category", lambda i: ("spam", "ham", "unsure")[i % 3]),
        ("category", lambda i: i % 5 + 1),
        ("category", lambda i: str(i % 2)),
        ("category", lambda i: i % 3 == 0),
        ("category", lambda i: f"{i % 2}.0"),
        ("category", lambda i: float(i % 2)),
        ("category", lambda i: Decimal(i % 2)),
        ("labels", lambda i: ["a", "b", "c"][: i % 4]),
        ("labels", lambda i: str(["late", "broken", "rude"][i % 2 : i % 3 + 1])),
        ("labels", lambda i: ("late;broken", "broken;late", "rude", "late")[i % 4]),
        ("labels", lambda i: ("late | broken", "broken | rude", "rude", "late|rude")[i % 4]),
        ("id", lambda i: f"doc-{i:04}"),
        ("id", lambda i: f"user{i}@example.org"),
        ("repeated", lambda i: f"case-{i // 2:04}"),
        ("date", lambda i: f"2024-03-{i % 28 + 1:02}"),
        ("date", lambda i: f"{i % 28 + 1}. {i % 12 + 1}. 2024"),
        ("URL", lambda i: f"https://example.org/page/{i}"),
        ("number", lambda i: 17 * i),
        ("number", lambda i: i / 7),
        ("number", lambda i: f"{i},{i % 10}"),
        ("constant", lambda i: "en"),
        ("empty", lambda i: (None, "", "  ", float("nan"))[i % 4]),
        ("SQL", lambda i: f"SELECT name FROM city WHERE id = {i}"),
        ("object", lambda i: {"score": i}),
        ("messages", lambda i: [{"role": "user", "content": f"hi {i}"}]),
        ("vector", lambda i: [i % 2, 0, 1]),
        ("list", lambda i: [SENTENCE.format(i, 1), SENTENCE.format(i, 2)]),
    ],
)  # fmt: skip
def test_a_column_is_described_by_its_values(kind: str, make: Callable[[int], Any]) -> None:
    assert profile("column_7", [make(i) for i in range(60)]).kind == kind


def test_addresses_are_no_labels_although_they_have_commas() -> None:
    cities = ("Praha", "Brno", "Plzen", "Opava")
    values = [f"{cities[i % 4]}, CZ" if i % 2 else f"{cities[i % 3]}, SK" for i in range(60)]
    assert profile("place", values).kind == "category"


def test_tokens_and_tags_have_the_same_lengths() -> None:
    rows = [{"words": ["Ann", "lives", "here", str(i)], "ner": ["B-PER", "O", "O", "O"]} for i in range(9)]
    assert [one.kind for one in profiles(rows)] == ["tokens", "tags"]


def test_keys_that_only_some_rows_have_are_described_with_all_rows() -> None:
    found = {one.name: one for one in profiles([{"a": "x"}, {"b": "y"}, {"a": "x", "b": "z"}])}
    assert {name: (one.filled, one.rows) for name, one in found.items()} == {"a": (2, 3), "b": (2, 3)}


@given(
    st.lists(
        st.dictionaries(st.sampled_from("abc"), st.one_of(st.none(), st.text(), st.integers(), st.lists(st.text())))
    )
)
def test_any_rows_are_described(rows: list[dict[str, Any]]) -> None:
    found = profiles(rows)
    assert {one.name for one in found} == {name for row in rows for name in row}
    assert all(0 <= one.filled <= one.rows == len(rows) for one in found)


def test_the_label_is_the_repeated_column_that_describes_no_row() -> None:
    n = range(60)
    found = columns(
        language=["cs" if i % 2 else "sk" for i in n],
        vysledek=["ano" if i % 3 else "ne" for i in n],
        firma=[f"Firma {i % 15}" for i in n],
        znění=texts(),
    )
    chosen = roles.label(list(found.values()))
    assert chosen.name == "vysledek"
    assert roles.group(list(found.values()), {"vysledek", "znění"}) is found["firma"]
    assert roles.label([found["language"]]).column is None
    assert roles.label([found["language"]], required=True).name == "language"


def test_a_usual_name_decides_between_two_categories() -> None:
    found = columns(region=["n", "s", "w"] * 20, sentiment=["good", "bad"] * 30, text=texts())
    chosen = roles.label(list(found.values()))
    assert (chosen.name, [one.name for one in chosen.others]) == ("sentiment", ["region"])


@pytest.mark.parametrize("name", ["Číslo smlouvy", "Spisová značka", "ref"])
def test_codes_of_documents_are_a_group_and_no_label(name: str) -> None:
    blocks = [f"S-{1000 + i // 6}/2024" for i in range(180)]
    kinds = [("payment", "term", "notice")[i * i % 7 % 3] for i in range(180)]
    found = columns(**{name: blocks, "znění": texts(180), "C": kinds})
    assert roles.label(list(found.values())).name == "C"
    assert roles.group(list(found.values()), {"C", "znění"}) is found[name]


def test_codes_are_labels_if_nothing_else_is() -> None:
    found = columns(diagnosis=[f"J{10 + i % 25}.{i % 5}" for i in range(150)], note=texts(150))
    assert roles.label(list(found.values())).name == "diagnosis"


@pytest.mark.parametrize(
    ("name", "role"), [("Typ smlouvy", "label"), ("číslo smlouvy", "group"), ("Имя документа", "group")]
)
def test_names_are_known_in_any_inflection(name: str, role: str) -> None:
    assert roles.is_called(profile(name, ["a"]), role)


def test_consecutive_rows_are_a_group_whatever_the_name() -> None:
    found = columns(cislo=[f"Z-{i // 3}" for i in range(60)], text=texts())
    assert roles.group(list(found.values()), {"text"}) is found["cislo"]
    scattered = columns(cislo=[f"Z-{i % 20}" for i in range(60)], text=texts())
    assert roles.group(list(scattered.values()), {"text"}) is None


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("question", "answer", ("question", "answer")),
        ("summary", "article", ("article", "summary")),
        ("cs", "sk", ("cs", "sk")),
        ("target", "source", ("source", "target")),
    ],
)
def test_names_and_order_decide_the_direction_of_a_pair(one: str, other: str, expected: tuple[str, str]) -> None:
    found = roles.pair(list(columns(**{one: texts(), other: [text.upper() for text in texts()]}).values()))
    assert found is not None
    assert (found[0].name, found[1].name) == expected


def test_the_longer_of_two_texts_is_the_source() -> None:
    found = roles.pair(
        list(columns(a=["A short line of text " + str(i) for i in range(60)], b=[3 * t for t in texts()]).values())
    )
    assert found is not None
    assert found[0].name == "b"


def test_words_of_names_are_compared_without_case_and_diacritics() -> None:
    assert roles.name_words("docId") == {"doc", "id"}
    assert roles.name_words("Třída_1") == {"trida"}
    assert roles.name_words("НАЗВАНИЕ") == roles.name_words("название")


@pytest.mark.parametrize(
    ("role", "name"),
    [("text", "znění"), ("label", "vysledek"), ("group", "firma"), ("id", "kod"), ("sql", "dotaz"), ("db_id", None)],
)
def test_the_hint_for_a_missing_column_names_one_by_what_it_holds(role: str, name: str | None) -> None:
    found = columns(
        kod=[f"k{i}" for i in range(60)],
        vysledek=["ano", "ne"] * 30,
        firma=[f"Firma {i // 5}" for i in range(60)],
        dotaz=[f"SELECT {i} FROM t" for i in range(60)],
        znění=texts(),
    )
    likely = roles.likely(role, list(found.values()))
    assert (likely.name if likely else None) == name
