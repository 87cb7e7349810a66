"""Near copies against an independent count of their character 5-grams."""

from __future__ import annotations

import random
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulltune.data.duplicates import (
    FEWEST_WORDS,
    THRESHOLD,
    NearIndex,
    clusters,
    fold,
    is_contained,
    normalize,
    similarity,
)

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


def is_near(one: str, other: str) -> bool:
    """Apply the definition, computed in another way: words here are separated by spaces only."""
    a, b = Counter(one.split()), Counter(other.split())
    few = min(a.total(), b.total()) < FEWEST_WORDS
    same_words = sum(min(a[word], b[word]) for word in a) / max(a.total(), b.total())
    return jaccard(one, other) >= THRESHOLD or (not few and same_words >= 0.95)


def corpus(seed: int, size: int = 60) -> list[str]:
    """Return texts of 5 to 60 words, a third of them copies of earlier ones with a few words changed."""
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
        ("Тhе сat ѕat", "The cat sat", True),
        ("ΤΗΕ ΒΟΧ", "THE BOX", True),
        ("the c\u200bat\u00ad sat\ufeff", "the cat sat", True),
        ("the\u00a0cat", "the cat", True),
        ("cafe\u0301", "caf\u00e9", True),
        ("кот", "кит", False),
        ("𝐭𝐡𝐞 cat", "the cat", True),
    ],
)
def test_normalising(one: str, other: str, same: bool) -> None:
    assert (normalize(one) == normalize(other)) is same


def test_folding_keeps_punctuation() -> None:
    assert fold("  A,\n B ") == "a, b"
    assert fold("a-b") != fold("a/b")


@given(st.text(), st.text())
def test_similarity_is_the_jaccard_index_of_character_5_grams(one: str, other: str) -> None:
    one, other = normalize(one), normalize(other)
    assert similarity(one, other) == pytest.approx(jaccard(one, other), abs=1e-6) or not (one and other)


@pytest.mark.parametrize("seed", range(5))
def test_the_index_finds_what_comparing_all_with_all_finds(seed: int) -> None:
    texts = list(dict.fromkeys(corpus(seed)))
    index = NearIndex()
    found = set()
    for number, text in enumerate(texts):
        found |= {(number, position) for position, _ in index.near(text)}
        index.add(text)
    truth = {(b, a) for a in range(len(texts)) for b in range(a + 1, len(texts)) if is_near(texts[a], texts[b])}
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


LONG = ["internationalization", "zebra", "responsibilities"]


@pytest.mark.parametrize("size", [20, 25, 40, 100, 400, 2000])
@pytest.mark.parametrize("vocabulary", [4, 15, 10**6], ids=["repetitive", "few words", "many words"])
@pytest.mark.parametrize("change", ["replaced", "inserted", "removed"])
def test_one_word_changed_in_a_long_text(size: int, vocabulary: int, change: str) -> None:
    draw = random.Random(size)
    words = [f"w{draw.randrange(vocabulary)}ord" for _ in range(size + 1)]
    index = NearIndex()
    index.add(" ".join(words))
    for word in LONG:
        place = draw.randrange(len(words))
        kept = words[place:] if change == "inserted" else words[place + 1 :]
        changed = [*words[:place], *([] if change == "removed" else [word]), *kept]
        assert [position for position, _ in index.near(" ".join(changed))] == [0]


@pytest.mark.parametrize(("size", "few", "many"), [(60, 3, 8), (100, 5, 13), (400, 20, 52)])
def test_some_words_changed_in_a_long_text(size: int, few: int, many: int) -> None:
    draw = random.Random(size)
    words = [draw.choice(WORDS) + str(draw.randrange(9)) for _ in range(size)]
    index = NearIndex()
    index.add(" ".join(words))
    for count, is_found in ((few, True), (many, False)):
        changed = list(words)
        for place in draw.sample(range(size), count):
            changed[place] = draw.choice(LONG)
        assert bool(list(index.near(" ".join(changed)))) is is_found


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("what is the capital of texas", "what is the capital of ohio"),
        ("what is the population of the largest city in the state with the highest elevation",
         "what is the population of the largest city in the state with the lowest elevation"),
        ("how many rivers run through the states that border colorado",
         "how many rivers run through the states that border nebraska"),
        ("what currencies and cards do you support", "what cards and currencies do you support"),
    ],
)  # fmt: skip
def test_questions_from_one_template_are_different(one: str, other: str) -> None:
    index = NearIndex()
    index.add(one)
    assert list(index.near(other)) == []


def test_one_character_changed_in_a_text_without_spaces() -> None:
    text = "本协议应受加利福尼亚州法律管辖并按其解释不考虑其法律冲突原则双方同意接受法院的专属管辖权"
    index = NearIndex()
    index.add(text)
    assert [position for position, _ in index.near(text.replace("加", "猫"))] == [0]


def test_only_wanted_positions_are_returned() -> None:
    index = NearIndex()
    for ending in ("one", "two"):
        index.add("a sentence that is long enough to be distinguished from others by " + ending)
    text = "a sentence that is long enough to be distinguished from others by one"
    assert [position for position, _ in index.near(text)] == [0, 1]
    assert [position for position, _ in index.near(text, lambda position: position == 1)] == [1]


@pytest.mark.parametrize("seed", range(5))
def test_clusters_are_the_connected_parts_of_nearness(seed: int) -> None:
    texts = [*corpus(seed), *(text.upper() + "!" for text in corpus(seed)[:5])]
    names = [normalize(text) for text in texts]
    truth = list(range(len(texts)))
    for number in range(len(texts)):
        for other in range(number):
            if is_near(names[number], names[other]):
                old, new = truth[number], truth[other]
                truth = [new if label == old else label for label in truth]
    found = clusters(texts)
    assert len(set(truth)) < len(texts) - 5
    assert [found.index(label) for label in found] == [truth.index(label) for label in truth]


def test_many_rows_from_one_template_stay_cheap() -> None:
    """All rows are near each other: one cluster, without comparing every pair."""
    template = " ".join(WORDS * 8)
    texts = [f"{template} {number}" for number in range(400)]
    assert set(clusters(texts)) == {0}


def test_a_text_of_millions_of_characters_stays_cheap() -> None:
    generator = random.Random(3)
    words = generator.choices(WORDS, k=300_000)
    changed = [*words[:150_000], "violin", *words[150_001:]]
    start = time.process_time()
    assert clusters([" ".join(words), " ".join(changed)]) == [0, 0]
    assert time.process_time() - start < 8


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("how many rivers are there", "please tell me how many rivers are there", True),
        ("how many rivers are there now", "how many rivers are there", True),
        ("how many rivers", "please tell me how many rivers", False),  # too short to mean the same
        ("how many rivers are there", "show many rivers are there", False),
        ("how many rivers are there", "a b c d e f g how many rivers are there", False),
    ],
)
def test_a_text_with_a_few_words_around_it_is_contained(one: str, other: str, expected: bool) -> None:
    assert is_contained(one, other) is is_contained(other, one) is expected


def test_texts_with_a_few_words_added_stay_together_in_a_split() -> None:
    texts = ["which of the rivers in ohio is the longest", "how many people live in texas"]
    assert clusters([*texts, f"Tell me: {texts[0]}?"]) == [0, 1, 0]
