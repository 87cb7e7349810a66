"""Recognize the language of texts by their script and their most frequent words."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

#: Function words by language. Words of several languages count for each of them.
_WORDS = {
    "English": "the and of to in is that for it with are was be this on not you which shall by or",
    "German": "der die das und ist nicht mit den dem ein eine zu von auf für sich des wird auch es",
    "French": "le la les des est et une dans que pour qui sur pas avec du au ce il elle vous",
    "Spanish": "el la los las de que en una por con para es no se del al lo como más pero",
    "Italian": "il di che la è un una per non con sono del della nel gli le si da ma anche",
    "Portuguese": "o de que não uma para com os do da em um por mais as dos se na no foi",
    "Dutch": "de het een van en is dat niet op te zijn voor met die aan er ook als bij",
    "Polish": "i w nie na się że z jest do to jak o przez są dla oraz od który ale po",
    "Czech": "a je se na že v s to z do který jsem jsou nebo pro by jako ale za jeho",
    "Slovak": "a je sa na že v s to z do ktorý som sú alebo pre by ako ale za jeho",
    "Russian": "и в не на что с он как по это но из к за от так его она все был",
    "Ukrainian": "і в не на що з він як це та але до за від його вона був є у й",
    "Bulgarian": "и на да се не в за от е че с той са по като но ще това си до",
}
_SETS = {language: frozenset(words.split()) for language, words in _WORDS.items()}

#: First word of the Unicode names of letters, for scripts of one language; others are reported by the script.
_SCRIPTS = {
    "HIRAGANA": "Japanese", "KATAKANA": "Japanese", "HANGUL": "Korean", "CJK": "Chinese", "ARABIC": "Arabic",
    "HEBREW": "Hebrew", "GREEK": "Greek", "THAI": "Thai", "DEVANAGARI": "Hindi",
}  # fmt: skip

#: Number of characters that are enough.
_ENOUGH = 20_000

#: Fraction of words that must be function words of the language; prose has 20% to 45% of those above.
_LEAST = 0.06


def language_of(texts: Iterable[str]) -> str:
    """Return the English name of the language of most texts, or an empty text if it is not recognized."""
    sample = ""
    for text in texts:
        sample += text[:1000] + "\n"
        if len(sample) > _ENOUGH:
            break
    script = _script(sample)
    if script in _SCRIPTS:
        return _SCRIPTS[script]
    words = Counter(re.findall(r"[^\W\d_]+", sample.casefold()))
    counted = {language: sum(words[word] for word in known) for language, known in _SETS.items()}
    best = max(counted, key=lambda language: counted[language])
    return best if words and counted[best] >= _LEAST * words.total() else ""


def _script(sample: str) -> str:
    letters = [sign for sign in sample[:5000] if sign.isalpha()]
    names = Counter(unicodedata.name(sign, "").partition(" ")[0] for sign in letters)
    kana = names["HIRAGANA"] + names["KATAKANA"]
    if 20 * kana > len(letters) > 0:
        return "HIRAGANA"  # Japanese prose has more Chinese characters than kana
    return names.most_common(1)[0][0] if names else ""
