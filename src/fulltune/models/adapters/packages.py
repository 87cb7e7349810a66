"""Import PEFT and bitsandbytes when they are needed, with a clear error if they are missing."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from fulltune.runtime import extras


def require(what: str, *packages: str) -> None:
    """Check that packages are installed.

    Args:
        what: Feature that needs them, for the message.
        packages: Names of the packages.

    Raises:
        MissingDependencyError: One of the packages is not installed.
    """
    extras.check(what, packages, "adapters", field="method")


def peft() -> Any:
    """Return the package ``peft``."""
    require("an adapter", "peft")
    return importlib.import_module("peft")


def bitsandbytes() -> Any:
    """Return the package ``bitsandbytes``."""
    require("quantisation to 4 bits", "bitsandbytes")
    return importlib.import_module("bitsandbytes")
