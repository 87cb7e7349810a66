"""Collect garbage: delete the bytes of versions that are no longer needed. Their metadata is kept forever."""

from __future__ import annotations

from pathlib import Path

from fulltune.errors import ConfigError, StoreError
from fulltune.records.run import Model
from fulltune.runtime.clock import now
from fulltune.runtime.config_file import read_mapping
from fulltune.store.registry.registry import Registry, Version
from fulltune.store.runs import list_runs

#: Number of the newest versions of each model that are always kept.
KEEP = 3


class Garbage(Model):
    """Result of a garbage collection.

    Attributes:
        kept: Reason for keeping each version that stays, by reference.
        dropped: References of the versions whose bytes are deleted.
        files: Number of deleted files, including the rest of registrations that were killed.
        freed_bytes: Disk space that this frees. Files that a run folder also holds (hard links) free no space.
        deleted: True if the files were deleted, False if they were only listed.
    """

    kept: dict[str, str]
    dropped: tuple[str, ...]
    files: int
    freed_bytes: int
    deleted: bool


def collect(registry: Registry, out: Path, *, keep: int = KEEP, delete: bool = False) -> Garbage:
    """List, and on request delete, the bytes of versions that no alias, roll-back, unfinished run or child needs.

    Args:
        registry: Registry of the versions.
        out: Folder of the runs; one that was killed may still need the version that it started from.
        keep: Number of the newest versions of each model that are kept in any case.
        delete: Delete the bytes; otherwise they are only listed.

    Raises:
        StoreError: The registry cannot be read, or its files cannot be deleted.
        StoreError: The registry cannot be read, or nothing can be deleted there.
    """
    if not registry.exists:
        return Garbage(kept={}, dropped=(), files=0, freed_bytes=0, deleted=delete)
    with registry.locked() as db:
        collected = registry.collected()
        versions = {version.ref: version for version in registry.versions() if version.ref not in collected}
        kept = _with_parents(_needed(registry, out, versions, keep), versions)
        dropped = [version for ref, version in versions.items() if ref not in kept]
        if delete:
            rows = [(version.name, version.number, now()) for version in dropped]
            db.executemany("INSERT INTO collected (name, number, at) VALUES (?, ?, ?)", rows)
    # The order matters: a kill here leaves files that are not needed, never a version without its files.
    with registry.locked():
        gone = registry.collected() | (set() if delete else {version.ref for version in dropped})
        staying = [version for version in registry.versions() if version.ref not in gone]
        needed = {entry.sha256 for version in staying for entry in registry.all_files(version)}
        files = list(registry.objects.unneeded(needed))
        checkouts = [registry.folder(version) for version in dropped if version not in staying]
        freed = sum(path.stat().st_size for path in files if _is_last_link(path, checkouts))
        if delete:
            registry.delete(files, checkouts)
    refs = tuple(version.ref for version in dropped)
    return Garbage(kept=kept, dropped=refs, files=len(files), freed_bytes=freed, deleted=delete)


def _needed(registry: Registry, out: Path, versions: dict[str, Version], keep: int) -> dict[str, str]:
    """Return a reason for each version that is referenced directly."""
    kept: dict[str, str] = {}
    for name in registry.names():
        own = [version for version in versions.values() if version.name == name]
        kept |= {version.ref: f"one of the newest {keep}" for version in own[max(0, len(own) - keep) :] if keep}
        for alias, current in registry.aliases(name).items():
            before = registry.history(name, alias)[-1].before
            if before is not None:
                kept[f"{name}@{before}"] = f"{alias} can be rolled back to it"
            kept[f"{name}@{current}"] = f"it is {alias}"
    for run, model in _unfinished(out):
        name, _, number = model.partition("@")
        exact = number.isdecimal()
        for version in versions.values():
            if version.ref == model or (version.name == name and not exact):
                kept.setdefault(version.ref, f"the unfinished run {run} starts from it")
    return {ref: why for ref, why in kept.items() if ref in versions}


def _with_parents(kept: dict[str, str], versions: dict[str, Version]) -> dict[str, str]:
    reasons = dict(kept)
    new = list(kept)
    while new:
        child = new.pop()
        for parent in versions[child].lineage.parents:
            if parent in versions and parent not in reasons:
                reasons[parent] = f"{child} was made from it"
                new.append(parent)
    return reasons


def _unfinished(out: Path) -> list[tuple[str, str]]:
    """Return the runs without a record that may be resumed, each with the model that it starts from."""
    runs = []
    for run in list_runs(out):
        path = run.path / "config.yaml"
        if run.status.state == "refused" or (run.path / "record.json").exists() or not path.exists():
            continue
        try:
            config = read_mapping(path)
        except ConfigError as error:
            fix = "delete that run, or restore its config: it may need a version"
            raise StoreError(f"the config of an unfinished run cannot be read ({error})", fix=fix) from error
        runs.append((run.run_id, str(config.get("model", ""))))
    return runs


def _is_last_link(path: Path, checkouts: list[Path]) -> bool:
    """Return True if only checkouts that are deleted too hold links to these bytes."""
    stat = path.stat()
    files = [file for folder in checkouts for file in folder.rglob("*") if file.is_file()]
    links = sum(1 for file in files if file.stat().st_ino == stat.st_ino)
    return stat.st_nlink <= 1 + links
