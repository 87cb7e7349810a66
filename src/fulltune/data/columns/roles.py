"""Find the column that a role of a task reads, by what the columns hold first and by their names second."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from fulltune.data.columns.profile import Profile
from fulltune.runtime.split_names import SPLIT_NAMES


def name_words(name: str) -> frozenset[str]:
    """Return the lowercase words of a column name, without diacritics: ``docId`` has ``doc`` and ``id``."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    plain = unicodedata.normalize("NFKD", spaced.casefold())
    return frozenset(re.findall(r"[^\W\d_]+", "".join(sign for sign in plain if not unicodedata.combining(sign))))


def _stem(word: str) -> str:
    """Return a word without the vowels or the plural that inflection changes: ``smlouvy`` and ``smlouva`` are one."""
    return re.sub(r"[aeiouyаеиоуыэюяьй]+$|s$", "", word) if len(word) >= 5 else word


def _stems(name: str) -> frozenset[str]:
    return frozenset(map(_stem, name_words(name)))


#: Words in the names of columns by role, in the languages of common data sets. ``metadata`` describes a row instead of
#: labeling it.
_WORDS = {
    "text": (
        "text texts txt body content sentence sentences document clause review message utterance tweet post "
        "comment passage story abstract query input description recenze zprava veta popis zneni ustanoveni "
        "klauzule obsah tekst tresc opinia klauzula "
        "satz nachricht beschreibung klausel texte phrase avis texto frase mensaje testo clausula clausola текст отзыв "
        "сообщение предложение пункт"
    ),
    "label": (
        "label labels class classes category categories target sentiment topic intent tag tags type y gold emotion "
        "rating stars score polarity verdict outcome decision stance entailment status priority department kind "
        "typ druh rodzaj tipo тип вид hodnoceni trida kategorie stitek tema sentyment etykieta kategoria klasa "
        "klasse thema etiquette categorie "
        "classe etiqueta categoria clase метка класс категория тема тональность"
    ),
    "group": (
        "group company document doc author contract case patient user customer client speaker book tale paper "
        "thread session project conversation dialog article supplier vendor firma spolecnost smlouva dokument "
        "autor pripad zakaznik klient umowa spolka vertrag verfasser kunde entreprise auteur contrat empresa "
        "contrato компания документ автор договор"
    ),
    "source": (
        "source src input question prompt instruction article document original context text passage dialogue from "
        "request en english premise zdroj otazka puvodni quelle frage исходный вопрос"
    ),
    "target": (
        "target tgt output answer response summary completion highlights headline reference translation simplified "
        "corrected rewritten reply title to souhrn preklad odpoved cil zusammenfassung ubersetzung antwort ответ "
        "перевод"
    ),
    "question": "question utterance nl text query prompt input otazka dotaz frage pytanie вопрос",
    "sql": "sql query gold statement",
    "db_id": "db database schema databaze datenbank base",
    "split": "split set fold subset partition",
    "metadata": (
        "lang language locale split set fold subset partition source corpus collection dataset origin file "
        "filename path date year month day time timestamp created updated version id ids uid uuid index row nr "
        "number num no url link country city name email annotator worker length count n executes jazyk zdroj datum "
        "cislo rok sprache quelle nummer jezyk numer numero fecha язык дата номер"
    ),
    "title": "title nazev titel tytul название",
}
_NAMES = {role: _stems(words) for role, words in _WORDS.items()}
_METADATA = _NAMES["metadata"]

#: Words in the names of identifiers: of a row, or of the document that consecutive rows belong to.
_IDENTIFIERS = _stems("id ids file filename nr number num no cislo nummer numer numero номер")

#: Values from which codes, such as contract numbers, rather name things than classes.
_MANY_CODES = 20

#: Names of the values of a column that assigns rows to splits.
SPLITS = {
    "train": frozenset(SPLIT_NAMES["train"]),
    "valid": frozenset(SPLIT_NAMES["validation"]),
    "eval": frozenset(SPLIT_NAMES["test"]),
}

#: Groups that a split needs at least.
_FEWEST_GROUPS = 10

#: Fraction of the rows that have a group at least.
_HAVE_GROUP = 0.95


@dataclass(frozen=True)
class Choice:
    """The column of a role, and the others that could have been chosen, best first."""

    column: Profile | None
    others: tuple[Profile, ...] = ()

    @property
    def name(self) -> str:
        return self.column.name if self.column else ""

    @property
    def candidates(self) -> tuple[Profile, ...]:
        """All columns that could be chosen, best first."""
        return (self.column, *self.others) if self.column else ()


def is_called(column: Profile, role: str) -> bool:
    """Return True if a word of the column's name is usual for the role, in any inflection."""
    return is_named(column.name, role)


def is_named(name: str, *roles: str) -> bool:
    """Return True if a word of the name is usual for one of the roles, in any inflection."""
    stems = _stems(name)
    return any(stems & _NAMES[role] for role in roles)


def texts(columns: Sequence[Profile], without: Collection[str] = ()) -> list[Profile]:
    """Return the columns with texts, the most likely input first: long and varied values, and a usual name."""
    free = [one for one in columns if one.name not in without]
    long = [one for one in free if one.kind == "text"]
    chosen = (
        long or [one for one in free if one.kind == "short text"] or [one for one in free if one.kind == "repeated"]
    )
    return sorted(chosen, key=_as_text, reverse=True)


