"""Cut texts between characters as a reader sees them, never inside an emoji, an accented letter or a syllable."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import regex


def clip(text: str, most: int) -> str:
    """Return the longest beginning of at most ``most`` code points that ends between two grapheme clusters.

    A cluster is what a reader takes for one character (UAX #29). One that is longer than ``most`` is cut.
    """
    if len(text) <= most:
        return text
    end = 0
    for cluster in clusters(text[: most + 1]):
        if end + len(cluster) > most:
            break
        end += len(cluster)
    return text[: end or most]


def clusters(text: str) -> Iterator[str]:
    """Yield the grapheme clusters of a text."""
    return (match[0] for match in _cluster().finditer(text))


@cache
def _cluster() -> regex.Pattern[str]:
    import regex

    return regex.compile(r"\X")
