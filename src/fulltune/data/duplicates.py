"""Texts that say the same: exactly, after normalizing, or nearly.

Near means a Jaccard similarity of at least :data:`THRESHOLD` between the sets of character 5-grams of the normalized
texts (Broder 1997, "On the resemblance and containment of documents"); or, from :data:`FEWEST_WORDS` words on, that at
most one word in twenty differs, which the first measure does not see where the word is long, or where the text repeats
itself and has few different 5-grams. MinHash with locality-sensitive hashing (datasketch) over 5-grams, each as often
as it occurs, only proposes pairs; each is then verified on the full texts, so that nothing is called near that is not.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fulltune.data.values import is_invisible
from fulltune.metrics.words import words

THRESHOLD = 0.85
WORD_THRESHOLD = 0.95
#: Below this many words, one other word makes another question: "the capital of Texas", "the capital of Ohio".
FEWEST_WORDS = 20
SHINGLE = 5

#: 24 bands of 5: a pair at the threshold is proposed with probability 1 - (1 - 0.85^5)^24 > 0.9999, one at 0.72 (one
#: long word changed in twenty) with 0.99.
_BANDS, _ROWS = 24, 5
_HASHES = _BANDS * _ROWS
#: Proposed pairs whose MinHash estimate is below this are dropped unseen; the standard error of 120 hashes is 0.04.
_LOWEST_ESTIMATE = 0.6
#: Shingles of a text that MinHash reads: those with the smallest hashes, which is a fair sample and the same one in a
#: copy.
_SKETCHED = 1024
#: Proposals for one text that are verified, likeliest first. It bounds the work on rows that all share one long
#: template.
_VERIFIED = 50


#: Letters of Cyrillic, Greek and Armenian, in lower case, that look like a Latin one in one of the two cases (a choice
#: from Unicode TR39, "confusables"). Both sides of a comparison are mapped, so texts of one script hardly come closer.
_LOOKALIKES = str.maketrans(
    "авекмнорстухіјѕһԁԛԝӏүҽ" + "αβεζηικμνορτυχ" + "օսհո" + "ıɑɡ",
    "abekmhopctyxijshdqwlye" + "abezhikmnoptyx" + "ouhn" + "iag",
)


class _Folded(dict[int, str | int | None]):
    """For ``str.translate``: invisible characters go, look-alike letters become Latin, everything else stays. Filled as
    characters are met.
    """

    def __missing__(self, code: int) -> str | int | None:
        character = chr(code)
        self[code] = value = None if is_invisible(character) and not character.isspace() else code
        return value


class _Spaced(dict[int, str | int]):
    """For ``str.translate``: punctuation becomes a space, everything else stays. Filled as characters are met."""

    def __missing__(self, code: int) -> str | int:
        self[code] = value = " " if unicodedata.category(chr(code)).startswith("P") else code
        return value


_FOLDED = _Folded(_LOOKALIKES)
_SPACED = _Spaced()


def fold(text: str) -> str:
    """Return what two spellings of one text share: NFKC, case-folded, without invisible characters, look-alike letters
    as Latin ones, whitespace collapsed. Signs stay: ``a < b`` is not ``a > b``.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).translate(_FOLDED)
    return " ".join(text.casefold().split())


def normalize(text: str) -> str:
    """:func:`fold`, with punctuation as whitespace; a text of punctuation only is just folded."""
    folded = fold(text)
    return " ".join(folded.translate(_SPACED).split()) or folded


def _hashes(text: str) -> NDArray[np.uint32]:
    """Return the sorted 32-bit hashes of the text's character 5-grams, shape ``(n,)``. A shorter text is one 5-gram."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    codes = np.pad(codes, (0, max(0, SHINGLE - len(codes))))
    count = len(codes) - SHINGLE + 1
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(SHINGLE):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + codes[offset : offset + count]
    # The polynomial's low bits depend on few input bits: mix (the finaliser of MurmurHash3) before cutting to 32.
    for multiplier in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        hashes = (hashes ^ (hashes >> np.uint64(33))) * np.uint64(multiplier)
    return np.sort((hashes >> np.uint64(32)).astype(np.uint32))


@lru_cache(maxsize=8192)
def _distinct(text: str) -> NDArray[np.uint32]:
    return np.unique(_hashes(text))


def _numbered(text: str) -> NDArray[np.uint32]:
    """Return the distinct hashes of the text's 5-grams, with others for the second, third, … time that one occurs."""
    ordered = _hashes(text)
    first = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] + np.uint32(1)))
    if len(first) == len(ordered):
        return ordered
    rank = np.arange(len(ordered)) - np.repeat(first, np.diff(first, append=len(ordered)))
    mixed = (ordered ^ (rank.astype(np.uint32) * np.uint32(0x9E3779B1))) * np.uint32(0x85EBCA6B)
    return np.unique(np.where(rank > 0, mixed ^ (mixed >> np.uint32(15)), ordered))


