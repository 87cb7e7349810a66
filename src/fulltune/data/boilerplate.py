"""Find passages that recur in many texts: license headers, page footers, a fixed beginning or end."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from fulltune.data.findings import LISTED, Finding, percent, shorten, some

#: Words of a passage at least: shorter ones, such as the formula that begins a tale, are part of the language.
_WORDS = 8

#: Fraction of the texts that have a passage at least, and their number.
_FRACTION, _TEXTS = 0.2, 5

#: Texts that are compared, evenly spaced, and characters that are read of each end of one.
_COMPARED, _END = 1000, 10_000

#: Characters of a passage that a message shows.
_LENGTH = 100

_WORD = re.compile(r"\w+")
_DIGITS = re.compile(r"\d+")


@dataclass
class Passage:
    """A passage that recurs.

    Attributes:
        forms: How often it is written in which way; numbers and the words after it may differ.
        ids: The texts that have it.
        words: Number of its words in all of them.
    """

    forms: Counter[str] = field(default_factory=Counter)
    ids: dict[str, None] = field(default_factory=dict)
    words: int = 0

    @property
    def text(self) -> str:
        """The most common form, on one line."""
        return self.forms.most_common(1)[0][0]


def boilerplate_finding(texts: Sequence[tuple[str, str]], *, learned: bool) -> Iterator[Finding]:
    """Yield the finding about passages that many texts of train have, if there are any.

    Args:
        texts: Id and text of each row.
        learned: The model learns to write the texts; otherwise it only reads them.
    """
    compared = texts[:: -(-len(texts) // _COMPARED) or 1]
    words = {row: _words(text) for row, text in compared}
    passages = recurring(words, {row: _read(text) for row, text in compared})
    if not passages:
        return
    most = passages[0]
    total = sum(map(len, words.values()))
    share = percent(sum(passage.words for passage in passages), total)
    of = f"{len(compared):,} texts of train" + (" that were compared" if len(compared) < len(texts) else "")
    others = f"; {len(passages):,} such passages are {share} of the words" if len(passages) > 1 else ""
    others = others or f"; it is {share} of the words"
    effect = "the model learns it by heart, and it makes scores look better" if learned else "it takes space and time"
    yield Finding(
        kind="boilerplate",
        level="warning" if learned else "info",
        message=f"{len(most.ids):,} of {of} ({percent(len(most.ids), len(compared))}) have the same passage, "
        f"{shorten(most.text, _LENGTH)!r}{others}",
        fix=f"remove it from the texts if it does not belong to them: {effect}; audit.json lists each passage",
        split="train",
        count=len(most.ids),
        ids=some(list(most.ids)),
        details={"passages": [[passage.text, len(passage.ids)] for passage in passages[:LISTED]]},
    )


def recurring(words: dict[str, list[tuple[str, int, int]]], texts: dict[str, str]) -> list[Passage]:
    """Return the passages that many texts have, those with the most words in all texts first.

    Args:
        words: Words of each text, with the places where they begin and end.
        texts: The texts.
    """
    counts = Counter[int]()
    for parts in words.values():
        counts.update(set(_shingles(parts)))
    fewest = max(_TEXTS, _FRACTION * len(words))
    frequent = {shingle for shingle, count in counts.items() if count >= fewest}
    found = defaultdict[int, Passage](Passage)
    for row, parts in words.items() if frequent else ():
        for key, first, last in _runs(_shingles(parts), frequent):
            if last - first < len(parts):  # otherwise the text itself is repeated, which is another finding
                passage = found[key]
                passage.forms[" ".join(texts[row][parts[first][1] : parts[last - 1][2]].split())] += 1
                passage.ids[row] = None
                passage.words += last - first
    common = [passage for passage in found.values() if len(passage.ids) >= fewest]
    return sorted(common, key=lambda passage: -passage.words)


def _read(text: str) -> str:
    """Return the part of a text that is compared: all of it, or its two ends, where boilerplate is."""
    return text if len(text) <= 2 * _END else f"{text[:_END]}\n{text[-_END:]}"


def _words(text: str) -> list[tuple[str, int, int]]:
    """Return the words of a text in lower case, all numbers alike, with their places."""
    matches = _WORD.finditer(_read(text))
    return [(_DIGITS.sub("0", match.group().casefold()), match.start(), match.end()) for match in matches]


def _shingles(parts: Sequence[tuple[str, int, int]]) -> list[int]:
    """Return a hash of each sequence of :data:`_WORDS` words."""
    names = [name for name, _, _ in parts]
    return [hash(tuple(names[start : start + _WORDS])) for start in range(len(names) - _WORDS + 1)]


def _runs(shingles: Sequence[int], frequent: set[int]) -> Iterator[tuple[int, int, int]]:
    """Yield the first shingle of each passage, and the places of its first and after its last word."""
    start = None
    for place, shingle in enumerate([*shingles, None]):
        if shingle in frequent:
            start = place if start is None else start
        elif start is not None:
            yield shingles[start], start, place + _WORDS - 1
            start = None
