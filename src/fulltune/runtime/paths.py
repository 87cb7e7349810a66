"""What a path names, without reading it and for any text that a user may write."""

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
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def user_path(name: str | Path) -> Path:
    """Return the path with ``~`` replaced, where there is such a home folder."""
    return Path(os.path.expanduser(str(name)))


def exists(path: str | Path) -> bool:
    """Return whether there is such a file or folder; a name that no file can have is none."""
    return os.path.exists(path)


def is_file(path: str | Path) -> bool:
    """Return whether this is a regular file; never raises."""
    return os.path.isfile(path)


def is_folder(path: str | Path) -> bool:
    """Return whether this is a folder; never raises."""
    return os.path.isdir(path)


def matches(name: str) -> list[str]:
    """Return the sorted paths that a name, or a pattern such as ``train-*.jsonl``, stands for."""
    path = user_path(name)
    if exists(path):
        return [str(path)]
    if "\0" in name or not any(sign in name for sign in "*?["):
        return []
    return sorted(glob.glob(str(path)))


def names_in(folder: Path) -> list[str]:
    """Return the sorted names in a folder; none where it cannot be read."""
    try:
        return sorted(os.listdir(folder))
    except (OSError, ValueError):
        return []


def files_in(folder: Path) -> list[str]:
    """Return the sorted names of the regular files in a folder, without hidden ones."""
    return [name for name in names_in(folder) if not name.startswith(".") and os.path.isfile(folder / name)]


def cache_folder() -> Path:
    """Return ``$FULLTUNE_CACHE``, else where this system keeps a user's caches, else a folder for temporary files."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    home = user_path("~")
    if str(home) == "~":
        return Path(tempfile.gettempdir()) / "fulltune-cache"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "fulltune" / "cache"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "fulltune"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "fulltune"


def refuse_special(path: Path, error: type[FulltuneError], expected: str) -> None:
    """Check that a path names a regular file, which has an end.

    Raises:
        FulltuneError: Of the type given: a folder, pipe, socket or device.
        OSError: There is no such file.
        ValueError: No file can have this name (it holds a NUL character).
    """
    mode = path.stat().st_mode
    if stat.S_ISREG(mode):
        return
    kind = "a folder" if stat.S_ISDIR(mode) else _SPECIAL.get(stat.S_IFMT(mode), "no regular file")
    raise error(f"this is {kind}", expected=expected, where=str(path), fix="name a file")
