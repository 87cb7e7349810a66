"""Find the files that a source of a config names."""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from fulltune.data.formats import FORMATS, is_known
from fulltune.errors import DataError
from fulltune.runtime import paths
from fulltune.runtime.log_once import log_once

_LOG = logging.getLogger(__name__)

#: Longest name, in characters, that is compared with others.
_LONGEST_NAME = 500

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def expanded(source: str | Sequence[str]) -> list[str]:
    """Return the names of a source: patterns are replaced by the files that match, and repeated files are removed.

    Raises:
        DataError: There is no name, or no file matches a pattern.
    """
    names = [source] if isinstance(source, str) else list(source)
    each = _once([name for part in names for name in _matches(part)])
    if not each:
        raise DataError("an empty list", expected="at least one file", field="data")
    return each


def locate(source: str) -> tuple[Path | None, str]:
    """Return the local path, or None for a hub id, and the part that the source names after ``#``.

    Raises:
        DataError: There is no such file or folder.
    """
    if not source.strip():
        raise DataError("an empty path", expected=FORMATS, field="data", fix="name a file")
    path = paths.user_path(source)
    if paths.exists(path):
        return path, ""
    name, _, part = source.partition("#")
    path = paths.user_path(name)
    if name and paths.exists(path):
        return path, part
    if _HUB_ID.fullmatch(name) and not is_known(Path(name)) and not paths.is_folder(path.parent):
        return None, part
    raise _not_there(name)


def _matches(name: str) -> list[str]:
    """Return the files that match a pattern, or the name itself if it is not a pattern."""
    if not any(sign in name for sign in "*?["):
        return [name]
    pattern, _, part = name.partition("#")
    matches = paths.matches(name) or [f"{match}#{part}" for match in paths.matches(pattern) if part]
    if not matches:
        raise DataError("no file matches this pattern", expected=FORMATS, where=name, fix="check the pattern")
    return matches


def _once(names: Sequence[str]) -> list[str]:
    """Return the names without repeated files, such as those of overlapping patterns."""
    first = dict[str, str]()
    for name in names:
        path = paths.user_path(name)
        kept = first.setdefault(os.path.realpath(path) if paths.exists(path) else name, name)
        if kept is not name:
            again = "named twice" if kept == name else f"also named as {name}"
            log_once(_LOG, logging.WARNING, (kept, name), "%s is read once, although it is %s", kept, again)
    return list(first.values())


def _not_there(name: str) -> DataError:
    path = paths.user_path(name)
    if _is_out_of_sight(path):
        fix = "this user has no right to a folder above it: change the rights, or name another path"
        return DataError("cannot be read (Permission denied)", where=name, fix=fix)
    siblings = [sibling for sibling in paths.names_in(path.parent) if sibling != path.name]
    close = difflib.get_close_matches(path.name[:_LONGEST_NAME], siblings, n=1)
    fix = f"did you mean {str(path.with_name(close[0]))!r}?" if close else _advice(name)
    return DataError(
        "a broken link" if os.path.islink(path) else "there is no such file or folder",
        expected=f"{FORMATS}, a folder of .txt files, a `datasets` folder, or a hub id (owner/name)",
        where=name,
        fix=fix,
    )


def _is_out_of_sight(path: Path) -> bool:
    """Return True if this user may not search a folder above the path."""
    try:
        os.stat(path)
    except PermissionError:
        return True
    except (OSError, ValueError):  # ValueError: no name of a file, as with a null character
        pass
    return False


def _advice(name: str) -> str:
    """Return the fix for a name that is not a path but something else."""
    if any(sign < " " for sign in name):
        return "a backslash in double quotes starts an escape sequence: use single quotes, or / in paths"
    if name.startswith("file:"):
        return "write the path without file://"
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name):
        return "this is a URL: download the file, and write its path"
    if re.fullmatch(r"[0-9.,]+ *%?", name):
        return "a fraction of train is a number without quotes, such as 0.1"
    if re.search(r"\$\w|\$\{|%\w+%", name):
        return "write the path itself: environment variables are not expanded"
    if "\\" in name and paths.exists(paths.user_path(name.replace("\\", "/"))):
        return f"did you mean {name.replace(chr(92), '/')!r}?"
    return "check the path"
