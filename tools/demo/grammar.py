"""A small phrase grammar: the texts of the example data are written once, with their alternatives, in `.grammar` files.

A file holds rules. A rule is a name and a colon at the start of a line, then its alternatives, one to an indented line.
Inside an alternative ``{name}`` stands for a rule or a given value and ``[a|b|c]`` for a choice (``[a|]`` may leave it
out); ``a(n)`` becomes *a* or *an*; ``_`` alone is nothing. A line that begins with ``#`` is a comment.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from random import Random

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_REFERENCE = re.compile(r"\{([^{}]+)\}")
_ARTICLE = re.compile(r"\b([Aa])\(n\)\s+(\W*)(\w+)")
_SPACE_BEFORE = re.compile(r",?\s+(?=[,.;:!?»)])|,(?=[.;,])")
_SENTENCE_START = re.compile(r"(^[«“\"]?|[.!?…]\s+[«“\"]?|^[(\d.)]+\s+)([^\W\d_])")
_VOWEL_SOUND = re.compile(r"(?!uni|use|one|eu)[aeiou]|hour|honest|8|11\b|18\b", re.IGNORECASE)


@dataclass(frozen=True)
class Grammar:
    """Rules: a name → its alternatives."""

    rules: Mapping[str, tuple[str, ...]]

    @staticmethod
    @cache
    def load(name: str) -> Grammar:
        """Load the grammar in ``<name>.grammar`` in this folder."""
        return Grammar.parse(files("demo").joinpath(f"{name}.grammar").read_text(encoding="utf-8"))

    @staticmethod
    def parse(text: str) -> Grammar:
        """Read rules from text.

        Raises:
            ValueError: An alternative is outside a rule, or a rule is defined twice or is empty.
        """
        rules: dict[str, list[str]] = {}
        current: list[str] | None = None
        for line in text.splitlines():
            if not line.strip() or line.startswith("#"):
                continue
            if not line[0].isspace():
                name, _, first = line.partition(":")
                if name in rules:
                    raise ValueError(f"the rule {name!r} is defined twice")
                current = rules[name] = [first.strip()] if first.strip() else []
            elif current is None:
                raise ValueError(f"outside a rule: {line!r}")
            else:
                current.append("" if line.strip() == "_" else line.strip())
        empty = [name for name, alternatives in rules.items() if not alternatives]
        if empty:
            raise ValueError(f"rules without an alternative: {empty}")
        return Grammar({name: tuple(alternatives) for name, alternatives in rules.items()})


@dataclass
class Writer:
    """Expand a grammar with a random source, given values, and a style.

    Attributes:
        share: Fraction of the alternatives of each rule that this writer ever uses, at least two: a house style.
        values: Values that replace names before the rules are used.
    """

    grammar: Grammar
    random: Random
    values: dict[str, str] = field(default_factory=dict)
    share: float = 1.0
    _habits: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def write(self, rule: str) -> str:
        """Return one text from a rule, with capitals at the start of sentences and correct articles."""
        return polish(self.expand("{" + rule + "}"))

    def expand(self, text: str) -> str:
        """Replace every choice and reference until none is left."""
        while True:
            if choice := _CHOICE.search(text):
                put, where = self.random.choice(choice.group(1).split("|")), choice
            elif reference := _REFERENCE.search(text):
                put, where = self._replacement(reference.group(1)), reference
            else:
                return text
            text = text[: where.start()] + put + text[where.end() :]

    def _replacement(self, name: str) -> str:
        if name in self.values:
            return self.values[name]
        return self.random.choice(self._habit(name))

    def _habit(self, name: str) -> tuple[str, ...]:
        if name not in self._habits:
            alternatives = self.grammar.rules[name]
            kept = max(2, round(self.share * len(alternatives)))
            few = kept >= len(alternatives)
            self._habits[name] = alternatives if few else tuple(self.random.sample(alternatives, kept))
        return self._habits[name]


def polish(text: str) -> str:
    """Fix the text: single spaces, none before a stop; *a* or *an*; capitals at the start of sentences."""
    text = _SPACE_BEFORE.sub("", " ".join(text.split()))
    text = _ARTICLE.sub(_article, text)
    return _SENTENCE_START.sub(lambda match: match.group(1) + match.group(2).upper(), text)


def _article(match: re.Match[str]) -> str:
    article, mark, word = match.groups()
    return f"{article}{'n' if _VOWEL_SOUND.match(word) else ''} {mark}{word}"