def _as_text(column: Profile) -> float:
    return math.log2(1 + column.words) + 2.5 * is_called(column, "text") - 3 * bool(_stems(column.name) & _METADATA)


def label(columns: Sequence[Profile], *, required: bool = False) -> Choice:
    """Return the column with one or several labels per row, and the other candidates.

    Args:
        columns: All columns.
        required: Take the best candidate, even if its name and values rather describe the rows.
    """
    scored = sorted(
        ((_as_label(one), one) for one in columns if one.kind in ("category", "labels")), key=lambda x: -x[0]
    )
    likely = [one for score, one in scored if score > 0]
    chosen = likely or ([one for _, one in scored] if required else [])
    return Choice(chosen[0] if chosen else None, tuple(chosen[1:]))


def _as_label(column: Profile) -> float:
    """Return how likely a column of repeated values is the label: above 0, it is taken."""
    words = _stems(column.name)
    score = 1.0 - 0.5 * column.is_numeric - 0.5 * (column.distinct > 200) - 0.5 * (column.largest > 0.97)
    score += 4 * bool(words & _NAMES["label"])
    score -= _as_identifier(column)
    score += 1 * (column.kind == "labels") + 0.5 * (column.separator == "")
    return score - 4 * bool(words & _METADATA) - 3 * bool(words & _NAMES["group"])


def _as_identifier(column: Profile) -> float:
    """Return how much the values look like those that name the document of a row, instead of its class.

    Codes with digits do, and so do values that come in blocks of rows. Rows that are sorted by a class do too, so that
    blocks alone only decide between two columns.
    """
    is_coded = column.distinct > _MANY_CODES and all(any(map(str.isdigit, value)) for value in column.examples)
    is_in_blocks = column.distinct >= 2 * _FEWEST_GROUPS and column.runs > 0.5
    return 3.0 if is_coded and is_in_blocks else 0.5 * (is_coded + is_in_blocks)


def group(columns: Sequence[Profile], taken: Collection[str]) -> Profile | None:
    """Return the column whose values a split should keep together: a company, a document, an author.

    It is known by its name, or by its values: many of them, in consecutive rows.
    """
    usable = [one for one in columns if one.name not in taken and _divides(one)]
    named = [one for one in usable if is_called(one, "group")]
    runs = [one for one in usable if one.distinct >= 2 * _FEWEST_GROUPS and one.runs > 0.5]
    runs = [one for one in runs if not _stems(one.name) & (_METADATA - _IDENTIFIERS)]
    return next(iter(sorted(named, key=lambda one: -one.distinct) or sorted(runs, key=lambda one: -one.runs)), None)


def _divides(column: Profile) -> bool:
    """Return True if the column has repeated values for nearly all rows, and enough of them for a split.

    A few rows without one are left out of the run: better than a split that divides contracts between train and eval.
    """
    if column.kind not in ("category", "repeated", "number", "id") or column.filled < _HAVE_GROUP * column.rows:
        return False
    return column.distinct >= _FEWEST_GROUPS and 1.5 * column.distinct <= column.rows and column.largest <= 0.4


def split_column(columns: Sequence[Profile]) -> Profile | None:
    """Return the column that assigns rows to train and to other splits, or None."""
    known = set[str]().union(*SPLITS.values())
    for column in columns:
        values = {value.casefold() for value in column.examples}
        is_split = column.kind == "category" and values <= known and values & SPLITS["train"] and len(values) > 1
        if is_split and is_called(column, "split"):
            return column
    return None


def pair(columns: Sequence[Profile]) -> tuple[Profile, Profile] | None:
    """Return the source and the target of two columns with texts, or None if there are not two.

    Their names decide which is which; then a much longer one is the source, as for summaries; then the order.
    """
    free = [one for one in columns if one.kind in ("text", "short text", "repeated")]
    free = [one for one in free if one.kind == "text" or is_called(one, "source") or is_called(one, "target")]
    free = [one for one in free if not _stems(one.name) & (_METADATA - _NAMES["source"]) and not _is_title(one, free)]
    if len(free) < 2:
        return None
    one, other = sorted(sorted(free, key=_as_pair, reverse=True)[:2], key=columns.index)
    swapped = _direction(other) - _direction(one)
    if swapped > 0 or (swapped == 0 and other.words > 2.5 * one.words):
        return other, one
    return one, other


def _as_pair(column: Profile) -> float:
    return 2.0 * abs(_direction(column)) + math.log2(1 + column.words) / 4


def _direction(column: Profile) -> int:
    """Return 1 for a name that is usual for sources, -1 for targets, 0 otherwise."""
    return is_called(column, "source") - is_called(column, "target")


def likely(role: str, columns: Sequence[Profile]) -> Profile | None:
    """Return the column that a role most likely reads, or None if no column holds such values."""
    kinds = {"sql": "SQL", "id": "id", "messages": "messages"}
    if role in ("text", "question", "prompt"):
        return next(iter(texts(columns)), None)
    if role in ("label", "labels"):
        return label(columns, required=True).column
    if role in ("source", "target", "completion"):
        matched = pair(columns) or (None, None)
        return matched[role != "source"]
    if role == "group":
        return group(columns, ())
    fitting = [one for one in columns if one.kind == kinds.get(role) or (role == "db_id" and is_called(one, role))]
    return next(iter(fitting), None)


def _is_title(column: Profile, columns: Sequence[Profile]) -> bool:
    """Return True for the title next to a long text, unless there is nothing else that a title could be for."""
    return is_called(column, "title") and any(one.words > 200 for one in columns)
