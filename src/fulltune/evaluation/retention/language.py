"""Decide which languages of the built-in general text a run must keep: those of its data that the base knows."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache

from fulltune.data.probe import LANGUAGES, TOPICS, Language, builtin_probe
from fulltune.evaluation.retention.features import topic_accuracy
from fulltune.metrics.base import Metric
from fulltune.models.bundle import Bundle
from fulltune.records.run import Score
from fulltune.tasks.base import Example

#: Number of the most frequent words that a language is recognized by. They are function words, which every text needs:
#: 41% of the words of English text and 27% of Russian (Grefenstette 1995, "Comparing two language identification
#: schemes", section 3).
FREQUENT = 40

#: Least fraction of the data that must be in the known languages. Other languages share words: Bulgarian reaches 0.59
#: as Russian, Czech 0.27 as English. English clauses, questions and abstracts reach 0.70 to 0.95, Russian tales 0.81.
RECOGNIZED = 0.6

#: Least fraction of the data in one of several languages.
NOTABLE = 0.2

#: Fewest words that a language is recognized in, and the number of words that is enough.
FEWEST, ENOUGH = 20, 20_000

#: Fraction of unknown tokens from which a base cannot read a language.
UNREAD = 0.1

_WORD = re.compile(r"[^\W\d_]+")

_NAMES: dict[str, str] = {"en": "English", "ru": "Russian"}

#: Losses per token, of which ln(vocabulary) is that of a guess.
_TOKEN_LOSSES = ("masked_loss", "span_loss", "infilling_loss")


def languages_of(train: Sequence[Example]) -> tuple[Language, ...]:
    """Return the languages of the built-in general text that the rows are written in, by their inputs or targets."""
    inputs = _languages(example.input for example in train)
    targets = _languages(example.target for example in train if isinstance(example.target, str))
    return tuple(language for language in LANGUAGES if language in {*inputs, *targets})


def _languages(texts: Iterable[str]) -> list[Language]:
    words = _first_words(texts)
    if len(words) < FEWEST:
        return []
    fractions = {language: _fraction(words, language) for language in LANGUAGES}
    if sum(fractions.values()) < RECOGNIZED:
        return []
    return [language for language, fraction in fractions.items() if fraction >= NOTABLE]


def _first_words(texts: Iterable[str]) -> list[str]:
    words = list[str]()
    for text in texts:
        words += _WORD.findall(text.casefold())
        if len(words) >= ENOUGH:
            break
    return words


def _fraction(words: Sequence[str], language: Language) -> float:
    """Return the fraction of words in a language: that of its frequent words, against general text."""
    frequent, own = _frequent(language)
    return sum(word in frequent for word in words) / len(words) / own


@cache
def _frequent(language: Language) -> tuple[frozenset[str], float]:
    """Return the frequent words of the built-in general text, and their fraction in it."""
    words = [word for row in builtin_probe(language) for word in _WORD.findall(row["text"].casefold())]
    chosen = Counter(words).most_common(FREQUENT)
    return frozenset(word for word, _ in chosen), sum(count for _, count in chosen) / len(words)


def unbudgeted(language: str, kept: Sequence[str], *, inferred: bool) -> str:
    """Return why general text of a language has no budget; empty if it has one.

    Args:
        language: The language.
        kept: Languages that must be kept.
        inferred: They were inferred from the data.
    """
    if language in kept:
        return ""
    if not inferred:
        return f"guards.forgetting.keep does not name {language}"
    return f"the data is not {_NAMES[language]}; to keep it, name {language} in guards.forgetting.keep"


def unread(base: Bundle, texts: Sequence[str]) -> str:
    """Return that the tokenizer of the base has no tokens for a language; empty if it has."""
    unknown = getattr(base.tokenizer, "unk_token_id", None)
    tokens = [token for text in texts for token in base.tokenizer(text, truncation=False, verbose=False).input_ids]
    fraction = sum(token == unknown for token in tokens) / max(1, len(tokens))
    return f"{fraction:.0%} of its tokens are unknown to the base" if fraction >= UNREAD else ""


def unknown_to(base: Bundle, metric: Metric, score: Score) -> str:
    """Return that the base knows nothing of a language, by its score on it; empty if it does.

    Args:
        base: The base model.
        metric: The metric of the ability.
        score: The base's score.
    """
    vocabulary = getattr(base.model.config, "vocab_size", None) or len(base.tokenizer)
    if metric.name == topic_accuracy.name:
        knows = score.low > 1 / len(TOPICS)
    elif metric.name in _TOKEN_LOSSES:
        knows = score.value < math.log(vocabulary)
    else:
        knows = not metric.knows_nothing(score.value)
    return "" if knows and math.isfinite(score.value) else "the base itself does no better than guessing"
