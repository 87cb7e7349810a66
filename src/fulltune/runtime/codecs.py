"""Names of text encodings."""

from __future__ import annotations

import codecs

#: Usual encodings, for suggestions.
CODECS = (
    *("utf-8", "utf-16", "utf-32", "ascii", "latin-1", "koi8-r", "koi8-u", "mac-roman", "shift_jis", "euc-jp"),
    *("gb18030", "big5", "euc-kr", *(f"cp{number}" for number in (437, 850, 852, 866, *range(1250, 1259)))),
    *(f"iso8859-{number}" for number in (1, 2, 5, 7, 9, 13, 15)),
)


def is_codec(name: str) -> bool:
    """Return True if Python has a text encoding of this name."""
    try:
        return bool(codecs.lookup(name)._is_text_encoding)
    except (LookupError, ValueError):
        return False
