"""Summaries of the registry: lists of models, the history of one model, and verification of all bytes."""

from __future__ import annotations

from pydantic import Field

from fulltune.errors import Problem, StoreError
from fulltune.records.run import Model, Score, read_record
from fulltune.store.registry.registry import Artifact, Move, Registry, Version


class Summary(Model):
    """One model of a list; ``aliases`` maps each alias to the version number that it points at."""

    name: str
    versions: int
    newest: str
    created: str
    aliases: dict[str, int]


class Origin(Model):
    """The source of a version, and its score.

    Attributes:
        ref: The version.
        base: The checkpoint that training started from.
        data: Source of its training rows; empty if the record of the run is not stored or cannot be read.
        rows: Number of these rows.
        metric: The deciding metric.
        score: Its value on the evaluation rows; None for a version that was not scored.
    """

    ref: str
    base: str
    data: str = ""
    rows: int = 0
    metric: str = ""
    score: Score | None = None


class Listing(Model):
    """All models; ``versions`` holds the origin of every version, by its reference."""

    models: tuple[Summary, ...]
    versions: dict[str, Origin] = Field(default_factory=dict)


class Story(Model):
    """One model: its versions, its aliases, and all their moves.

    ``collected`` lists versions without bytes, ``artifacts`` the versions in other formats, and ``origins`` what they
    were made of, by their references.
    """

    name: str
    aliases: dict[str, int]
    versions: tuple[Version, ...]
    collected: tuple[str, ...]
    history: tuple[Move, ...]
    artifacts: dict[str, tuple[Artifact, ...]] = Field(default_factory=dict)
    origins: dict[str, Origin] = Field(default_factory=dict)


class Verified(Model):
    """Counts of what was read and is intact."""

    versions: tuple[str, ...]
    files: int
    bytes: int


def listing(registry: Registry) -> Listing:
    """Return every model with its newest version, and the origin of every version."""
    summaries, origins = [], dict[str, Origin]()
    for name in registry.names():
        versions = registry.versions(name)
        last = versions[-1]
        summary = Summary(
            name=name, versions=len(versions), newest=last.ref, created=last.created, aliases=registry.aliases(name)
        )
        summaries.append(summary)
        origins |= {version.ref: origin(registry, version) for version in versions}
    return Listing(models=tuple(summaries), versions=origins)


def origin(registry: Registry, version: Version) -> Origin:
    """Return what a version was made of, from the record of its run."""
    bare = Origin(ref=version.ref, base=version.lineage.base.source, metric=version.metric, score=version.score)
    entry = version.files.get("record.json")
    try:
        record = read_record(registry.objects.path(entry.sha256)) if entry else None
    except StoreError:  # `fulltune models verify` reports it
        record = None
    if record is None:
        return bare
    facts = {"data": record.data.train.source, "rows": record.data.train.rows, "metric": record.metric}
    return bare.model_copy(update=facts | {"score": record.scores.get("tuned", {}).get(record.metric)})


def story(registry: Registry, ref: str) -> Story:
    """Return one model (``NAME``), or one of its versions (``NAME@N``, ``NAME@ALIAS``) with the moves that involve it.

    Raises:
        StoreError: There is no such model or version.
    """
    name, at, _ = ref.partition("@")
    versions = registry.versions(name)
    moves = registry.history(name)
    aliases = registry.aliases(name)
    if at:
        versions = [registry.version(ref)]
        number = versions[0].number
        moves = [move for move in moves if number in (move.before, move.after)]
        aliases = {alias: current for alias, current in aliases.items() if current == number}
    refs = {version.ref for version in versions}
    collected = tuple(sorted(refs & registry.collected()))
    kept = {version.ref: tuple(registry.artifacts(version)) for version in versions if version.ref not in collected}
    return Story(
        name=name,
        aliases=aliases,
        versions=tuple(versions),
        collected=collected,
        history=tuple(moves),
        artifacts={ref: artifacts for ref, artifacts in kept.items() if artifacts},
        origins={version.ref: origin(registry, version) for version in versions},
    )


def verify(registry: Registry, ref: str | None = None) -> Verified:
    """Read all bytes of all versions, of one model (``NAME``), or of one version (``NAME@…``), and the database.

    Raises:
        StoreError: Something is missing or damaged; lists all files.
    """
    versions = [registry.version(ref)] if ref and "@" in ref else registry.versions(ref)
    collected = registry.collected()
    versions = [version for version in versions if version.ref not in collected]
    fix = "restore the file from a backup"
    problems = [Problem(message, "ok", fix, str(registry.file)) for message in registry.faults()]
    problems += [problem for version in versions for problem in registry.problems(version)]
    if problems:
        raise StoreError(problems)
    entries = [entry for version in versions for entry in registry.all_files(version)]
    files = {entry.sha256: entry.size for entry in entries}
    return Verified(versions=tuple(version.ref for version in versions), files=len(files), bytes=sum(files.values()))
