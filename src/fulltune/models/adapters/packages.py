"""PEFT and bitsandbytes, loaded when they are needed, and missed with a clear message."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from fulltune.errors import MissingDependencyError


def require(what: str, *packages: str) -> None:
    """
    Raises:
        MissingDependencyError: One of the packages is not installed.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"{what} needs {' and '.join(missing)}, not installed here",
            expected=" and ".join(packages),
            fix="pip install 'fulltune[adapters]'",
            field="method",
        )


def peft() -> Any:
    """The package."""
    require("an adapter", "peft")
    return importlib.import_module("peft")


def bitsandbytes() -> Any:
    """The package."""
    require("quantisation to 4 bits", "bitsandbytes")
    return importlib.import_module("bitsandbytes")
