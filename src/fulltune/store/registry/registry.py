"""The registry: named models, their immutable versions, and movable aliases such as ``production``.

    registry = Registry("runs")
    version = registry.version("causal-lm-gpt2@production")
    folder = registry.checkout(version)  # all bytes are verified; holds model/ for from_pretrained

``<out>/registry/registry.sqlite`` lists the versions, ``objects/`` holds the bytes, and ``versions/NAME/N/`` holds each
version as a folder (hard links if the disk allows). Moving an alias is one transaction: readers see the old state or
the new one, even after a kill.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Literal

from pydantic import Field

from fulltune.errors import Problem, StoreError, did_you_mean
from fulltune.records.run import Model, ModelInfo, Score
from fulltune.runtime import paths
from fulltune.runtime.clock import now
from fulltune.runtime.files import store_errors
from fulltune.store.manifest import FileEntry, write_folder
from fulltune.store.manifest import verify as verify_folder
from fulltune.store.objects import Objects, link_or_copy
from fulltune.store.registry import database
from fulltune.store.runs import resolve

#: The alias that a name without an alias refers to.
PRODUCTION = "production"

#: Name of the newest version; aliases cannot have this name.
LATEST = "latest"

_ALIAS = re.compile(r"[a-z][a-z0-9._-]*")


class Lineage(Model):
    """Origin of a version.

    Attributes:
        source: The run's id, or a description of what was made from which runs.
        kind: The operation that made it.
        task, method: As in the config.
        base: The checkpoint that training started from, by hash.
        train_sha256, eval_sha256: Hashes of the rows.
        config_sha256: Hash of ``config.yaml``.
        fulltune: Version of fulltune.
        parents: Versions of this registry that it was made from, as ``NAME@N``.
    """

    source: str
    kind: Literal["run", "interpolation", "soup"] = "run"
    task: str
    method: str
    base: ModelInfo
    train_sha256: str
    eval_sha256: str
    config_sha256: str
    fulltune: str
    parents: tuple[str, ...] = ()


class Version(Model):
    """One immutable version.

    Attributes:
        name, number: Together its reference, ``NAME@N``.
        sha256: Hash of the model's files, computed like that of a base.
        created: Time (UTC).
        outcome: Outcome of the run; ``unjudged`` if no run scored it against baselines.
        headline: The run's conclusion.
        metric, score: Deciding metric and its value on the evaluation rows of a model without a record of its own.
        lineage: Its origin.
        files: All files of the version, by path in its folder.
    """

    name: str
    number: int
    sha256: str
    created: str
    outcome: Literal["accepted", "undecided", "rejected", "stopped", "unjudged"]
    headline: str = ""
    metric: str = ""
    score: Score | None = None
    lineage: Lineage
    files: dict[str, FileEntry] = Field(default_factory=dict)

    @property
    def ref(self) -> str:
        return f"{self.name}@{self.number}"

    @property
    def size(self) -> int:
        """Total size of its files in bytes."""
        return sum(entry.size for entry in self.files.values())


class Artifact(Model):
    """A version in another format.

    Attributes:
        format: The format.
        verdict: The result of its comparison with the version.
        forced: The reason to keep it although it is worse.
        created: Time (UTC).
        files: All of its files, by path in its folder.
    """

    format: str
    verdict: str
    forced: str = ""
    created: str
    files: dict[str, FileEntry] = Field(default_factory=dict)

    @property
    def size(self) -> int:
        """Total size of its files in bytes."""
        return sum(entry.size for entry in self.files.values())


class Move(Model):
    """One entry of an alias's history. ``before`` is None for a new alias, ``after`` for one that was removed."""

    alias: str
    before: int | None
    after: int | None
    action: Literal["promote", "rollback"]
    who: str
    at: str
    reason: str


