"""The registry: named models, their versions that never change, and aliases such as ``production`` that move.

    registry = Registry("runs")
    version = registry.version("causal-lm-gpt2@production")
    folder = registry.checkout(version)  # every byte checked; holds model/ for from_pretrained

``<out>/registry/registry.sqlite`` says what there is, ``objects/`` holds the bytes, and ``versions/NAME/N/`` shows each
version as a folder (hard links where the disk allows). A move of an alias is one transaction: whoever looks, and
whatever is killed, finds the old state or the new one.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from pydantic import Field

from fulltune.errors import Problem, StoreError, did_you_mean
from fulltune.records.run import Model, ModelInfo
from fulltune.runtime import paths
from fulltune.runtime.files import storing
from fulltune.store.manifest import FileEntry, write_folder
from fulltune.store.manifest import verify as verify_folder
from fulltune.store.objects import Objects, link_or_copy
from fulltune.store.registry import database
from fulltune.store.runs import resolve

#: The alias that a bare name means.
PRODUCTION = "production"

#: The newest version; no alias can be called so.
LATEST = "latest"

_ALIAS = re.compile(r"[a-z][a-z0-9._-]*")


class Lineage(Model):
    """Where a version comes from.

    Attributes:
        source: The run's id, or what was done with which runs.
        kind: What made it.
        task, method: As in the config.
        base: The checkpoint that training began from, by hash.
        train_sha256, eval_sha256: The rows.
        config_sha256: Of ``config.yaml``.
        fulltune: The version of the code.
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
    """One version; nothing of it ever changes.

    Attributes:
        name, number: Together its reference, ``NAME@N``.
        sha256: Of the model's files, as a base is hashed.
        created: UTC.
        outcome: Of the run; ``unjudged`` where no run was scored against baselines.
        headline: What the run came to.
        lineage: Where it comes from.
        files: Everything that is kept of it, by path in its folder.
    """

    name: str
    number: int
    sha256: str
    created: str
    outcome: Literal["accepted", "rejected", "stopped", "unjudged"]
    headline: str = ""
    lineage: Lineage
    files: dict[str, FileEntry] = Field(default_factory=dict)

    @property
    def ref(self) -> str:
        return f"{self.name}@{self.number}"

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(entry.size for entry in self.files.values())


class Move(Model):
    """One line of an alias's history. ``before`` is None where the alias was new."""

    alias: str
    before: int | None
    after: int
    action: Literal["promote", "rollback"]
    who: str
    at: str
    reason: str


