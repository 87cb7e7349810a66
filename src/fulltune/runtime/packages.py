"""Recognize errors of other packages: they cannot be imported, or cannot read an environment variable."""

from __future__ import annotations

import linecache
import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from fulltune.errors import ConfigError, FulltuneError, MissingDependencyError

#: The name of a variable in a line of code.
_NAME = re.compile(r"""["']([A-Z][A-Z0-9_]+)["']""")


@contextmanager
def usable_packages() -> Iterator[None]:
    """Report a package that cannot be imported, and an environment variable with a value that cannot be read.

    Packages convert such values when they are imported, and their errors do not name the variable.

    Raises:
        ConfigError: A variable has a value that cannot be read.
        MissingDependencyError: A package is installed and cannot be imported.
    """
    try:
        yield
    except FulltuneError:
        raise
    except Exception as error:
        fault = next(filter(None, map(_fault, _chain(error))), None)
        if fault is None:
            _check_import(error)
            raise
        name, reason = fault
        raise ConfigError(
            f"{os.environ[name]!r}, which cannot be read ({reason})",
            expected="a value that the installed packages accept",
            fix=f"correct it, or remove it with `unset {name}`",
            where=f"environment variable {name}",
        ) from error


def _check_import(error: Exception) -> None:
    """Check that no package failed to be imported, other than by a name that fulltune itself imports in vain.

    Raises:
        MissingDependencyError: One did: its libraries are damaged or missing, or there is no memory for them.
    """
    if not isinstance(error, ImportError):
        return
    last, _ = list(traceback.walk_tb(error.__traceback__))[-1]
    package = str(last.f_globals.get("__name__", "")).partition(".")[0]
    if package not in ("fulltune", "importlib", "__main__", ""):
        raise MissingDependencyError(
            f"{package} cannot be imported ({error})",
            expected="a complete installation, and memory to load it",
            fix=f"install {package} again, or raise the limit of memory",
        ) from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _fault(error: BaseException) -> tuple[str, str] | None:
    """Return the variable that a line of the traceback reads and whose value the error quotes, and the error's text."""
    if not isinstance(error, ValueError | KeyError):
        return None
    words = _words(str(error))
    for frame, line in traceback.walk_tb(error.__traceback__):
        code = linecache.getline(frame.f_code.co_filename, line)
        for name in _NAME.findall(code):
            if os.environ.get(name) and _words(os.environ[name]) in words:
                return name, str(error)
    return None


def _words(text: str) -> str:
    """Return the words of a text in lower case, between spaces."""
    words = re.findall(r"""[^\s'":,]+""", text.lower())
    return f" {' '.join(words)} "
