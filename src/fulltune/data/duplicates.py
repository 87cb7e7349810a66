"""Detect duplicate texts: exact, equal after normalization, or near.

Near means a Jaccard similarity of at least :data:`THRESHOLD` between the sets of character 5-grams of the normalized
texts (Broder 1997, "On the resemblance and containment of documents"). Texts of at least :data:`FEWEST_WORDS` words are
also near if at most one word in twenty differs: the first measure misses this if the word is long, or if the text
repeats itself and has few distinct 5-grams. MinHash with locality-sensitive hashing (datasketch) over 5-grams, with
multiplicity, proposes pairs. Each pair is then verified on the complete texts, so there are no false positives.
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
#: In texts of fewer words, one changed word changes the meaning: "the capital of Texas", "the capital of Ohio".
FEWEST_WORDS = 20
#: Fewest words of a text that another contains, and most words that this one may add to it.
CONTAINED_WORDS, ADDED_WORDS = 4, 6
SHINGLE = 5

#: 24 bands of 5: a pair at the threshold is proposed with probability 1 - (1 - 0.85^5)^24 > 0.9999, a pair at 0.72 (one
#: long word changed in twenty) with 0.99.
_BANDS = 24
_ROWS = 5
_HASHES = _BANDS * _ROWS
#: Proposed pairs with a lower MinHash estimate are not verified; the standard error of 120 hashes is 0.04.
_LOWEST_ESTIMATE = 0.6
#: Number of shingles per text that MinHash reads: those with the smallest hashes, an unbiased sample that is the same
#: for copies.
_SKETCHED = 1024
#: Number of proposals per text that are verified, most likely first. Bounds the work for rows that share a long
#: template.
_VERIFIED = 50


#: Lowercase Cyrillic, Greek and Armenian letters that look like a Latin letter in one of the two cases (a selection
#: from Unicode TR39, "confusables"). Both texts are mapped, so texts in one script hardly become more similar.
_LOOKALIKES = str.maketrans(
    "авекмнорстухіјѕһԁԛԝӏүҽ" + "αβεζηικμνορτυχ" + "օսհո" + "ıɑɡ",
    "abekmhopctyxijshdqwlye" + "abezhikmnoptyx" + "ouhn" + "iag",
)


class _Folded(dict[int, str | int | None]):
    """Table for ``str.translate``: removes invisible characters, maps look-alike letters to Latin, keeps the rest.

    Filled on demand.
    """

    def __missing__(self, code: int) -> str | int | None:
        character = chr(code)
        self[code] = value = None if is_invisible(character) and not character.isspace() else code
        return value


class _Spaced(dict[int, str | int]):
    """Table for ``str.translate``: maps punctuation to spaces, keeps the rest. Filled on demand."""

    def __missing__(self, code: int) -> str | int:
        self[code] = value = " " if unicodedata.category(chr(code)).startswith("P") else code
        return value


_FOLDED = _Folded(_LOOKALIKES)
_SPACED = _Spaced()


def fold(text: str) -> str:
    """Return what all spellings of a text have in common.

    The text is NFKC-normalized and case-folded, without invisible characters, with look-alike letters mapped to Latin
    and whitespace collapsed. Symbols stay: ``a < b`` differs from ``a > b``.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).translate(_FOLDED)
    return " ".join(text.casefold().split())


def normalize(text: str) -> str:
    """Return :func:`fold` with punctuation replaced by spaces; text of punctuation only is just folded."""
    folded = fold(text)
    return " ".join(folded.translate(_SPACED).split()) or folded


