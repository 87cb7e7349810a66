"""Garbage: versions whose bytes nobody needs. What they were, and where they came from, stays for ever."""

from __future__ import annotations

from pathlib import Path

import yaml

from fulltune.errors import StoreError
from fulltune.records.run import Model
from fulltune.store.registry.registry import Registry, Version, now
from fulltune.store.runs import list_runs

#: The newest versions of each model that are kept whatever else.
KEEP = 3


class Garbage(Model):
    """What gc found.

    Attributes:
        kept: Why each version that stays does, by reference.
        dropped: References of those whose bytes go.
        files: Files that go: theirs, and what registrations that were killed left behind.
        freed_bytes: Space that this gives back. What a run's folder still holds too takes no space of its own, and
            gives none back.
        deleted: Whether it was done, or only listed.
    """

    kept: dict[str, str]
    dropped: tuple[str, ...]
    files: int
    freed_bytes: int
    deleted: bool


def collect(registry: Registry, out: Path, *, keep: int = KEEP, delete: bool = False) -> Garbage:
    """Find, and if asked delete, the bytes of versions that no alias, roll-back, unfinished run or child needs.

    Args:
        registry: Where versions live.
        out: Where runs live: one that was killed may still need the version that it began from.
        keep: The newest so many versions of each model stay too.
        delete: Delete them; otherwise they are only listed.

    Raises:
        StoreError: The registry cannot be read, or nothing can be deleted there.
    """
    if not registry.exists:
        return Garbage(kept={}, dropped=(), files=0, freed_bytes=0, deleted=delete)
    with registry.locked() as db:
        gone = registry.collected()
        versions = {version.ref: version for version in registry.versions() if version.ref not in gone}
        kept = _with_parents(_needed(registry, out, versions, keep), versions)
        dropped = [version for ref, version in versions.items() if ref not in kept]
        if delete:
            rows = [(version.name, version.number, now()) for version in dropped]
            db.executemany("INSERT INTO collected (name, number, at) VALUES (?, ?, ?)", rows)
    # In this order: a kill here leaves files that nobody needs, never a version that lacks its own.
    with registry.locked():
        gone = registry.collected() | (set() if delete else {version.ref for version in dropped})
        staying = [version for version in registry.versions() if version.ref not in gone]
        needed = {entry.sha256 for version in staying for entry in version.files.values()}
        files = list(registry.objects.unneeded(needed))
        checkouts = [registry.folder(version) for version in dropped if version not in staying]
        freed = sum(path.stat().st_size for path in files if _is_last_link(path, checkouts))
        if delete:
            registry.delete(files, checkouts)
    refs = tuple(version.ref for version in dropped)
    return Garbage(kept=kept, dropped=refs, files=len(files), freed_bytes=freed, deleted=delete)


def _needed(registry: Registry, out: Path, versions: dict[str, Version], keep: int) -> dict[str, str]:
    """Why each version is needed that something points at directly."""
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
                kept.setdefault(version.ref, f"the unfinished run {run} begins from it")
    return {ref: why for ref, why in kept.items() if ref in versions}


def _with_parents(kept: dict[str, str], versions: dict[str, Version]) -> dict[str, str]:
    found, new = dict(kept), list(kept)
    while new:
        child = new.pop()
        for parent in versions[child].lineage.parents:
            if parent in versions and parent not in found:
                found[parent] = f"{child} was made from it"
                new.append(parent)
    return found


def _unfinished(out: Path) -> list[tuple[str, str]]:
    """Runs without a record that may be taken up again, and the model that each begins from."""
    found = []
    for run in list_runs(out):
        if run.status.state == "refused" or (run.path / "record.json").exists():
            continue
        try:
            config = yaml.safe_load((run.path / "config.yaml").read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            fix = "delete that run, or restore its config: it may need a version"
            raise StoreError(f"the config of an unfinished run cannot be read ({error})", fix=fix) from error
        found.append((run.run_id, str(config.get("model", "")) if isinstance(config, dict) else ""))
    return found


def _is_last_link(path: Path, checkouts: list[Path]) -> bool:
    """Whether nothing but the checkouts that go holds these bytes too."""
    found = path.stat()
    others = sum(
        1 for folder in checkouts for file in folder.rglob("*") if file.is_file() and file.stat().st_ino == found.st_ino
    )
    return found.st_nlink <= 1 + others
