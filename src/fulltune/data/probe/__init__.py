"""General English and Russian text with topics: passages that a tuned model should still be able to read."""

from __future__ import annotations

from importlib.resources import files
from typing import Literal

Language = Literal["en", "ru"]

#: Value of `guards.forgetting.probe` for all of this text.
BUILTIN = "builtin"

LANGUAGES: tuple[Language, ...] = ("en", "ru")
#: Topics of both languages; each has the same number of passages.
TOPICS = ("home", "nature", "science", "work", "travel", "health", "leisure", "ideas")


def builtin_probe(language: Language | None = None) -> list[dict[str, str]]:
    """Return the passages on which a guard measures forgetting by default.

    A language model is scored by its loss on them, an encoder by the accuracy of a linear classifier of their topics on
    its features, before and after training. The passages were written for this purpose: they have no quotations and no
    facts that become outdated, and the languages do not translate each other. Each language has 40 passages of 60 to
    130 words, 5 per topic, about 21 thousand characters; both together are 60 kB in UTF-8.

    Args:
        language: ``"en"`` or ``"ru"``; both, English first, if None.

    Returns:
        Rows with ``id`` (``"en-01"``), ``text`` (one paragraph), ``language`` and ``topic`` (one of ``TOPICS``), in
        the order of the file.

    Raises:
        FileNotFoundError: There is no text in that language.
    """
    languages = LANGUAGES if language is None else (language,)
    return [row for name in languages for row in _read(name)]


def _read(language: Language) -> list[dict[str, str]]:
    text = files("fulltune.data.probe").joinpath(f"probe_{language}.txt").read_text(encoding="utf-8")
    rows: list[dict[str, str]] = []
    topic = ""
    for paragraph in text.strip().split("\n\n"):
        if paragraph.startswith("# "):
            topic = paragraph.removeprefix("# ")
        else:
            row_id = f"{language}-{len(rows) + 1:02}"
            rows.append({"id": row_id, "text": paragraph, "language": language, "topic": topic})
    return rows