class Registry:
    """The registry beside the runs under ``out``; it is made when the first version is added."""

    def __init__(self, out: str | Path) -> None:
        self.root = Path(out) / "registry"
        self.file = self.root / "registry.sqlite"
        self.objects = Objects(self.root / "objects")

    @property
    def exists(self) -> bool:
        return self.file.is_file()

    # What there is.

    def names(self) -> list[str]:
        """Models, in the order of the alphabet."""
        with self._reading() as db:
            return [name for (name,) in db.execute("SELECT DISTINCT name FROM versions ORDER BY name")]

    def versions(self, name: str | None = None) -> list[Version]:
        """All versions, or those of one model, the oldest first.

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
        """What ``NAME@N``, ``NAME@ALIAS`` or ``NAME`` (its production) names.

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
        aliases, alias = self.aliases(name), which or PRODUCTION
        if alias not in aliases:
            newest = f"{name}@{max(versions)}"
            raise StoreError(
                f"{name} has no {alias!r}",
                expected=f"a version such as {newest}{', or ' + ', '.join(aliases) if aliases else ''}",
                fix=did_you_mean(alias, aliases) or f"name a version, or `fulltune models promote {newest}`",
            )
        return versions[aliases[alias]]

    def aliases(self, name: str) -> dict[str, int]:
        """Which version each alias of a model points at."""
        with self._reading() as db:
            return dict(db.execute("SELECT alias, number FROM aliases WHERE name = ? ORDER BY alias", (name,)))

    def history(self, name: str, alias: str | None = None) -> list[Move]:
        """Every move of a model's aliases, or of one of them, the oldest first."""
        query = "SELECT alias, before, after, action, who, at, reason FROM moves WHERE name = ? ORDER BY id"
        with self._reading() as db:
            rows = db.execute(query, (name,)).fetchall()
        moves = [Move.model_validate(dict(zip(Move.model_fields, row, strict=True))) for row in rows]
        return [move for move in moves if alias in (None, move.alias)]

    def collected(self) -> set[str]:
        """References of the versions whose bytes were deleted by :func:`fulltune.store.registry.gc.collect`."""
        with self._reading() as db:
            return {f"{name}@{number}" for name, number in db.execute("SELECT name, number FROM collected")}

    def with_sha256(self, sha256: str) -> Version | None:
        """The newest version whose model has this hash."""
        return self._newest("sha256", sha256)

    def of_run(self, run_id: str) -> Version | None:
        """The version that a run ended as."""
        return self._newest("source", run_id)

    def _newest(self, column: str, value: str) -> Version | None:
        with self._reading() as db:
            query = f"SELECT body FROM versions WHERE {column} = ? ORDER BY rowid DESC LIMIT 1"
            row = db.execute(query, (value,)).fetchone()
        return Version.model_validate_json(row[0]) if row else None

    def faults(self) -> list[str]:
        """What SQLite finds wrong with the database itself."""
        with self._reading() as db:
            found = [said for (said,) in db.execute("PRAGMA integrity_check")]
        return [said for said in found if said != "ok"]

    # The bytes of a version.

    def problems(self, version: Version) -> list[Problem]:
        """What is missing or damaged of a version's files, every byte read."""
        found = (self.objects.problem(entry, f"{version.ref}/{name}") for name, entry in version.files.items())
        return [problem for problem in found if problem is not None]

    def check(self, version: Version) -> None:
        """Read every byte of a version.

        Raises:
            StoreError: A file is missing or damaged; all of them at once.
        """
        if version.ref in self.collected():
            raise _deleted(version)
        fix = f"restore the file from a backup, register the run again ({version.lineage.source}), or choose another"
        problems = [Problem(p.found, p.expected, f"{fix} version", p.where) for p in self.problems(version)]
        if problems:
            raise StoreError(problems)

    def checkout(self, version: Version) -> Path:
        """The folder of a version, every byte of it checked; it is made again where it is missing or damaged.

        Raises:
            StoreError: The kept bytes are missing or damaged.
        """
        folder = self.folder(version)
        try:
            if verify_folder(folder).files == version.files:
                return folder
        except StoreError:
            self.check(version)
        write_folder(folder, lambda empty: self._fill(empty, version), replace=True)
        return folder

    def folder(self, version: Version) -> Path:
        """Where :meth:`checkout` shows a version, whether it is there or not."""
        return self.root / "versions" / version.name / str(version.number)

    def _fill(self, folder: Path, version: Version) -> None:
        for name, entry in version.files.items():
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
    ) -> Version:
        """Keep a version; the same model from the same source again gives the version that is there.

        Args:
            name: The model's name; other versions of it may be there.
            files: What to keep, by path in the version's folder; ``model/…`` is the checkpoint.
            sha256: Of the checkpoint.

        Raises:
            StoreError: The disk is full or read-only, or the registry cannot be written.
        """
        entries = {inner: self.objects.put(path) for inner, path in files.items()}
        with self.locked() as db:
            same = (name, lineage.source, sha256)
            again = db.execute(
                "SELECT body FROM versions WHERE name = ? AND source = ? AND sha256 = ?", same
            ).fetchone()
            # Whoever collects garbage holds this same lock: what is there now stays.
            for inner, entry in entries.items():
                if not self.objects.path(entry.sha256).exists():
                    self.objects.put(files[inner])
            if again is not None:
                version = Version.model_validate_json(again[0])
                db.execute("DELETE FROM collected WHERE name = ? AND number = ?", (name, version.number))
            else:
                (newest,) = db.execute("SELECT max(number) FROM versions WHERE name = ?", (name,)).fetchone()
                facts = {"name": name, "number": (newest or 0) + 1, "sha256": sha256, "created": now()}
                facts |= {"outcome": outcome, "headline": headline, "lineage": lineage, "files": entries}
                version = Version.model_validate(facts)
                row = (name, version.number, sha256, lineage.source, version.model_dump_json())
                db.execute("INSERT INTO versions (name, number, sha256, source, body) VALUES (?, ?, ?, ?, ?)", row)
        self.checkout(version)
        return version

    def move(
        self, version: Version, alias: str, *, expected: int | None, action: str, reason: str, who: str | None = None
    ) -> Move:
        """Point an alias at a version, if it still points where ``expected`` says; who, when and why are kept.

        Raises:
            StoreError: Somebody else moved the alias or deleted the version meanwhile, or its name cannot be one.
        """
        _check_alias(alias)
        with self.locked() as db:
            # Within the lock that gc takes too: what was whole before may be gone by now.
            if version.ref in self.collected():
                raise _deleted(version)
            key = (version.name, alias)
            row = db.execute("SELECT number FROM aliases WHERE name = ? AND alias = ?", key).fetchone()
            before = row[0] if row else None
            if before != expected:
                raise StoreError(
                    f"{alias} of {version.name} moved meanwhile: it is {before} now",
                    expected=str(expected),
                    fix="look at it again (`fulltune models show`), then repeat",
                )
            move = Move.model_validate(
                {"alias": alias, "before": before, "after": version.number, "action": action}
                | {"who": who or _user(), "at": now(), "reason": reason}
            )
            db.execute("INSERT OR REPLACE INTO aliases VALUES (?, ?, ?)", (*key, version.number))
            columns = f"name, {', '.join(Move.model_fields)}"
            row = (version.name, *move.model_dump().values())
            db.execute(f"INSERT INTO moves ({columns}) VALUES ({', '.join('?' * len(row))})", row)
        return move

    def delete(self, files: Iterable[Path], folders: Iterable[Path]) -> None:
        """Delete kept files and checked-out folders; for who holds :meth:`locked` and knows that nobody needs them.

        Raises:
            StoreError: Nothing can be deleted there.
        """
        with storing(self.root):
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)
            for file in files:
                file.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[sqlite3.Connection]:
        """A transaction that nobody else writes in: kept whole if the block ends well, undone if not."""
        database.create(self.file)
        with database.errors(self.file), closing(database.connect(self.file)) as db, database.transaction(db):
            yield db

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """A connection; to an empty registry where there is none yet."""
        with database.errors(self.file), closing(database.connect(self.file if self.exists else None)) as db:
            yield db

    def _unknown(self, name: str) -> StoreError:
        known = self.names()
        return StoreError(
            f"there is no model {name!r} in the registry",
            expected=f"one of {', '.join(known)}" if known else "a registered model",
            where=str(self.root),
            fix=did_you_mean(name, known) or "`fulltune models list` names them; --out says where the registry is",
        )


