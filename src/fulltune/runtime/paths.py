"""Resolve and check paths of users, without reading files and without raising on invalid names."""

from __future__ import annotations

import glob
import os
import stat
import sys
import tempfile
from pathlib import Path

from fulltune.errors import FulltuneError

#: The environment variable that names the folder of this user's caches.
CACHE_VARIABLE = "FULLTUNE_CACHE"

_SPECIAL = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device file",
    stat.S_IFBLK: "a device file",
}


def user_path(name: str | Path) -> Path:
    """Return the path with ``~`` expanded, if that home folder exists."""
    return Path(os.path.expanduser(str(name)))


def exists(path: str | Path) -> bool:
    """Return whether this file or folder exists; False for invalid names."""
    return os.path.exists(path)


def is_file(path: str | Path) -> bool:
    """Return whether this is a regular file; never raises."""
    return os.path.isfile(path)


def is_folder(path: str | Path) -> bool:
    """Return whether this is a folder; never raises."""
    return os.path.isdir(path)


def matches(name: str) -> list[str]:
    """Return the sorted paths that match a name or a pattern such as ``train-*.jsonl`` or ``data/**/*.txt``."""
    path = user_path(name)
    if exists(path):
        return [str(path)]
    if "\0" in name or not any(character in name for character in "*?["):
        return []
    return sorted(glob.glob(str(path), recursive=True))


def names_in(folder: Path) -> list[str]:
    """Return the sorted names in a folder; empty if it cannot be read."""
    try:
        return sorted(os.listdir(folder))
    except (OSError, ValueError):
        return []


def files_in(folder: Path) -> list[str]:
    """Return the sorted names of the regular files in a folder, except hidden ones."""
    return [name for name in names_in(folder) if not name.startswith(".") and os.path.isfile(folder / name)]


def is_own(folder: Path) -> bool:
    """Return True for a folder that fulltune itself writes: a run, or the registry of models. It has no user's data."""
    names = set(names_in(folder))
    return "registry.sqlite" in names or ("status.json" in names and not names.isdisjoint({".lock", "record.json"}))


def inner_folders(folder: Path) -> list[Path]:
    """Return the sorted folders in a folder, except those that fulltune itself writes."""
    found = [folder / name for name in names_in(folder) if is_folder(folder / name)]
    return [path for path in found if not is_own(path)]


def cache_folder() -> Path:
    """Return ``$FULLTUNE_CACHE``, else the user's cache folder of this system, else a folder for temporary files."""
    from_environment = os.environ.get(CACHE_VARIABLE)
    if from_environment:
        return Path(from_environment)
    home = user_path("~")
    if str(home) == "~":
        return Path(tempfile.gettempdir()) / "fulltune-cache"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "fulltune" / "cache"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "fulltune"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "fulltune"


def check_regular_file(path: Path, error: type[FulltuneError], expected: str) -> None:
    """Check that a path is a regular file.

    Args:
        path: Path to check.
        error: Type of the error to raise.
        expected: Expected kind of file, for the message.

    Raises:
        FulltuneError: Of type ``error``, for a folder, pipe, socket or device.
        OSError: The file does not exist.
        ValueError: The name is invalid (it contains a NUL character).
    """
    mode = path.stat().st_mode
    if stat.S_ISREG(mode):
        return
    kind = "a folder" if stat.S_ISDIR(mode) else _SPECIAL.get(stat.S_IFMT(mode), "not a regular file")
    raise error(f"this is {kind}", expected=expected, where=str(path), fix="name a file")