def similarity(one: str, other: str) -> float:
    """Return the Jaccard similarity of the character 5-grams of two normalized texts, 0 to 1."""
    a, b = _distinct(one), _distinct(other)
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


@lru_cache(maxsize=8192)
def _word_counts(text: str) -> Counter[str]:
    return Counter(words(text))


def word_similarity(one: str, other: str) -> float:
    """Return the fraction of the words of the longer text that the other text has too, in any order, 0 to 1."""
    a, b = _word_counts(one), _word_counts(other)
    longer = max(a.total(), b.total())
    return (a & b).total() / longer if longer else 0.0


def is_near(one: str, other: str) -> bool:
    """Check that two normalized texts are nearly the same, in their 5-grams or in their words."""
    if similarity(one, other) >= THRESHOLD:
        return True
    fewest = min(_word_counts(one).total(), _word_counts(other).total())
    return fewest >= FEWEST_WORDS and word_similarity(one, other) >= WORD_THRESHOLD


class NearIndex:
    """Normalized texts, found again by what is nearly the same."""

    def __init__(self) -> None:
        from datasketch import MinHashLSH

        self.texts: list[str] = []
        self._index = MinHashLSH(num_perm=_HASHES, params=(_BANDS, _ROWS))
        self._signatures = np.zeros((16, _HASHES), dtype=np.uint32)

    def add(self, text: str) -> int:
        """Index a text; returns its position."""
        position = len(self.texts)
        if position == len(self._signatures):
            self._signatures = np.concatenate([self._signatures, np.zeros_like(self._signatures)])
        sketch = _sketch(text)
        self._signatures[position] = sketch.hashvalues
        self._index.insert(position, sketch, check_duplication=False)
        self.texts.append(text)
        return position

    def near(self, text: str, wanted: Callable[[int], bool] = lambda position: True) -> Iterator[tuple[int, float]]:
        """Near texts as ``(position, similarity)``, likeliest first; only those ``wanted`` when their turn comes."""
        for position in islice(filter(wanted, self._proposals(text)), _VERIFIED):
            if is_near(text, self.texts[position]):
                yield position, similarity(text, self.texts[position])

    def _proposals(self, text: str) -> list[int]:
        """Positions of what is likely near by the MinHash estimate, in falling order of it."""
        sketch = _sketch(text)
        found = np.sort(np.array(self._index.query(sketch), dtype=np.int64))
        estimates = (self._signatures[found] == np.asarray(sketch.hashvalues, dtype=np.uint32)).mean(axis=1)
        order = np.argsort(-estimates, kind="stable")
        positions: list[int] = found[order[estimates[order] >= _LOWEST_ESTIMATE]].tolist()
        return positions


def clusters(texts: Sequence[str]) -> list[int]:
    """A cluster number for each text; normalized copies and near ones, directly or through others, share it.

    The number is the position of the cluster's first text.
    """
    parents: list[int] = []
    index, first, of_text = NearIndex(), list[int](), dict[str, int]()
    for number, text in enumerate(map(normalize, texts)):
        parents.append(of_text.setdefault(text, number))
        if parents[number] != number:
            continue

        def elsewhere(position: int, own: int = number) -> bool:
            return _root(parents, first[position]) != _root(parents, own)

        for position, _ in index.near(text, elsewhere):
            one, other = sorted((_root(parents, first[position]), _root(parents, number)))
            parents[other] = one
        index.add(text)
        first.append(number)
    return [_root(parents, number) for number in range(len(parents))]


def _root(parents: list[int], number: int) -> int:
    while parents[number] != number:
        parents[number] = number = parents[parents[number]]
    return number


@lru_cache(maxsize=16)
def _sketch(text: str) -> Any:
    """A datasketch MinHash; kept for the moment between looking a text up and adding it."""
    sketch = _empty_sketch().copy()
    sketch.update_batch(_numbered(text)[:_SKETCHED].tolist())
    return sketch


@cache
def _empty_sketch() -> Any:
    """Made once: drawing the permutations takes longer than hashing a short text."""
    from datasketch import MinHash

    return MinHash(num_perm=_HASHES, hashfunc=int)
