"""New folk tales: example data for language models.

They are built on the functions of Propp's *Morphology of the Folktale*: a tale has a plot (an abduction, a lack, a
stepmother), a cast, and for every function one of several wordings. Russian case forms are in the lexicon; nothing is
inflected by rule. Complete tales, written out in `tales_ru.txt` and `tales_en.txt`, are mixed in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.resources import files
from random import Random
from typing import Literal

from demo.grammar import Grammar, Writer, polish

Language = Literal["ru", "en"]

#: Plot → paragraphs of functions; ``{sex}`` is the hero's.
PLOTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "abduction": (
        ("start", "virtue", "intro {sex}"),
        ("absence", "interdiction", "violation", "villainy abduction", "departure"),
        ("helper met",),
        ("donor met", "test three", "gift given"),
        ("arrival", "helper acts", "boast", "struggle"),
        ("found abduction", "pursuit"),
        ("home", "wedding {sex}", "moral", "end"),
    ),
    "lack": (
        ("start", "virtue"),
        ("villainy lack", "departure"),
        ("donor met", "test three", "gift given"),
        ("helper met",),
        ("arrival", "helper acts", "boast", "struggle"),
        ("found lack", "pursuit"),
        ("home", "home lack", "wedding lone", "moral", "end"),
    ),
    "stepmother": (
        ("start stepmother", "virtue"),
        ("villainy stepmother", "sent", "departure"),
        ("helper met",),
        ("donor met", "test three", "helper helps", "gift given"),
        ("reward stepmother", "home"),
        ("false hero",),
        ("wedding lone", "moral", "end"),
    ),
}
#: Letter → the rule that casts the character or thing.
CAST = {"h": "hero", "v": "villain", "d": "donor", "w": "helper", "g": "gift", "o": "wonder", "l": "sick"}
CASES = ("", "_g", "_d", "_a", "_i", "_p")
_BY_GENDER = re.compile(r"<(\w):([^<>]*)>")
_GENDERS = "mfn"


def written_tales(language: Language = "ru") -> list[dict[str, str]]:
    """Return the tales that were written rather than generated, in the order of their file.

    Args:
        language: ``"ru"`` or ``"en"``.

    Returns:
        Rows as from :func:`make_tales`, of 150 to 260 words; ``plot`` is ``"written"``.
    """
    source = files("demo").joinpath(f"tales_{language}.txt").read_text(encoding="utf-8")
    tales = (tale.partition("\n") for tale in f"\n{source}".split("\n# ")[1:])
    rows = (_row(title.strip(), text.strip(), "written", language) for title, _, text in tales)
    return _numbered(rows, f"{language}-written")


def make_tales(n: int = 200, *, seed: int = 17, language: Language = "ru") -> list[dict[str, str]]:
    """Return ``n`` original folk tales of 150 to 480 words: written ones, at most half of ``n``, and generated ones.

    Args:
        n: Number of tales.
        seed: The same seed gives the same tales, in every process.
        language: ``"ru"`` or ``"en"``.

    Returns:
        Rows with ``id``, ``title``, ``text`` (paragraphs separated by an empty line), ``plot`` and ``language``; no
        text occurs twice. A written tale is the same row under every seed.
    """
    random = Random(f"tales {language} {seed}")
    written = written_tales(language)
    tales = random.sample(written, min(len(written), n // 2))
    tales += _generated(n - len(tales), random, language)
    random.shuffle(tales)
    return tales


def _generated(n: int, random: Random, language: Language) -> list[dict[str, str]]:
    grammar = Grammar.load(f"tales_{language}")
    tales: dict[str, dict[str, str]] = {}
    while len(tales) < n:
        plot = random.choice(sorted(PLOTS))
        title, text = _Tale(grammar, random, plot).tell()
        tales.setdefault(text, _row(title, text, plot, language))
    return _numbered(tales.values(), language)


def _row(title: str, text: str, plot: str, language: Language) -> dict[str, str]:
    return {"title": title, "text": text, "plot": plot, "language": language}


def _numbered(rows: Iterable[dict[str, str]], prefix: str) -> list[dict[str, str]]:
    return [{"id": f"{prefix}-{number:04}"} | row for number, row in enumerate(rows, start=1)]


class _Tale:
    """One cast in one plot."""

    def __init__(self, grammar: Grammar, random: Random, plot: str) -> None:
        self.plot = plot
        self.genders: dict[str, str] = {}
        self.writer = Writer(grammar, random)
        for letter, rule in CAST.items():
            self._cast(letter, rule)
        self._cast("s", f"sought {self.genders['h']}")

    def tell(self) -> tuple[str, str]:
        """Return the title and the text."""
        title = self._write((f"title {self.plot}",))
        sex = self.genders["h"]
        paragraphs = [self._write(tuple(name.format(sex=sex) for name in names)) for names in PLOTS[self.plot]]
        return title, "\n\n".join(paragraphs)

    def _cast(self, letter: str, rule: str) -> None:
        *forms, gender = self.writer.expand("{" + rule + "}").split(", ")
        self.genders[letter] = gender
        self.writer.values |= {f"{letter}{case}": form for case, form in zip(CASES, forms, strict=False)}

    def _write(self, rules: tuple[str, ...]) -> str:
        texts = (_BY_GENDER.sub(self._agree, self.writer.expand("{" + rule + "}")) for rule in rules)
        return " ".join(polish(text) for text in texts if text)

    def _agree(self, match: re.Match[str]) -> str:
        letter, forms = match.groups()
        return forms.split("/")[_GENDERS.index(self.genders[letter])]