def _hashes(text: str) -> NDArray[np.uint32]:
    """Return the sorted 32-bit hashes of the character 5-grams, shape ``(n,)``; a shorter text is one 5-gram."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    codes = np.pad(codes, (0, max(0, SHINGLE - len(codes))))
    count = len(codes) - SHINGLE + 1
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(SHINGLE):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + codes[offset : offset + count]
    # The low bits of the polynomial depend on few input bits: mix (the finalizer of MurmurHash3) before truncation.
    for multiplier in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        hashes = (hashes ^ (hashes >> np.uint64(33))) * np.uint64(multiplier)
    return np.sort((hashes >> np.uint64(32)).astype(np.uint32))


@lru_cache(maxsize=8192)
def _distinct(text: str) -> NDArray[np.uint32]:
    return np.unique(_hashes(text))


def _sketched(text: str) -> NDArray[np.uint32]:
    """Return the smallest distinct hashes of the 5-grams, at most :data:`_SKETCHED`.

    The second, third, … occurrence of a 5-gram has a hash of its own.
    """
    ordered = _hashes(text)
    first = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] + np.uint32(1)))
    if len(first) == len(ordered):
        return ordered[:_SKETCHED]
    rank = np.arange(len(ordered)) - np.repeat(first, np.diff(first, append=len(ordered)))
    mixed = (ordered ^ (rank.astype(np.uint32) * np.uint32(0x9E3779B1))) * np.uint32(0x85EBCA6B)
    return _smallest(np.where(rank > 0, mixed ^ (mixed >> np.uint32(15)), ordered), _SKETCHED)


def _smallest(values: NDArray[np.uint32], count: int) -> NDArray[np.uint32]:
    """Return the ``count`` smallest distinct values; sorting millions of them all would take seconds."""
    few = 2 * count
    if len(values) > few:
        smallest = np.unique(np.partition(values, few)[:few])
        if len(smallest) >= count:
            return smallest[:count]
    return np.unique(values)[:count]


def similarity(one: str, other: str) -> float:
    """Return the Jaccard similarity of the character 5-grams of two normalized texts, 0 to 1."""
    a = _distinct(one)
    b = _distinct(other)
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


@lru_cache(maxsize=8192)
def _word_counts(text: str) -> Counter[str]:
    return Counter(words(text))


def word_similarity(one: str, other: str) -> float:
    """Return the fraction of the words of the longer text that also occur in the other, in any order, 0 to 1."""
    a = _word_counts(one)
    b = _word_counts(other)
    longer = max(a.total(), b.total())
    return (a & b).total() / longer if longer else 0.0


def is_near(one: str, other: str) -> bool:
    """Return True if two normalized texts are nearly equal, by their 5-grams or by their words."""
    if similarity(one, other) >= THRESHOLD:
        return True
    fewest = min(_word_counts(one).total(), _word_counts(other).total())
    return fewest >= FEWEST_WORDS and word_similarity(one, other) >= WORD_THRESHOLD


def is_contained(one: str, other: str) -> bool:
    """Return True if one normalized text is the other one with a few words before or after it.

    Such words may be a phrase ("please tell me") or a condition ("in 1990"): the texts alone do not show which.
    """
    shorter, longer = sorted((one, other), key=len)
    fewest, most = len(shorter.split()), len(longer.split())
    if fewest < CONTAINED_WORDS or most - fewest > ADDED_WORDS:
        return False
    return f" {shorter} " in f" {longer} "


class NearIndex:
    """An index of normalized texts that is queried for near duplicates."""

    def __init__(self) -> None:
        from datasketch import MinHashLSH

        self.texts: list[str] = []
        self._index = MinHashLSH(num_perm=_HASHES, params=(_BANDS, _ROWS))
        self._signatures = np.zeros((16, _HASHES), dtype=np.uint32)

    def add(self, text: str) -> int:
        """Index a text and return its position."""
        position = len(self.texts)
        if position == len(self._signatures):
            self._signatures = np.concatenate([self._signatures, np.zeros_like(self._signatures)])
        sketch = _sketch(text)
        self._signatures[position] = sketch.hashvalues
        self._index.insert(position, sketch, check_duplication=False)
        self.texts.append(text)
        return position

    def near(
        self,
        text: str,
        wanted: Callable[[int], bool] = lambda position: True,
        test: Callable[[str, str], bool] = is_near,
    ) -> Iterator[tuple[int, float]]:
        """Yield near texts as ``(position, similarity)``, most likely first, if ``wanted`` accepts the position.

        Args:
            text: A normalized text.
            wanted: Function from a position to True if its text may be yielded.
            test: Function of two texts that decides.
        """
        for position in islice(filter(wanted, self._proposals(text)), _VERIFIED):
            if test(text, self.texts[position]):
                yield position, similarity(text, self.texts[position])

    def _proposals(self, text: str) -> list[int]:
        """Return the positions of likely near texts, by decreasing MinHash estimate."""
        sketch = _sketch(text)
        candidates = np.sort(np.array(self._index.query(sketch), dtype=np.int64))
        estimates = (self._signatures[candidates] == np.asarray(sketch.hashvalues, dtype=np.uint32)).mean(axis=1)
        order = np.argsort(-estimates, kind="stable")
        positions: list[int] = candidates[order[estimates[order] >= _LOWEST_ESTIMATE]].tolist()
        return positions


def clusters(texts: Sequence[str]) -> list[int]:
    """Return a cluster number for each text; duplicates and near duplicates share it, also transitively.

    So do most texts that differ in a few words at their beginning or end.

    The number is the position of the first text of the cluster.
    """
    parents: list[int] = []
    index = NearIndex()
    first = list[int]()
    of_text = dict[str, int]()
    for number, text in enumerate(map(normalize, texts)):
        parents.append(of_text.setdefault(text, number))
        if parents[number] != number:
            continue

        def is_other_cluster(position: int, own: int = number) -> bool:
            return _root(parents, first[position]) != _root(parents, own)

        for position, _ in index.near(text, is_other_cluster, _belong_together):
            one, other = sorted((_root(parents, first[position]), _root(parents, number)))
            parents[other] = one
        index.add(text)
        first.append(number)
    return [_root(parents, number) for number in range(len(parents))]


def _belong_together(one: str, other: str) -> bool:
    return is_near(one, other) or is_contained(one, other)


def _root(parents: list[int], number: int) -> int:
    while parents[number] != number:
        parents[number] = number = parents[parents[number]]
    return number


@lru_cache(maxsize=16)
def _sketch(text: str) -> Any:
    """Return a datasketch MinHash, cached between the lookup and the insertion of a text."""
    sketch = _empty_sketch().copy()
    sketch.update_batch(_sketched(text).tolist())
    return sketch


@cache
def _empty_sketch() -> Any:
    """Return an empty MinHash, cached: drawing the permutations takes longer than hashing a short text."""
    from datasketch import MinHash

    return MinHash(num_perm=_HASHES, hashfunc=int)
