"""What the registry holds, for those who look: lists, one model's story, and whether every byte is what it was."""

from __future__ import annotations

from fulltune.errors import Problem, StoreError
from fulltune.records.run import Model
from fulltune.store.registry.registry import Move, Registry, Version


class Summary(Model):
    """One model in a list; ``aliases`` say which number each points at."""

    name: str
    versions: int
    newest: str
    created: str
    aliases: dict[str, int]


class Listing(Model):
    """All models."""

    models: tuple[Summary, ...]


class Story(Model):
    """One model: its versions, its aliases, and every move of them. ``collected`` names versions without bytes."""

    name: str
    aliases: dict[str, int]
    versions: tuple[Version, ...]
    collected: tuple[str, ...]
    history: tuple[Move, ...]


class Verified(Model):
    """What was read and found whole."""

    versions: tuple[str, ...]
    files: int
    bytes: int


def listing(registry: Registry) -> Listing:
    """Every model with its newest version."""
    found = []
    for name in registry.names():
        versions = registry.versions(name)
        last = versions[-1]
        summary = Summary(
            name=name, versions=len(versions), newest=last.ref, created=last.created, aliases=registry.aliases(name)
        )
        found.append(summary)
    return Listing(models=tuple(found))


def story(registry: Registry, ref: str) -> Story:
    """One model (``NAME``), or one of its versions (``NAME@N``, ``NAME@ALIAS``) with the moves that concern it.

    Raises:
        StoreError: There is no such model or version.
    """
    name, at, _ = ref.partition("@")
    versions, moves, aliases = registry.versions(name), registry.history(name), registry.aliases(name)
    if at:
        versions = [registry.version(ref)]
        number = versions[0].number
        moves = [move for move in moves if number in (move.before, move.after)]
        aliases = {alias: current for alias, current in aliases.items() if current == number}
    refs, gone = {version.ref for version in versions}, registry.collected()
    return Story(
        name=name, aliases=aliases, versions=tuple(versions), collected=tuple(sorted(refs & gone)), history=tuple(moves)
    )


def verify(registry: Registry, ref: str | None = None) -> Verified:
    """Read every byte of all versions, of one model's (``NAME``), or of one (``NAME@…``), and the database itself.

    Raises:
        StoreError: Something is missing or damaged; names every file.
    """
    versions = [registry.version(ref)] if ref and "@" in ref else registry.versions(ref)
    gone = registry.collected()
    versions = [version for version in versions if version.ref not in gone]
    problems = [Problem(said, "ok", "restore the file from a backup", str(registry.file)) for said in registry.faults()]
    problems += [problem for version in versions for problem in registry.problems(version)]
    if problems:
        raise StoreError(problems)
    files = {entry.sha256: entry.size for version in versions for entry in version.files.values()}
    return Verified(versions=tuple(version.ref for version in versions), files=len(files), bytes=sum(files.values()))
