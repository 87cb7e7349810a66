"""Write folders atomically, with a manifest that detects later damage.

    manifest = write_folder(Path("runs/x/checkpoint-50"), fill)  # fill writes files into the folder it receives
    verify(Path("runs/x/checkpoint-50"))                         # raises a StoreError that lists all damaged files

``fill`` writes to a temporary folder next to the target. Its files are flushed to disk, ``manifest.json`` is written
with the size and SHA-256 of each file, and the folder is renamed. A folder with its final name is therefore complete.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from fulltune.errors import Problem, StoreError, check_schema
from fulltune.records.run import Model
from fulltune.runtime.files import file_sha256, store_errors, sync_folder, unfinished_path
from fulltune.store.cache import cache_key

MANIFEST = "manifest.json"

SCHEMA = 1

#: Bytes that are kept free on a disk for the small files of a run.
SPARE_BYTES = 1 << 20

_UNFINISHED = ".part"


class FileEntry(Model):
    """Size and hash of a file when it was written."""

    size: int
    sha256: str


class Manifest(Model):
    """Contents of a folder.

    Attributes:
        files: Entries by path inside the folder, with ``/`` as separator on all systems.
        properties: Information from the writer that readers need without opening a file; plain JSON.
        sha256: Hash of all other fields, which detects damage to the manifest itself.
    """

    schema_version: int = SCHEMA
    files: dict[str, FileEntry]
    properties: dict[str, Any] = Field(default_factory=dict)
    sha256: str = ""

    def digest(self) -> str:
        """Return the expected :attr:`sha256`: one hash over the contents, the names and the properties."""
        return cache_key(self.model_dump(exclude={"sha256"}))

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files.values())


def write_folder(
    target: Path, fill: Callable[[Path], object], *, properties: Mapping[str, Any] | None = None, replace: bool = False
) -> Manifest:
    """Create a folder atomically from what ``fill`` writes.

    Args:
        target: The folder; its parent is created.
        fill: Function that writes files into the folder it receives.
        properties: Plain JSON for the manifest.
        replace: Replace an existing folder; between the two renames neither exists.

    Raises:
        StoreError: The target exists already, or the disk is full or read-only. Exceptions of ``fill`` are passed on.
            The temporary folder is removed in all cases.
    """
    if target.exists() and not replace:
        raise StoreError("the folder exists already", where=str(target), fix="choose another name, or remove it")
    with store_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = unfinished_folder(target)
        unfinished.mkdir()
        try:
            fill(unfinished)
            manifest = seal(unfinished, target, dict(properties or {}))
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return manifest


def seal(unfinished: Path, target: Path, properties: dict[str, Any]) -> Manifest:
    """Write the manifest of a complete folder and rename it to the target, replacing an existing folder.

    Raises:
        StoreError: The disk is full or read-only.
    """
    with store_errors(target):
        manifest = _described(unfinished, properties)
        _write(unfinished / MANIFEST, manifest.to_json().encode())
        sync_folder(unfinished)
        _put(unfinished, target)
    return manifest


def describe(folder: Path, properties: Mapping[str, Any]) -> Manifest:
    """Write the manifest of a folder that another program has written; one that it has is replaced.

    Raises:
        StoreError: The disk is full or read-only.
    """
    with store_errors(folder):
        (folder / MANIFEST).unlink(missing_ok=True)
        manifest = _described(folder, dict(properties))
        unfinished = unfinished_path(folder / MANIFEST)
        _write(unfinished, manifest.to_json().encode())
        os.replace(unfinished, folder / MANIFEST)
        sync_folder(folder)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a folder after checking its own hash; the files are not read.

    Raises:
        StoreError: The manifest is missing, damaged, or written by a newer fulltune.
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
    check_schema("the manifest", manifest.schema_version, SCHEMA, path)
    return manifest


def verify(folder: Path, *, allow_others: bool = False) -> Manifest:
    """Check all files of a folder against its manifest, and return the manifest.

    Args:
        folder: A folder with a manifest.
        allow_others: Accept files that are not in the manifest.

    Raises:
        StoreError: A file is damaged, missing or not in the manifest; lists all of them.
    """
    manifest = read_manifest(folder)
    problems = [*_damage(folder, manifest), *([] if allow_others else _others(folder, manifest))]
    if problems:
        raise StoreError(problems)
    return manifest


def remove_unfinished(parent: Path) -> None:
    """Remove unfinished folders of killed processes; only the single writer of ``parent`` may call this."""
    for path in parent.glob(f".*{_UNFINISHED}"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)


def require_space(place: Path, needed: int, what: str = "") -> None:
    """Check that ``needed`` bytes fit on the disk of ``place``, which need not exist yet.

    Raises:
        StoreError: There is not enough space.
    """
    existing = next(path for path in (place, *place.resolve().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed + SPARE_BYTES:
        raise StoreError(
            f"{free / 1e9:.3g} GB are free on this disk",
            expected=f"{(needed + SPARE_BYTES) / 1e9:.3g} GB{what and ' for '}{what}",
            fix="free some space, or choose another folder with --out",
            where=str(place),
        )


def unfinished_folder(target: Path) -> Path:
    """Return an unused name next to the target that :func:`remove_unfinished` recognizes."""
    return unfinished_path(target)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _described(folder: Path, properties: dict[str, Any]) -> Manifest:
    """Flush all files of a folder to disk and return their manifest."""
    files = {}
    for path in _files(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = FileEntry(size=path.stat().st_size, sha256=file_sha256(path))
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
    manifest = Manifest(files=files, properties=properties)
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
        elif (actual := file_sha256(path)) != entry.sha256:
            yield Problem(f"the content has the SHA-256 {actual[:12]}…", f"{entry.sha256[:12]}…", where=str(path))


def _others(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    for path in _files(folder):
        if path.relative_to(folder).as_posix() not in manifest.files and path != folder / MANIFEST:
            yield Problem("the file is not listed in the manifest", "no such file", where=str(path))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
