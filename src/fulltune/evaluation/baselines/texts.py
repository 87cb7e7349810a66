"""Answer with texts that exist already: the input, its first sentences, the answer of the nearest row of train."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from types import MappingProxyType
from typing import Any

import numpy as np

from fulltune.evaluation.baselines.base import Answers, Given
from fulltune.evaluation.baselines.labels import sample
from fulltune.evaluation.baselines.text_features import text_features
from fulltune.evaluation.baselines.text_svm import CHARACTERS
from fulltune.metrics.accumulate import Accumulator
from fulltune.metrics.base import Metric
from fulltune.metrics.words import sentences
from fulltune.records.run import Prediction
from fulltune.tasks.base import Example
from fulltune.tasks.generation import TextToText

#: Numbers of sentences to choose from, and of rows of train that choose.
LENGTHS, CHOOSING_ROWS = (1, 2, 3), 200

#: Similarities that are computed at a time.
_AT_ONCE = 4_000_000

#: Strings and numbers of a query. A name in double quotes is replaced only if it is a word of the question.
_LITERAL = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|\b\d+(?:\.\d+)?\b")
_NUMBER = r"\d+(?:\.\d+)?"

#: Stands for a value in a question.
_VALUE = "valuehere"
_WORD = re.compile(r"\w+(?:[.'’-]\w+)*")


def copy(given: Given, examples: Sequence[Example]) -> Answers:
    """Answer with the input."""
    return Answers(_answered("copy", given, examples, (example.input for example in examples)))


def lead(given: Given, examples: Sequence[Example]) -> Answers:
    """Answer with the first one, two or three sentences of the input, whichever scores best on rows of train."""
    task = _generating(given)
    rows = random.Random(given.settings.seed).sample(list(given.train), min(CHOOSING_ROWS, len(given.train)))

    def led(asked: Sequence[Example], length: int) -> Iterator[Prediction]:
        return _answered("lead", given, asked, (_first_sentences(example.input, length) for example in asked))

    metric = task.metrics[0]
    sign = 1 if metric.direction == "higher" else -1
    best = max(LENGTHS, key=lambda length: _defined(sign * _value(metric, led(rows, length))))
    counted = "the first sentence" if best == 1 else f"the first {best} sentences"
    return Answers(led(examples, best), f"{counted} ({metric.name} on {len(rows)} rows of train)")


def nearest(given: Given, examples: Sequence[Example]) -> Answers:
    """Answer as the row of train whose input is most alike does, by TF-IDF of words and characters.

    If rows have a database, only rows of the same one are compared, unless train has none.
    """
    train, places, note = _nearest(given, examples)
    texts = (train[place].answer for place in places)
    return Answers(_answered("nearest", given, examples, texts), sampled=note)


def nearest_values(given: Given, examples: Sequence[Example]) -> Answers:
    """Answer with the query of the nearest question, its values swapped for those of the question that is asked.

    Questions are compared without their values: numbers, all strings in queries of train that their questions contain,
    and the texts of the database.
    """
    used = {value for row in given.train for value in _values(row.answer) if value in row.input.casefold()}
    stored = _generating(given).named_values(examples)
    values = used | _mentioned(stored, given.train, examples)
    words = map(re.escape, sorted(values, key=lambda value: (-len(value), value)))
    pattern = re.compile(rf"\b(?:{'|'.join([*words, _NUMBER])})\b", re.IGNORECASE)
    train, places, note = _nearest(given, examples, lambda row: pattern.sub(_VALUE, row.input))
    units = _units(values)
    texts = (
        with_values(train[place].answer, train[place].input, example.input, units, stored)
        for example, place in zip(examples, places, strict=True)
    )
    return Answers(_answered("nearest_values", given, examples, texts), sampled=note)


def _mentioned(stored: Iterable[str], train: Sequence[Example], asked: Sequence[Example]) -> set[str]:
    """Return the stored texts that questions mention as values: not those that other questions use as plain words."""
    names = {name for name in stored if _WORD.search(name)}
    longest = max((len(_WORD.findall(name)) for name in names), default=0)

    def named(question: str) -> set[str]:
        words = [(match.start(), match.end()) for match in _WORD.finditer(question.casefold())]
        parts = (words[first : first + size] for first in range(len(words)) for size in range(1, longest + 1))
        return names.intersection(question.casefold()[part[0][0] : part[-1][1]] for part in parts)

    plain = {name for row in train for name in named(row.input) - _values(row.answer)}
    return {name for row in asked for name in named(row.input)} - plain


def _values(query: str) -> set[str]:
    """Return the strings of a query, in lower case."""
    literals = (match.group() for match in _LITERAL.finditer(query))
    return {text for literal in literals if literal[0] in "'\"" and (text := literal[1:-1].casefold().strip())}


def _units(values: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern of the parts of a question that are swapped as one: known values, the longest first, and words.

    Values that share a word (``Hotel Dörr``, ``Hotel Lehmann``) are otherwise taken for equal in that word.
    """
    known = [re.escape(value) for value in sorted(values, key=lambda value: (-len(value), value)) if " " in value]
    return re.compile("|".join([*(rf"(?<!\w){value}(?!\w)" for value in known), _WORD.pattern]), re.IGNORECASE)


