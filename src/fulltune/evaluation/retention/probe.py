"""Load general text for measuring retention: built-in passages, or a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from fulltune.config import DataConfig
from fulltune.data.load import Column, available_columns, load_table
from fulltune.data.probe import BUILTIN, LANGUAGES, builtin_probe
from fulltune.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Passage:
    """A passage of general text; ``topic`` and ``language`` are empty if unknown."""

    id: str
    text: str
    topic: str = ""
    language: str = ""


def load_probe(name: str, limit: int) -> tuple[Passage, ...]:
    """Return the passages of ``guards.forgetting.probe``.

    Args:
        name: ``builtin`` (English and Russian), ``builtin:en``, ``builtin:ru``, or a file with the column ``text`` and,
            optionally, ``id``, ``topic`` and ``language``.
        limit: Maximum number of passages, evenly spaced.

    Raises:
        ConfigError: There is no built-in text in that language.
        DataError: The file is missing or has no column ``text``.
    """
    prefix, _, language = name.partition(":")
    passages = _builtin(language) if prefix == BUILTIN else _file(name)
    return thinned(passages, limit)


def thinned(rows: Sequence[Passage], limit: int) -> tuple[Passage, ...]:
    """Return at most ``limit`` rows, evenly spaced."""
    if len(rows) <= limit:
        return tuple(rows)
    return tuple(rows[index * len(rows) // limit] for index in range(limit))


def by_language(passages: Sequence[Passage]) -> Iterator[tuple[str, tuple[Passage, ...]]]:
    """Yield the passages of each language, so that a gain in one language does not hide a loss in another."""
    ordered = sorted(passages, key=lambda passage: passage.language)
    for language, group in groupby(ordered, key=lambda passage: passage.language):
        yield language, tuple(group)


def _builtin(language: str) -> list[Passage]:
    rows: list[Mapping[str, str]] = []
    for known in LANGUAGES:
        if language in ("", known):
            rows += builtin_probe(known)
    if not rows:
        names = [BUILTIN, *(f"{BUILTIN}:{known}" for known in LANGUAGES)]
        raise ConfigError(
            f"there is no built-in general text {language!r}",
            expected=f"one of {', '.join(names)}, or a file",
            fix=did_you_mean(f"{BUILTIN}:{language}", names) or "choose one of these",
            field="guards.forgetting.probe",
        )
    return [Passage(row["id"], row["text"], row["topic"], row["language"]) for row in rows]


def _file(source: str) -> list[Passage]:
    available = available_columns(source)
    # Roles of the loader that carry one text each, and the columns of a probe that they are read from.
    roles = {"id": "id", "label": "topic", "group": "language"}
    columns_by_role = {role: column for role, column in roles.items() if column in available}
    columns = [Column("text", str), *([Column("label", str)] if "label" in columns_by_role else [])]
    table = load_table(source, columns, DataConfig(train=source, **columns_by_role)).complete()
    fields = [(row.id, row.fields) for row in table]
    return [Passage(key, row["text"], row.get("label", ""), row.get("group", "")) for key, row in fields]
