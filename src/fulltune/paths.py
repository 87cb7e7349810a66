"""What a path names, without reading it and for any text that a user may write."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from fulltune.errors import FulltuneError

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


def is_folder(path: str | Path) -> bool:
    """Return whether this is a folder; never raises."""
    return os.path.isdir(path)


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
