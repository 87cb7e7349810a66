"""Split texts of any language into words and sentences, and detect scripts, without downloads.

rouge-score's own tokenizer keeps ``a-z0-9`` and drops all other letters, so that a perfect Russian answer scores 0.
one keeps the letters of all scripts; on plain English text it gives the same words.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import regex

#: Scripts written without spaces: each letter counts as a word.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_UNSPACED_SCRIPTS = ("Chinese", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar")

_WORD = rf"[{_UNSPACED}]\p{{M}}*|(?:(?![{_UNSPACED}])[\p{{L}}\p{{M}}\p{{N}}])+"

#: Fraction of letters in a script from which a warning is issued.
_NOTABLE = 0.05

#: Abbreviations whose period does not end a sentence.
_ABBREVIATIONS = r"\b(?:\p{Lu}|Mr|Mrs|Ms|Dr|Prof|St|vs|No|Fig|Eq|al|cf|i\.e|e\.g)\."
_SENTENCE_ENDS = (
    rf"(?<=[.!?…][\"'”’»)\]]*)(?<!{_ABBREVIATIONS})\s+(?=[\"'“‘«(\[—–-]*\s*[\p{{Lu}}\p{{Lo}}\p{{N}}])"
    r"|(?<=[。！？]+[」』”]?)(?![。！？」』”])"
    r"|\n+"
)


def words(text: str) -> list[str]:
    """Return the lowercase runs of letters, marks and digits; a letter of a script without spaces is one word."""
    matches: list[str] = _pattern(_WORD).findall(unicodedata.normalize("NFC", text.lower()))
    return matches


def sentences(text: str) -> list[str]:
    """Split a text into sentences at line breaks and end marks.

    A period ends a sentence only before a capital letter, a digit or a script without capitals, not after an initial.
    """
    return [part.strip() for part in _pattern(_SENTENCE_ENDS).split(text) if part and part.strip()]


def bleu_tokenizer(reference: str) -> str:
    """Return the sacrebleu tokenizer for the script of most letters: ``13a``, ``zh``, or ``char``."""
    letters = _letters(reference)
    unspaced = sum(letters[name] for name in _UNSPACED_SCRIPTS)
    if 2 * unspaced <= letters.total():
        return "13a"
    return "zh" if letters["Chinese"] == unspaced else "char"


def script_warning(texts: Iterable[str]) -> str | None:
    """Return one sentence for the report if the references are not (only) in Latin script, otherwise None."""
    letters: Counter[str] = Counter()
    for text in texts:
        letters.update(_letters(text))
    total = letters.total()
    scripts = [name for name, count in letters.most_common() if name != "Latin" and count >= _NOTABLE * total]
    if not scripts:
        return None
    unit = "by character" if scripts[0] in _UNSPACED_SCRIPTS else "on Unicode words"
    fraction = sum(letters[name] for name in scripts) / total
    return (
        f"{fraction:.0%} of the letters in the references are not Latin ({', '.join(scripts)}): ROUGE and BLEU "
        f"count {unit} here, while rouge-score's default tokenizer drops such letters, so do not compare these ROUGE "
        "scores with its scores."
    )


def _letters(text: str) -> Counter[str]:
    """Return the number of letters of each script."""
    counts: Counter[str] = Counter()
    for character, count in Counter(text).items():
        if character.isalpha():
            counts[_script(character)] += count
    return counts


@cache
def _script(letter: str) -> str:
    """Return the script of a letter: the first word of its Unicode name (``CYRILLIC SMALL LETTER A``)."""
    name = unicodedata.name(letter, "unknown").partition(" ")[0]
    return "Chinese" if name == "CJK" else name.capitalize()


@cache
def _pattern(pattern: str) -> regex.Pattern[str]:
    import regex

    return regex.compile(pattern)
