"""Folders that are whole or not there, and that tell when they are not what was written.

    manifest = write_folder(Path("runs/x/checkpoint-50"), fill)  # fill writes files into the folder that it is given
    verify(Path("runs/x/checkpoint-50"))                         # or a StoreError that names every damaged file

``fill`` works in a temporary folder beside the target. Its files are flushed to the disk, ``manifest.json`` is written
with the size and SHA-256 of each, and the folder is renamed: a folder under its own name was finished once.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from fulltune.errors import Problem, StoreError
from fulltune.records.run import Model
from fulltune.runtime.files import file_sha256, storing, sync_folder, unfinished_path
from fulltune.store.cache import cache_key

MANIFEST = "manifest.json"

SCHEMA = 1

#: Room that is left on a disk for the small files of a run.
SPARE_BYTES = 1 << 20

_UNFINISHED = ".part"


class FileEntry(Model):
    """A file as it was written."""

    size: int
    sha256: str


class Manifest(Model):
    """What a folder holds.

    Attributes:
        files: By path inside the folder, with ``/`` on every system.
        facts: What the writer wanted to be known without opening a file; plain JSON.
        sha256: Of all the rest, so that damage to the manifest itself is seen.
    """

    schema_version: int = SCHEMA
    files: dict[str, FileEntry]
    facts: dict[str, Any] = Field(default_factory=dict)
    sha256: str = ""

    def digest(self) -> str:
        """What :attr:`sha256` must be: one hash over every file's content, its name, and the facts."""
        return cache_key(self.model_dump(exclude={"sha256"}))

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files.values())


def write_folder(
    target: Path, fill: Callable[[Path], object], *, facts: Mapping[str, Any] | None = None, replace: bool = False
) -> Manifest:
    """Make a folder of what ``fill`` writes, whole or not at all.

    Args:
        target: The folder; its parent is made.
        fill: Writes files into the folder that it is given.
        facts: Plain JSON for the manifest.
        replace: Put it in place of a folder that is there; between the two renamings there is neither.

    Raises:
        StoreError: The target is there already, or the disk is full or read-only. What ``fill`` raises passes; in
            every case the temporary folder goes.
    """
    if target.exists() and not replace:
        raise StoreError("there is something already", where=str(target), fix="choose another name, or remove it")
    with storing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = unfinished_folder(target)
        unfinished.mkdir()
        try:
            fill(unfinished)
            manifest = seal(unfinished, target, dict(facts or {}))
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return manifest


def seal(unfinished: Path, target: Path, facts: dict[str, Any]) -> Manifest:
    """Write the manifest of a folder that is complete, and put it in its place (or in that of the one that is there).

    Raises:
        StoreError: The disk is full or read-only.
    """
    with storing(target):
        manifest = _described(unfinished, facts)
        _write(unfinished / MANIFEST, manifest.to_json().encode())
        sync_folder(unfinished)
        _put(unfinished, target)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder, itself undamaged; the files are not looked at.

    Raises:
        StoreError: There is none, it is of a newer fulltune, or it is damaged.
    """
    path = folder / MANIFEST
    fix = "restore it, or remove the folder"
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise StoreError("the manifest is missing", expected=MANIFEST, where=str(folder), fix=fix) from None
    except (OSError, ValidationError) as error:
        raise StoreError("the manifest is damaged", where=str(path), fix=fix) from error
    if manifest.sha256 != manifest.digest():
        raise StoreError("the manifest is damaged", expected=manifest.digest(), where=str(path), fix=fix)
    if manifest.schema_version > SCHEMA:
        found = f"the manifest has schema {manifest.schema_version}"
        raise StoreError(found, expected=f"at most {SCHEMA}", where=str(path), fix="upgrade fulltune")
    return manifest


def verify(folder: Path, *, allow_others: bool = False) -> Manifest:
    """The manifest of a folder whose every file is as it was written.

    Args:
        folder: With a manifest.
        allow_others: Files that were not written with the others are no damage.

    Raises:
        StoreError: It is not; names every file that is damaged, missing, or was not written.
    """
    manifest = read_manifest(folder)
    problems = [*_damage(folder, manifest), *([] if allow_others else _others(folder, manifest))]
    if problems:
        raise StoreError(problems)
    return manifest


def remove_unfinished(parent: Path) -> None:
    """Remove what a process that was killed had begun to write there. Only for who alone may write there."""
    for path in parent.glob(f".*{_UNFINISHED}"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)


def require_space(place: Path, needed: int, what: str = "") -> None:
    """Whether ``needed`` bytes fit on the disk of ``place``, which need not be there yet.

    Raises:
        StoreError: They do not.
    """
    existing = next(path for path in (place, *place.resolve().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed + SPARE_BYTES:
        raise StoreError(
            f"{free / 1e9:.3g} GB are free on this disk",
            expected=f"{(needed + SPARE_BYTES) / 1e9:.3g} GB{what and ' for '}{what}",
            fix="free some space, or choose another place with --out",
            where=str(place),
        )


def unfinished_folder(target: Path) -> Path:
    """A name beside the target that nobody has, and that :func:`remove_unfinished` knows."""
    return unfinished_path(target)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _described(folder: Path, facts: dict[str, Any]) -> Manifest:
    """The manifest of what lies in a folder, every file flushed to the disk on the way."""
    files = {}
    for path in _files(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = FileEntry(size=path.stat().st_size, sha256=file_sha256(path))
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
    manifest = Manifest(files=files, facts=facts)
    return manifest.model_copy(update={"sha256": manifest.digest()})


def _put(unfinished: Path, target: Path) -> None:
    if target.exists():
        old = unfinished_folder(target)
        os.replace(target, old)
        os.replace(unfinished, target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(unfinished, target)
    sync_folder(target.parent)


def _damage(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file():
            yield Problem("the file is missing", f"{entry.size:,} bytes", where=str(path))
        elif path.stat().st_size != entry.size:
            yield Problem(f"the file has {path.stat().st_size:,} bytes", f"{entry.size:,}", where=str(path))
        elif (found := file_sha256(path)) != entry.sha256:
            yield Problem(f"the content has the SHA-256 {found[:12]}…", f"{entry.sha256[:12]}…", where=str(path))


def _others(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    for path in _files(folder):
        if path.relative_to(folder).as_posix() not in manifest.files and path != folder / MANIFEST:
            yield Problem("the file was not written with the others", "no such file", where=str(path))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