def reference(name: str, out: str | Path) -> Version | None:
    """The version that a model's name in a config means, or None where the name is no registry's.

    Names of runs, paths, starters and packages come first. A hub id is never hidden: ids with an owner have a slash,
    which names here never have, and names here begin with their task.

    Raises:
        StoreError: ``NAME@…`` names what is not there.
    """
    if re.search(r"[:/\\]", name) or paths.exists(name) or paths.is_folder(Path(out) / name / "model"):
        return None
    registry = Registry(out)
    bare, at, _ = name.partition("@")
    if not at and (not registry.exists or bare not in registry.names()):
        return None
    return registry.version(name)


def evidence(name: str, out: str | Path) -> Path:
    """The folder with record and predictions of a run, or of a version of the registry.

    Raises:
        StoreError: There is no such run or version.
    """
    version = reference(name, out)
    return Registry(out).checkout(version) if version else resolve(name, out)


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _deleted(version: Version) -> StoreError:
    return StoreError(
        f"the bytes of {version.ref} were deleted by gc",
        expected="a version that is still there",
        fix=f"choose another version, or run its config again: {version.lineage.source}",
    )


def _check_alias(alias: str) -> None:
    if not _ALIAS.fullmatch(alias) or alias == LATEST:
        expected = f"small letters, digits, dots and hyphens, a letter first, not {LATEST!r}"
        raise StoreError(f"{alias!r} cannot be an alias", expected=expected, fix=f"choose a name like {PRODUCTION!r}")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, ImportError, OSError):
        # A container may run under a number that has no name.
        return str(os.getuid()) if hasattr(os, "getuid") else "unknown"
