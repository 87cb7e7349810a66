"""Near copies against an independent count of their character 5-grams."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulltune.data.duplicates import THRESHOLD, NearIndex, clusters, fold, normalise, similarity

WORDS = [
    "river",
    "stone",
    "winter",
    "fox",
    "bread",
    "lantern",
    "whisper",
    "copper",
    "meadow",
    "thunder",
    "candle",
    "harbour",
    "needle",
    "orchard",
    "velvet",
]


def grams(text: str) -> set[str]:
    return {text[start : start + 5] for start in range(max(1, len(text) - 4))}


def jaccard(one: str, other: str) -> float:
    a, b = grams(one), grams(other)
    return len(a & b) / len(a | b)


def corpus(seed: int, size: int = 60) -> list[str]:
    """Texts of 5 to 60 words, a third of them copies of earlier ones with a few words changed."""
    draw, texts = random.Random(seed), list[str]()
    for _ in range(size):
        words = [draw.choice(WORDS) for _ in range(draw.randint(5, 60))]
        if texts and draw.random() < 0.4:
            words = draw.choice(texts).split()
            for _ in range(draw.randint(0, 3)):
                words[draw.randrange(len(words))] = draw.choice(WORDS)
        texts.append(" ".join(words))
    return texts


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("The Fox!", "the  fox", True),
        ("\ufb01ne \uff26ox", "fine fox", True),
        ("STRASSE", "straße", True),
        ("don't", "don t", True),
        ("a < b", "a > b", False),
        ("3.5", "35", False),
        ("«Лиса»", "лиса", True),
        ("?", "!", False),
        ("$5", "5", False),
    ],
)
def test_normalising(one: str, other: str, same: bool) -> None:
    assert (normalise(one) == normalise(other)) is same


def test_folding_keeps_punctuation() -> None:
    assert fold("  A,\n B ") == "a, b"
    assert fold("a-b") != fold("a/b")


@given(st.text(), st.text())
def test_similarity_is_the_jaccard_index_of_character_5_grams(one: str, other: str) -> None:
    one, other = normalise(one), normalise(other)
    assert similarity(one, other) == pytest.approx(jaccard(one, other), abs=1e-6) or not (one and other)


@pytest.mark.parametrize("seed", range(5))
def test_the_index_finds_what_comparing_all_with_all_finds(seed: int) -> None:
    texts = list(dict.fromkeys(corpus(seed)))
    index = NearIndex()
    found = set()
    for number, text in enumerate(texts):
        found |= {(number, position) for position, _ in index.near(text)}
        index.add(text)
    truth = {
        (b, a) for a in range(len(texts)) for b in range(a + 1, len(texts)) if jaccard(texts[a], texts[b]) >= THRESHOLD
    }
    assert len(truth) >= 5
    assert found == truth


def test_long_texts_are_verified_on_all_of_their_5_grams() -> None:
    draw = random.Random(0)
    words = [str(draw.randrange(10**6)) for _ in range(3000)]
    near, far = words[:2850] + WORDS * 10, words[:2200] + [str(draw.randrange(10**6)) for _ in range(800)]
    index = NearIndex()
    index.add(" ".join(words))
    for other, is_near in ((near, True), (far, False)):
        assert bool(list(index.near(" ".join(other)))) is is_near
        assert (jaccard(" ".join(words), " ".join(other)) >= THRESHOLD) is is_near


def test_only_wanted_positions_are_given() -> None:
    index = NearIndex()
    for ending in ("one", "two"):
        index.add("a sentence that is long enough to be told from others by " + ending)
    text = "a sentence that is long enough to be told from others by one"
    assert [position for position, _ in index.near(text)] == [0, 1]
    assert [position for position, _ in index.near(text, lambda position: position == 1)] == [1]


@pytest.mark.parametrize("seed", range(5))
def test_clusters_are_the_connected_parts_of_nearness(seed: int) -> None:
    texts = [*corpus(seed), *(text.upper() + "!" for text in corpus(seed)[:5])]
    names = [normalise(text) for text in texts]
    truth = list(range(len(texts)))
    for number in range(len(texts)):
        for other in range(number):
            if jaccard(names[number], names[other]) >= THRESHOLD:
                old, new = truth[number], truth[other]
                truth = [new if label == old else label for label in truth]
    found = clusters(texts)
    assert len(set(truth)) < len(texts) - 5
    assert [found.index(label) for label in found] == [truth.index(label) for label in truth]


def test_many_rows_from_one_template_stay_cheap() -> None:
    """All near each other: one cluster, without comparing all with all."""
    template = " ".join(WORDS * 8)
    texts = [f"{template} {number}" for number in range(400)]
    assert set(clusters(texts)) == {0}
