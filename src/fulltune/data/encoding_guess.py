"""Infer the encoding of text that is not Unicode, from the letters that languages use.

Every byte is a letter in Windows-1251 and most are in Windows-1250, so validity decides nothing. A wrong encoding gives
letters that no language combines: the Czech ``ěšč`` in Windows-1250 is ``ìšè`` in Windows-1252. So each encoding is
scored by the likelihood of its non-ASCII characters under the letter frequencies of the languages written in it, a
naive Bayes classifier; frequent words of a language, and letters that cannot be neighbors, count too. Encodings of
several bytes per character (Chinese, Japanese, Korean) are left to charset-normalizer, and are considered only if no
other fits.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import charset_normalizer

#: Non-ASCII characters with their approximate frequency per thousand letters, by language in Latin script.
_ACCENTS = {
    "Czech": "í33 á22 ě16 é13 ř12 ý11 č10 ž10 š8 ů7 ú1 ň0.7 ť0.4 ó0.3 ď0.2",
    "Slovak": "á22 č10 ú10 í10 é9 ý9 š8 ž8 ť6 ľ4 ď2 ň2 ô2 ó1 ä1 ĺ0.1 ŕ0.1",
    "Polish": "ł18 ę11 ą10 ó8 ż8 ś7 ć4 ń2 ź0.6",
    "Hungarian": "á36 é34 ó10 ö10 ő8 ü6 í5 ú3 ű2",
    "Romanian": "ă40 ş12 ţ10 â8 î6",
    "Croatian": "č11 š8 ž6 ć5 đ2",
    "German": "ü6.5 ä6 ö3 ß3 é0.1",
    "French": "é19 à5 è3.5 ê2.2 ç0.9 ù0.6 â0.6 û0.6 î0.5 ô0.4 œ0.2 ï0.1 ë0.1",
    "Spanish": "ó8 í7 á5 é4.3 ñ2.2 ú1.7 ¿1 ¡0.7 ü0.1 º0.2 ª0.2",
    "Portuguese": "ã7 á6 ç5 é4 ê4 í3 ó3 õ1.5 â1.5 à1.5 ú1.5 ô1 º0.2 ª0.2",
    "Italian": "à6 è4 ò2 ù1.5 ì1.5 é1",
    "Dutch": "ë1 é1 ï0.4 ö0.2 è0.2 ü0.1",
    "Swedish": "ä18 å13 ö13 é0.3",
    "Danish": "å12 ø9 æ8 é0.3",
    "Finnish": "ä36 ö4 å0.1",
    "Icelandic": "ð44 á18 í16 þ15 ó10 æ9 ö8 é6 ú6 ý2",
    "Catalan": "à4 é4 ó4 í3 ò2 è2 ç1 ú1 ü0.3 ï0.3 ·0.3",
    "English": "é0.3 ï0.02 £0.1",
    "Turkish": "ı51 ü19 ş18 ç12 ğ11 ö8 İ3 â0.3 î0.1",
    "Lithuanian": "ė16 ų13 š10 ž8 ą6 į6 ū5 č5 ę3",
    "Latvian": "ā42 ī18 ē17 š9 ū7 ņ6 ļ4 ž2 č1 ķ1 ģ1",
    "Estonian": "ä10 õ10 ü6 ö2 š0.1 ž0.1",
}

#: Frequent words without accents, by language.
_WORDS = {
    "Czech": "a se na je v to ze do by jako ale tak za po jeho byl",
    "Slovak": "a sa na je v to zo do by ako ale tak za po jeho bol",
    "Polish": "i w z na nie do to jest sie od po jak za dla oraz tym",
    "Hungarian": "a az egy hogy nem is meg volt csak de ha mint vagy ezt ez el",
    "Romanian": "de la nu ce cu care din un pe mai o pentru lui sunt este au",
    "Croatian": "i je u se na da za od su s ne koji bio to kao ali",
    "German": "der die und das in zu den nicht von mit ist ein dem sich des auf",
    "French": "de la le et les des en un que une est pour qui dans du pas",
    "Spanish": "de la que el en y los se del las un por con una no para",
    "Portuguese": "de que o a do da em um para com uma os no se na por",
    "Italian": "di che e il la in un per non una del si le con dei al",
    "Dutch": "de het een van en in is dat op te niet zijn met voor aan er",
    "Swedish": "och att det i en som av den med till var inte har om ett de",
    "Danish": "og at det i en som af den med til var ikke har er et de",
    "Finnish": "ja on ei se oli mutta kun hän ett niin kuin ne joka vain ole hänen",
    "Icelandic": "og er ekki var sem um hann en til eru af hafa hun fyrir vera upp",
    "Catalan": "de la el que i a en les un per amb una no els del es",
    "English": "the of and to a in is that it was for on with as he be",
    "Turkish": "ve bir bu da de ne o var ile daha olan gibi her kadar biri onu",
    "Lithuanian": "ir kad buvo o su jis tai bet kaip tik nuo kas ne iki jie per",
    "Latvian": "un ir no ka kas ar to par bet vai tas nav tika bija pie es",
    "Estonian": "ja on ei et oli see ta kui aga ka mis oma siis nii seda veel",
}

#: Letters in the order of their frequency, by language in another script.
_LETTERS = {
    "Russian": "оеаинтсрвлкмдпуяыьгзбчйхжшюцщэфъё",
    "Ukrainian": "оаинівтересклудмпязьбгйчхцюжїєшщфґ",
    "Bulgarian": "аоиетнрсвлкдпмзуябгъчшжцщйхюьф",
    "Belarusian": "анраіоселыктдуяцзмпвйкбўгчшёжхьюэф",
    "Serbian": "аиоенрстјувкдмлпгзбшчцћжљњфхђџ",
    "Greek": "αοιεστνηυρπκμλωςγόίάήέδύχθφώβξζψ",
    "Hebrew": "יוהלאתרבמשנחקםעדטפצסכןגזךףץ",
    "Arabic": "اليمونرتبعدةسفهكقحجأذشصىخإطزضثغءئآظؤ",
}

#: Encodings and the languages written in them, most usual first: of encodings that decode to the same text, the first
#: is taken.
_WESTERN = (
    *("English", "German", "French", "Spanish", "Portuguese", "Italian", "Dutch", "Swedish", "Danish", "Finnish"),
    *("Icelandic", "Catalan"),
)
_CENTRAL = ("Czech", "Slovak", "Polish", "Hungarian", "Romanian", "Croatian", "German")
_CYRILLIC = ("Russian", "Ukrainian", "Bulgarian", "Belarusian", "Serbian")
_LANGUAGES: Mapping[str, tuple[str, ...]] = {
    "cp1252": _WESTERN,
    "cp1250": _CENTRAL,
    "cp1251": _CYRILLIC,
    "cp1254": ("Turkish",),
    "cp1257": ("Lithuanian", "Latvian", "Estonian"),
    "cp1253": ("Greek",),
    "cp1255": ("Hebrew",),
    "cp1256": ("Arabic",),
    "iso8859_15": _WESTERN,
    "iso8859_2": _CENTRAL,
    "iso8859_9": ("Turkish",),
    "iso8859_13": ("Lithuanian", "Latvian", "Estonian"),
    "koi8_r": ("Russian", "Bulgarian"),
    "koi8_u": ("Ukrainian", "Belarusian"),
    "cp866": ("Russian", "Bulgarian"),
    "iso8859_5": _CYRILLIC,
    "iso8859_7": ("Greek",),
    "mac_roman": _WESTERN,
    "mac_latin2": _CENTRAL,
    "mac_cyrillic": _CYRILLIC,
    "cp850": _WESTERN,
    "cp852": _CENTRAL,
}

#: Evidence, in nats, that rarer encodings need in addition: by their family, or by name.
_RARITY = {"cp": 0.0, "iso": 2.5, "koi": 0.5, "mac": 5.0}
_RARE = {"cp1250": 1.0, "cp1254": 1.0, "cp1257": 1.0, "cp850": 3.0, "cp852": 3.0, "cp866": 0.5}

_SEVERAL_BYTES = ("shift_jis", "euc_jp", "gb18030", "big5", "euc_kr")

#: Characters that texts of any language contain.
_TYPOGRAPHIC = "’“”„–—…«»‘‚•§°€©®™№‹›\xa0\xad"
_TYPOGRAPHIC_PART = 0.1

#: Log-likelihood of characters that a language does not use, and of such that no text contains.
_FOREIGN, _IMPOSSIBLE = math.log(2e-5), -25.0

#: Log-likelihood of a capital letter after a small one, of a letter of another script after or before an ASCII letter,
#: and of a sign between letters.
_CAPITAL_INSIDE, _TWO_SCRIPTS, _SIGN_INSIDE = -3.0, -4.0, -5.0

#: Signs that may be between letters.
_JOINING = "’‘…–—·\xad"

#: Log-likelihood ratio for a text that consists of the frequent words of a language, and the number of words from which
#: it is complete.
_WORDS_RATIO, _ENOUGH_WORDS = 60.0, 20

#: Frequency of a capital letter relative to the small one.
_CAPITAL = 0.1

#: Lowest mean log-likelihood of a plausible text: about two of five characters are unusual for the language.
_PLAUSIBLE = -6.0

#: Difference of log-likelihoods, in nats, below which the next best encoding is named too.
_CLEAR = 4.0

#: Number of bytes that are read for the decision.
_SAMPLE = 1 << 18


@dataclass(frozen=True)
class Guess:
    """The likely encoding of a text.

    Attributes:
        codec: Name of the encoding, as Python spells it.
        language: The language whose letters fit, or "".
        rival: An encoding that fits almost as well and gives another text, or "".
    """

    codec: str
    language: str = ""
    rival: str = ""


def guess_encoding(data: bytes) -> Guess | None:
    """Return the likely encoding of bytes that are not Unicode, or None if none is plausible."""
    sample = _sample(data)
    seen = Counter(_triples(sample))
    words = Counter(re.findall(rb"[A-Za-z\x80-\xff]+", sample.lower()))
    scores = {codec: _score(codec, seen, words) for codec in _LANGUAGES}
    codec = max(scores, key=lambda name: scores[name][0])
    best, language = scores[codec]
    if seen and best / _weight(seen) >= _PLAUSIBLE:
        rivals = [name for name, (score, _) in scores.items() if best - score < _CLEAR and _differ(name, codec, seen)]
        return Guess(codec, language, max(rivals, key=lambda name: scores[name][0], default=""))
    match = charset_normalizer.from_bytes(data[: 1 << 20], cp_isolation=list(_SEVERAL_BYTES)).best()
    return None if match is None else Guess(match.encoding)


def _sample(data: bytes) -> bytes:
    """Return the lines with non-ASCII bytes, up to a limit."""
    if len(data) <= _SAMPLE:
        return data
    lines = list[bytes]()
    size = 0
    for line in data.split(b"\n"):
        if not line.isascii():
            lines.append(line[:_SAMPLE])
            size += len(line)
        if size > _SAMPLE:
            break
    return b"\n".join(lines)


#: A non-ASCII byte with the bytes before and after it.
_Triple = tuple[int, int, int]


def _triples(sample: bytes) -> Iterator[_Triple]:
    return (triple for triple in zip(b" " + sample, sample, sample[1:] + b" ", strict=False) if triple[1] >= 0x80)


def _score(codec: str, seen: Mapping[_Triple, int], words: Mapping[bytes, int]) -> tuple[float, str]:
    """Return the log-likelihood of an encoding for its best language, and that language.

    A character counts by the logarithm of its number: its occurrences are not independent, and a single sign that is
    common in a text would outweigh all others.
    """
    table = _table(codec)
    counts = Counter[str]()
    neighbors: defaultdict[str, float] = defaultdict(float)
    for (before, byte, after), count in seen.items():
        counts[table[byte]] += count
        neighbors[table[byte]] += count * _neighbors(table[before], table[byte], table[after])
    weights = {character: 1 + math.log2(count) for character, count in counts.items()}
    score = sum(weights[character] * neighbors[character] / count for character, count in counts.items())
    score -= _RARE.get(codec, _RARITY[re.split(r"[\d_]", codec, maxsplit=1)[0]])
    by_language = {one: _likelihood(weights, one) + _frequent_words(words, one) for one in _LANGUAGES[codec]}
    language = max(by_language, key=lambda name: by_language[name])
    return score + by_language[language], language


@cache
def _neighbors(before: str, character: str, after: str) -> float:
    """Return the log-likelihood of a character between two others, 0 if it is usual."""
    if character.isalpha():
        if before.islower() and character.isupper():
            return _CAPITAL_INSIDE
        is_latin = unicodedata.name(character, "").startswith(("LATIN", "FEMININE", "MASCULINE"))
        ascii_letter = any(other.isascii() and other.isalpha() for other in (before, after))
        return _TWO_SCRIPTS if ascii_letter and not is_latin else 0.0
    return _SIGN_INSIDE if before.isalpha() and after.isalpha() and character not in _JOINING else 0.0


def _frequent_words(words: Mapping[bytes, int], language: str) -> float:
    frequent = sum(words.get(word.encode(), 0) for word in _WORDS.get(language, "").split())
    return _WORDS_RATIO * frequent / max(_ENOUGH_WORDS, sum(words.values()))


def _likelihood(weights: Mapping[str, float], language: str) -> float:
    frequencies = _frequencies(language)
    return sum(weight * frequencies.get(character, _unusual(character)) for character, weight in weights.items())


def _unusual(character: str) -> float:
    return _IMPOSSIBLE if unicodedata.category(character) in ("Cc", "Cn", "Co") else _FOREIGN


@cache
def _frequencies(language: str) -> dict[str, float]:
    """Return the log-frequency of each non-ASCII character of a language."""
    small = dict[str, float]()
    if language in _ACCENTS:
        small = {item[0]: float(item[1:]) for item in _ACCENTS[language].split()}
    else:
        small = {letter: 0.9**rank for rank, letter in reversed(list(enumerate(_LETTERS[language])))}
    weights = {letter.upper(): weight * _CAPITAL for letter, weight in small.items() if len(letter.upper()) == 1}
    weights |= small
    part = 0.8 if language == "English" else _TYPOGRAPHIC_PART
    common = {character: 0.8**rank for rank, character in enumerate(_TYPOGRAPHIC)}
    return {**_logs(weights, 1 - part), **{c: p for c, p in _logs(common, part).items() if c not in weights}}


def _logs(weights: Mapping[str, float], part: float) -> dict[str, float]:
    total = sum(weights.values())
    return {character: math.log(part * weight / total) for character, weight in weights.items()}


@cache
def _table(codec: str) -> tuple[str, ...]:
    """Return the character of each byte; U+0080, which no text contains, for bytes without one."""
    return tuple(bytes([byte]).decode(codec, errors="replace").replace("\ufffd", "\x80") for byte in range(256))


def _weight(seen: Mapping[_Triple, int]) -> float:
    """Return the sum of the weights of all characters."""
    counts = Counter[int]()
    for (_, byte, _), count in seen.items():
        counts[byte] += count
    return sum(1 + math.log2(count) for count in counts.values())


def _differ(one: str, other: str, seen: Iterable[_Triple]) -> bool:
    return one != other and any(_table(one)[byte] != _table(other)[byte] for _, byte, _ in seen)