def with_values(
    query: str,
    known: str,
    asked: str,
    units: re.Pattern[str] | None = None,
    stored: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Return a query with the strings and numbers that its question contains replaced by what another has there.

    The words and values of both questions are aligned (Ratcliff & Obershelp, ``difflib``). A literal is replaced if its
    words are in a part of the known question that differs.

    Args:
        query: The query of the known question.
        known: The known question.
        asked: The question that is asked.
        units: Parts of questions that are swapped as one; by default the values of the query, and words.
        stored: Texts of the database by their form in lower case, as a query has to write them.
    """
    units = units or _units(_values(query))
    before, after = units.findall(known), units.findall(asked)
    folded = [word.casefold() for word in before]
    matcher = SequenceMatcher(None, folded, [word.casefold() for word in after], autojunk=False)
    differing = [block[1:] for block in matcher.get_opcodes() if block[0] == "replace"]

    def replaced(match: re.Match[str]) -> str:
        literal = match.group()
        quote = literal[0] if literal[0] in "'\"" else ""
        text = literal.strip(quote) if quote else literal
        words = [word.casefold() for word in units.findall(text)]
        for start in range(len(folded) - len(words) + 1 if words else 0):
            if folded[start : start + len(words)] == words:
                fresh = " ".join(_across(differing, start, start + len(words), after))
                fresh = stored.get(fresh.casefold()) or (fresh.lower() if text.islower() else fresh)
                is_usable = fresh and (quote or _LITERAL.fullmatch(fresh))
                return f"{quote}{fresh.replace(quote, 2 * quote) if quote else fresh}{quote}" if is_usable else literal
        return literal

    return _LITERAL.sub(replaced, query)


def _across(blocks: Iterable[tuple[int, int, int, int]], start: int, end: int, after: Sequence[str]) -> Sequence[str]:
    """Return the words of ``after`` that stand for those from ``start`` to ``end``; none if these do not differ."""
    for first, last, new_first, new_last in blocks:
        if first <= start and end <= last:
            if (start, end) == (first, last):
                return after[new_first:new_last]
            if end == last:
                return after[max(new_first, new_last - (end - start)) : new_last]
            return after[new_first + start - first : min(new_last, new_first + end - first)]
    return ()


def _generating(given: Given) -> TextToText:
    if not isinstance(given.task, TextToText):
        raise TypeError(f"the task {given.task.name!r} names a baseline for texts but answers with none")
    return given.task


def _answered(system: str, given: Given, examples: Sequence[Example], texts: Iterable[str]) -> Iterator[Prediction]:
    from fulltune.models.inference import Generated

    task = _generating(given)
    for example, text in zip(examples, texts, strict=True):
        yield task.prediction(system, example, Generated(text=text, tokens=0, capped=False))


def _first_sentences(text: str, count: int) -> str:
    return " ".join(sentences(text)[:count]) or text


def _value(metric: Metric, predictions: Iterable[Prediction]) -> float:
    accumulator = Accumulator((metric,))
    for prediction in predictions:
        accumulator.add(prediction)
    rows, applies = accumulator.statistics(metric.name)
    return float(metric.value(rows[applies].sum(axis=0))) if applies.any() else math.nan


def _defined(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _input(example: Example) -> str:
    return example.input


def _nearest(
    given: Given, examples: Sequence[Example], text: Callable[[Example], str] = _input
) -> tuple[Sequence[Example], list[int], str]:
    """Return rows of train, the place of the nearest one for each example, and a note if not all rows were read."""
    seed = given.settings.seed
    train, _, note = sample(given.train, given.groups, lambda row: len(row.input), CHARACTERS, seed)
    features, asked = text_features(list(map(text, train)), list(map(text, examples)))
    size = max(1, _AT_ONCE // len(train))
    databases = np.array([str(row.meta.get("db_id", "")) for row in train])
    places = list[int]()
    for start in range(0, len(examples), size):
        similar = (asked[start : start + size] @ features.T).toarray()
        for row, values in zip(examples[start : start + size], similar, strict=True):
            places.append(_best(values, databases == str(row.meta.get("db_id", ""))))
    return train, places, note


def _best(values: Any, allowed: Any) -> int:
    return int(np.argmax(np.where(allowed, values, -1.0) if allowed.any() else values))
