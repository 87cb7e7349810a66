"""General English and Russian text with topics: what a model should still be able to read after it was tuned."""

from __future__ import annotations

from importlib.resources import files
from typing import Literal

Language = Literal["en", "ru"]

LANGUAGES: tuple[Language, ...] = ("en", "ru")
#: The topics of both languages, each with equally many passages.
TOPICS = ("home", "nature", "science", "work", "travel", "health", "leisure", "ideas")


def builtin_probe(language: Language | None = None) -> list[dict[str, str]]:
    """Passages on which a guard measures forgetting when the user names no probe.

    The loss of a language model on them, or the accuracy of a linear classifier of their topics on the features of an
    encoder, is taken before training and after. The passages were written for this purpose: nothing is quoted, no fact
    in them ages, and the languages do not translate one another. Each has 40 passages of 60 to 130 words, 5 to a topic.
    A language is about 21 thousand characters; both are about 42 thousand, 60 kB in UTF-8.

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
