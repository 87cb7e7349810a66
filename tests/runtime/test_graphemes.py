"""Texts are cut between characters as a reader sees them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulltune.runtime.graphemes import clip, clusters

FAMILY, FLAG, ACCENT, SYLLABLE = "👩‍👩‍👧‍👦", "🇨🇿", "и\u0306", "क्षि"
LETTERS = st.sampled_from(["a", "я", " ", "漢", FAMILY, FLAG, ACCENT, SYLLABLE, "👍🏽", "\r\n"])


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [
        (f"ab{FAMILY}", 4, "ab"),
        (f"ab{FAMILY}c", 2 + len(FAMILY), f"ab{FAMILY}"),
        (FLAG * 3, 5, FLAG * 2),
        (f"сво{ACCENT}", 4, "сво"),
        ("plain", 3, "pla"),
        ("plain", 5, "plain"),
        ("", 3, ""),
        ("a" + "\u0301" * 9, 4, "a" + "\u0301" * 3),  # one character is longer than the limit
    ],
    ids=["family", "after-family", "flags", "combining", "plain", "complete", "empty", "too-long"],
)
def test_a_cut_is_between_characters(text: str, most: int, expected: str) -> None:
    assert clip(text, most) == expected


@given(st.lists(LETTERS), st.integers(1, 40))
def test_a_cut_text_is_the_longest_beginning_that_ends_with_a_character(parts: list[str], most: int) -> None:
    text = "".join(parts)
    cut = clip(text, most)
    ends = [0]
    for cluster in clusters(text):
        ends.append(ends[-1] + len(cluster))

    assert text.startswith(cut)
    assert len(cut) == (max(end for end in ends if end <= most) or min(most, len(text)))