class Registry:
    """The registry of the runs under ``out``; created when the first version is added."""

    def __init__(self, out: str | Path) -> None:
        self.root = Path(out) / "registry"
        self.file = self.root / "registry.sqlite"
        self.objects = Objects(self.root / "objects")

    @property
    def exists(self) -> bool:
        return self.file.is_file()

    # Queries.

    def names(self) -> list[str]:
        """Return the names of all models in alphabetical order."""
        with self._reading() as db:
            return [name for (name,) in db.execute("SELECT DISTINCT name FROM versions ORDER BY name")]

    def versions(self, name: str | None = None) -> list[Version]:
        """Return all versions, or those of one model, oldest first.

        Raises:
            StoreError: There is no such model.
        """
        with self._reading() as db:
            where = "WHERE name = ?" if name is not None else ""
            chosen = (name,) if name is not None else ()
            rows = db.execute(f"SELECT body FROM versions {where} ORDER BY name, number", chosen).fetchall()
        if name is not None and not rows:
            raise self._unknown(name)
        return [Version.model_validate_json(body) for (body,) in rows]

    def version(self, ref: str) -> Version:
        """Return the version that ``NAME@N``, ``NAME@ALIAS`` or ``NAME`` (its production version) refers to.

        Raises:
            StoreError: There is no such model, version or alias.
        """
        name, _, which = ref.partition("@")
        versions = {version.number: version for version in self.versions(name)}
        if which == LATEST:
            return versions[max(versions)]
        if which.isdecimal():
            if int(which) not in versions:
                known = ", ".join(f"{name}@{number}" for number in list(versions)[-5:])
                raise StoreError(f"there is no {ref}", expected=known, fix=f"`fulltune models show {name}`")
            return versions[int(which)]
        aliases = self.aliases(name)
        alias = which or PRODUCTION
        if alias not in aliases:
            newest = f"{name}@{max(versions)}"
            raise StoreError(
                f"{name} has no alias {alias!r}",
                expected=f"a version such as {newest}{', or ' + ', '.join(aliases) if aliases else ''}",
                fix=did_you_mean(alias, aliases) or f"name a version, or {self.creating(name, alias)}",
            )
        return versions[aliases[alias]]

    def creating(self, name: str, alias: str) -> str:
        """Return how to create an alias: promote the newest accepted version, or another one with a reason.

        Without a current version to compare with, the gate passes every accepted version whose bytes exist.
        """
        gone = self.collected()
        kept = [version for version in self.versions(name) if version.ref not in gone]
        if not kept:
            return f"run the config of {name} again: the bytes of all its versions were deleted"
        option = "" if alias == PRODUCTION else f" --alias {alias}"
        accepted = [version for version in kept if version.outcome == "accepted"]
        if accepted:
            return f"create it with `fulltune models promote {accepted[-1].ref}{option}`"
        newest = kept[-1]
        return (
            f'create it with `fulltune models promote {newest.ref}{option} --force "…"` and a reason: {newest.ref} is '
            f"{newest.outcome}, and no version was accepted"
        )

    def aliases(self, name: str) -> dict[str, int]:
        """Return the version number that each alias of a model points at."""
        with self._reading() as db:
            return dict(db.execute("SELECT alias, number FROM aliases WHERE name = ? ORDER BY alias", (name,)))

    def history(self, name: str, alias: str | None = None) -> list[Move]:
        """Return all moves of a model's aliases, or of one of them, oldest first."""
        query = "SELECT alias, before, after, action, who, at, reason FROM moves WHERE name = ? ORDER BY id"
        with self._reading() as db:
            rows = db.execute(query, (name,)).fetchall()
        fields = (dict(zip(Move.model_fields, row, strict=True)) for row in rows)
        moves = [Move.model_validate(one | {"after": one["after"] or None}) for one in fields]
        return [move for move in moves if alias in (None, move.alias)]

    def collected(self) -> set[str]:
        """Return the references of versions whose bytes :func:`fulltune.store.registry.gc.collect` deleted."""
        with self._reading() as db:
            return {f"{name}@{number}" for name, number in db.execute("SELECT name, number FROM collected")}

    def with_sha256(self, sha256: str) -> Version | None:
        """Return the newest version whose model has this hash, or None."""
        return self._newest("sha256", sha256)

    def of_run(self, run_id: str) -> Version | None:
        """Return the version that a run was registered as, or None."""
        return self._newest("source", run_id)

    def _newest(self, column: str, value: str) -> Version | None:
        with self._reading() as db:
            query = f"SELECT body FROM versions WHERE {column} = ? ORDER BY rowid DESC LIMIT 1"
            row = db.execute(query, (value,)).fetchone()
        return Version.model_validate_json(row[0]) if row else None

    def artifacts(self, version: Version) -> list[Artifact]:
        """Return a version in its other formats."""
        query = "SELECT body FROM artifacts WHERE name = ? AND number = ? ORDER BY format"
        with self._reading() as db:
            rows = db.execute(query, (version.name, version.number)).fetchall()
        return [Artifact.model_validate_json(body) for (body,) in rows]

    def artifact(self, version: Version, form: str) -> Artifact:
        """Return a version in another format.

        Raises:
            StoreError: It is not kept in this format.
        """
        found = {one.format: one for one in self.artifacts(version)}
        if form not in found:
            raise StoreError(
                f"{version.ref} is not kept as {form}",
                expected=", ".join(found) or "a format that it was exported to",
                fix=f"`fulltune export {version.ref} DIR --format {form}`",
            )
        return found[form]

    def all_files(self, version: Version) -> list[FileEntry]:
        """Return the files of a version, in all of its formats."""
        kept = [entry for artifact in self.artifacts(version) for entry in artifact.files.values()]
        return [*version.files.values(), *kept]

    def faults(self) -> list[str]:
        """Return the problems that SQLite's integrity check reports for the database."""
        with self._reading() as db:
            messages = [message for (message,) in db.execute("PRAGMA integrity_check")]
        return [message for message in messages if message != "ok"]

    # Bytes of versions.

    def problems(self, version: Version) -> list[Problem]:
        """Read all bytes of a version and return its missing or damaged files as problems."""
        files = {f"{version.ref}/{name}": entry for name, entry in version.files.items()}
        for artifact in self.artifacts(version):
            files |= {f"{version.ref} ({artifact.format})/{name}": one for name, one in artifact.files.items()}
        checks = (self.objects.problem(entry, name) for name, entry in files.items())
        return [problem for problem in checks if problem is not None]

    def check(self, version: Version) -> None:
        """Read all bytes of a version.

        Raises:
            StoreError: Files are missing or damaged; lists all of them.
        """
        if version.ref in self.collected():
            raise _deleted(version)
        fix = f"restore the file from a backup, register the run again ({version.lineage.source}), or choose another"
        problems = [Problem(p.found, p.expected, f"{fix} version", p.where) for p in self.problems(version)]
        if problems:
            raise StoreError(problems)

    def checkout(self, version: Version) -> Path:
        """Return the folder of a version after verifying all its bytes; create it if it is missing or damaged.

        Raises:
            StoreError: The stored bytes are missing or damaged.
        """
        folder = self.folder(version)
        try:
            if verify_folder(folder).files == version.files:
                return folder
        except StoreError:
            self.check(version)
        write_folder(folder, lambda empty: self._fill(empty, version.files), replace=True)
        return folder

    def write_artifact(self, artifact: Artifact, folder: Path) -> None:
        """Write the files of an artifact into an empty folder, after verifying all of them.

        Raises:
            StoreError: The stored bytes are missing or damaged, or the folder cannot be written.
        """
        checks = (self.objects.problem(entry, name) for name, entry in artifact.files.items())
        problems = [problem for problem in checks if problem is not None]
        if problems:
            raise StoreError(problems)
        with store_errors(folder):
            self._fill(folder, artifact.files)

    def folder(self, version: Version) -> Path:
        """Return the path of the folder that :meth:`checkout` creates; it need not exist."""
        return self.root / "versions" / version.name / str(version.number)

    def _fill(self, folder: Path, files: Mapping[str, FileEntry]) -> None:
        for name, entry in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(self.objects.path(entry.sha256), folder / name)

    # Changes.

    def add(
        self,
        name: str,
        files: Mapping[str, Path],
        *,
        sha256: str,
        outcome: str,
        lineage: Lineage,
        headline: str = "",
        metric: str = "",
        score: Score | None = None,
    ) -> Version:
        """Add a version; adding the same model from the same source again returns the existing version.

        Args:
            name: The model's name; it may have other versions.
            files: Files to store, by path in the version's folder; ``model/…`` is the checkpoint.
            sha256: Hash of the checkpoint.
            outcome: Outcome of the run.
            lineage: Origin of the model.
            headline: The run's conclusion.
            metric, score: Its deciding score, if it has no record.

        Raises:
            StoreError: The disk is full or read-only, or the registry cannot be written.
        """
        entries = {inner: self.objects.put(path) for inner, path in files.items()}
        with self.locked() as db:
            same = (name, lineage.source, sha256)
            again = db.execute(
                "SELECT body FROM versions WHERE name = ? AND source = ? AND sha256 = ?", same
            ).fetchone()
            # Garbage collection takes the same lock: files that exist now are not deleted before the commit.
            for inner, entry in entries.items():
                if not self.objects.path(entry.sha256).exists():
                    self.objects.put(files[inner])
            if again is not None:
                version = Version.model_validate_json(again[0])
                db.execute("DELETE FROM collected WHERE name = ? AND number = ?", (name, version.number))
            else:
                (newest,) = db.execute("SELECT max(number) FROM versions WHERE name = ?", (name,)).fetchone()
                fields = {"name": name, "number": (newest or 0) + 1, "sha256": sha256, "created": now()}
                fields |= {"outcome": outcome, "headline": headline, "lineage": lineage, "files": entries}
                fields |= {"metric": metric, "score": score}
                version = Version.model_validate(fields)
                row = (name, version.number, sha256, lineage.source, version.model_dump_json())
                db.execute("INSERT INTO versions (name, number, sha256, source, body) VALUES (?, ?, ?, ?, ?)", row)
        self.checkout(version)
        return version

    def keep(self, version: Version, folder: Path, *, form: str, verdict: str, forced: str = "") -> Artifact:
        """Keep a version in another format; it replaces an earlier one in the same format.

        Args:
            version: The version.
            folder: All files of the artifact.
            form: Its format.
            verdict: The result of its comparison with the version.
            forced: The reason to keep it although it is worse.

        Raises:
            StoreError: The version was deleted, the disk is full or read-only, or the registry cannot be written.
        """
        paths_by_name = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
        entries = {name: self.objects.put(path) for name, path in paths_by_name.items()}
        artifact = Artifact(format=form, verdict=verdict, forced=forced, created=now(), files=entries)
        with self.locked() as db:
            if version.ref in self.collected():
                raise _deleted(version)
            # As in `add`: garbage collection takes the same lock.
            for name, entry in entries.items():
                if not self.objects.path(entry.sha256).exists():
                    self.objects.put(paths_by_name[name])
            row = (version.name, version.number, form, artifact.model_dump_json())
            db.execute("INSERT OR REPLACE INTO artifacts (name, number, format, body) VALUES (?, ?, ?, ?)", row)
        return artifact

    def move(
        self, version: Version, alias: str, *, expected: int | None, action: str, reason: str, who: str | None = None
    ) -> Move:
        """Point an alias at a version if it still points at ``expected``, and record who, when and why.

        Raises:
            StoreError: The alias was moved or the version deleted in the meantime, or the alias is not valid.
        """
        _check_alias(alias)
        with self.locked() as db:
            # Garbage collection takes the same lock: a version that was intact before may be deleted by now.
            if version.ref in self.collected():
                raise _deleted(version)
            return self._moved(db, version.name, alias, expected, version.number, action, reason, who)

    def remove(self, name: str, alias: str, *, expected: int, reason: str, who: str | None = None) -> Move:
        """Remove an alias if it still points at ``expected``, and record it as a roll-back to no version.

        Raises:
            StoreError: The alias was moved in the meantime.
        """
        with self.locked() as db:
            return self._moved(db, name, alias, expected, None, "rollback", reason, who)

    def _moved(
        self,
        db: sqlite3.Connection,
        name: str,
        alias: str,
        expected: int | None,
        after: int | None,
        action: str,
        reason: str,
        who: str | None,
    ) -> Move:
        row = db.execute("SELECT number FROM aliases WHERE name = ? AND alias = ?", (name, alias)).fetchone()
        before = row[0] if row else None
        if before != expected:
            raise StoreError(
                f"{alias} of {name} was moved in the meantime: it is {before} now",
                expected=str(expected),
                fix="check its state (`fulltune models show`), then repeat",
            )
        move = Move.model_validate(
            {"alias": alias, "before": before, "after": after, "action": action}
            | {"who": who or _user(), "at": now(), "reason": reason}
        )
        if after is None:
            db.execute("DELETE FROM aliases WHERE name = ? AND alias = ?", (name, alias))
        else:
            db.execute("INSERT OR REPLACE INTO aliases VALUES (?, ?, ?)", (name, alias, after))
        columns = f"name, {', '.join(Move.model_fields)}"
        values = move.model_dump() | {"after": after or 0}  # versions begin at 1; the column is never null
        row = (name, *values.values())
        db.execute(f"INSERT INTO moves ({columns}) VALUES ({', '.join('?' * len(row))})", row)
        return move

    def delete(self, files: Iterable[Path], folders: Iterable[Path]) -> None:
        """Delete stored files and checkouts; the caller holds :meth:`locked` and knows that they are not needed.

        Raises:
            StoreError: The files cannot be deleted.
        """
        with store_errors(self.root):
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)
            for file in files:
                file.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[sqlite3.Connection]:
        """Open a transaction that excludes other writers: committed on success, rolled back on failure."""
        database.create(self.file)
        with database.errors(self.file), closing(database.connect(self.file)) as db, database.transaction(db):
            yield db

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Open a connection for reading; without a registry, to empty tables."""
        with database.errors(self.file), closing(database.connect(self.file if self.exists else None)) as db:
            yield db

    def _unknown(self, name: str) -> StoreError:
        known = self.names()
        return StoreError(
            f"there is no model {name!r} in the registry",
            expected=f"one of {', '.join(known)}" if known else "a registered model",
            where=str(self.root),
            fix=did_you_mean(name, known) or "list the models with `fulltune models list`; --out sets the folder",
        )


def reference(name: str, out: str | Path) -> Version | None:
    """Return the version that a model name in a config refers to, or None if it is not a name of the registry.

    Names of runs, paths, starters and packages take precedence. Hub ids cannot be hidden: an id with an owner has a
    slash, which registry names never have, and registry names begin with their task.

    Raises:
        StoreError: ``NAME@…`` refers to a version that does not exist.
    """
    if re.search(r"[:/\\]", name) or paths.exists(name) or paths.is_folder(Path(out) / name / "model"):
        return None
    registry = Registry(out)
    bare, at, _ = name.partition("@")
    if not at and (not registry.exists or bare not in registry.names()):
        return None
    return registry.version(name)


def evidence(name: str, out: str | Path) -> Path:
    """Return the folder with the record and predictions of a run, or of a version of the registry.

    Raises:
        StoreError: There is no such run or version.
    """
    version = reference(name, out)
    return Registry(out).checkout(version) if version else resolve(name, out)


def _deleted(version: Version) -> StoreError:
    return StoreError(
        f"the bytes of {version.ref} were deleted by gc",
        expected="a version whose bytes still exist",
        fix=f"choose another version, or run its config again: {version.lineage.source}",
    )


def _check_alias(alias: str) -> None:
    if not _ALIAS.fullmatch(alias) or alias == LATEST:
        expected = f"lowercase letters, digits, dots and hyphens, starting with a letter, and not {LATEST!r}"
        raise StoreError(f"{alias!r} is not a valid alias", expected=expected, fix=f"use a name like {PRODUCTION!r}")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, ImportError, OSError):
        # In a container, the user id may have no name.
        return str(os.getuid()) if hasattr(os, "getuid") else "unknown"
