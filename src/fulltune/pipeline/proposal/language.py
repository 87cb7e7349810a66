"""Recognize the language of texts by their script and their most frequent words."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

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
    "Russian": "и в не на что с он как по это но из к за от так его она все был у",
    "Ukrainian": "і в не на що з він як це та але до за від його вона був є у й",
    "Bulgarian": "и на да се не в за от е че с той са по като но ще това си до",
}
_SETS = {language: frozenset(words.split()) for language, words in _WORDS.items()}

#: Letters that a language never has, and related ones do.
_FOREIGN = {
    "Polish": "ěřůčšžýáíúťďňľĺŕôä",
    "Czech": "ąęłńśźżľĺŕôä",
    "Slovak": "ąęłńśźżěřů",
    "Russian": "іїєґў",
    "Ukrainian": "ыэёъ",
    "Bulgarian": "ыэёіїєґ",
}

#: Fraction of the words with such letters from which a text is not in the language; names and quotations have some.
_FEW_FOREIGN = 0.02

#: First word of the Unicode names of letters, for scripts of one language; others are reported by the script.
_SCRIPTS = {
    "HIRAGANA": "Japanese", "KATAKANA": "Japanese", "HANGUL": "Korean", "CJK": "Chinese", "ARABIC": "Arabic",
    "HEBREW": "Hebrew", "GREEK": "Greek", "THAI": "Thai", "DEVANAGARI": "Hindi",
}  # fmt: skip

#: Number of characters that are enough, of all texts and of one.
_ENOUGH, _OF_ONE = 20_000, 1000

#: Number of texts whose languages are counted, and the fewest words by which the language of one text is certain.
_COUNTED, _WORDS_OF_ONE = 500, 30

#: Fraction of the texts from which a language is counted; a few more may be recognized wrongly.
_LEAST_FRACTION = 0.02

#: Languages that are told apart by few words: in dialects and old spellings one reads like another. Fewer texts than
#: both limits are taken for texts in the related language that most texts have.
_RELATED = (
    frozenset({"Russian", "Ukrainian", "Bulgarian"}),
    frozenset({"Polish", "Czech", "Slovak"}),
    frozenset({"French", "Spanish", "Italian", "Portuguese"}),
    frozenset({"German", "Dutch"}),
)
_FEW_RELATED, _FEW_RELATED_FRACTION = 10, 0.05

#: Fraction of words that must be function words of the language; prose has 20% to 45% of those above.
_LEAST = 0.06


def language_of(texts: Iterable[str]) -> str:
    """Return the English name of the language of most texts, or an empty text if it is not recognized."""
    given = list(texts)
    # Evenly spaced, because files are sorted: the first ones may all be in another language.
    step = max(1, sum(min(len(text), _OF_ONE) for text in given) // _ENOUGH)
    sample = "\n".join(text[:_OF_ONE] for text in given[::step])
    script = _script(sample)
    if script in _SCRIPTS:
        return _SCRIPTS[script]
    words = Counter(re.findall(r"[^\W\d_]+", sample.casefold()))
    possible = [language for language in _SETS if not _is_foreign(words, language)]
    counted = {language: sum(words[word] for word in _SETS[language]) for language in possible}
    best = max(counted, key=lambda language: counted[language])
    return best if words and counted[best] >= _LEAST * words.total() else ""


def _is_foreign(words: Counter[str], language: str) -> bool:
    """Return True if many words have letters that the language does not have."""
    letters = set(_FOREIGN.get(language, ""))
    return sum(count for word, count in words.items() if not letters.isdisjoint(word)) > _FEW_FOREIGN * words.total()


def texts_by_language(texts: Sequence[str]) -> dict[str, list[int]]:
    """Return the numbers of the texts in each language, most first; empty if they have one language, or are short.

    At most 500 evenly spaced texts are read. A few texts in a language that is related to that of most are taken for
    dialects or old spellings of the latter.
    """
    step = max(1, -(-len(texts) // _COUNTED))
    found = defaultdict[str, list[int]](list)
    for number in range(0, len(texts), step):
        if len(texts[number][:_OF_ONE].split()) >= _WORDS_OF_ONE:
            found[language_of([texts[number]])].append(number)
    found.pop("", None)
    read = len(range(0, len(texts), step))
    ranked = sorted(found, key=lambda language: -len(found[language]))
    named = {one: found[one] for one in ranked if len(found[one]) >= _least(one, ranked[0], read)}
    return named if len(named) > 1 else {}


def _least(language: str, main: str, read: int) -> float:
    """Return the number of texts from which a language is counted, of those that were read."""
    least = max(2.0, _LEAST_FRACTION * read)
    if language != main and any({language, main} <= related for related in _RELATED):
        return max(least, min(_FEW_RELATED, _FEW_RELATED_FRACTION * read))
    return least


def _script(sample: str) -> str:
    letters = [sign for sign in sample[:: max(1, len(sample) // 5000)] if sign.isalpha()]
    names = Counter(unicodedata.name(sign, "").partition(" ")[0] for sign in letters)
    kana = names["HIRAGANA"] + names["KATAKANA"]
    if 20 * kana > len(letters) > 0:
        return "HIRAGANA"  # Japanese prose has more Chinese characters than kana
    return names.most_common(1)[0][0] if names else ""
