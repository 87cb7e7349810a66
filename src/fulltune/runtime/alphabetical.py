"""Sort names as a reader expects: regardless of case, accents after letters, and numbers by their size.

The order of code points puts ``Řešení`` after ``pokuta`` and ``Б`` before ``а``. A complete collation depends on the
language and needs ICU; this is its part that the languages of a script share.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

#: Letters that follow another one as letters of their own, with their place after it. All other marks are accents,
#: which decide only between names that are otherwise equal.
_FOLLOWING = {
    "č": ("c", 1),
    "ř": ("r", 1),
    "š": ("s", 1),
    "ž": ("z", 1),
    "ł": ("l", 1),
    "đ": ("d", 1),
    "ґ": ("г", 1),
    "є": ("е", 1),
    "і": ("и", 1),
    "ї": ("и", 2),
    "й": ("и", 3),
}

Key = tuple[tuple[tuple[str, int], ...], str, str]


def alphabetical(name: str) -> Key:
    """Return the key by which a name is sorted; of names that differ in case only, the lowercase one is first."""
    folded = unicodedata.normalize("NFC", name.strip().casefold())
    letters = (_place(part) for part in re.findall(r"[0-9]+|[^0-9]", folded))
    return tuple(letter for letter in letters if letter[0]), folded, name.swapcase()


def in_order(names: Iterable[str]) -> list[str]:
    """Return the names in alphabetical order."""
    return sorted(names, key=alphabetical)


def _place(part: str) -> tuple[str, int]:
    """Return the base letter of a letter with its place after it, or the place of a number; empty for a mark."""
    if part.isdecimal() and part.isascii():
        return "0", int(part) if len(part) < 20 else 10**20
    if part in _FOLLOWING:
        return _FOLLOWING[part]
    return "".join(sign for sign in unicodedata.normalize("NFKD", part) if not unicodedata.combining(sign)), 0
