"""Read the license of a model or of data from the card in its folder."""

from __future__ import annotations

import re
from pathlib import Path

from fulltune.errors import ConfigError
from fulltune.runtime.config_file import read_value

#: The license of the starters, which are part of fulltune.
_OWN = "apache-2.0"

#: The metadata at the head of a card, as the hub reads it.
_HEAD = re.compile(r"---\s*\n(.*?)\n---", re.DOTALL)


def license_of(folder: Path | None, name: str = "") -> str:
    """Return the license that ``README.md`` of a folder states in its metadata, as on the hub; empty if it is unknown.

    Args:
        folder: Folder of a model or of data; None if it is not on this machine.
        name: Name of a model in a config.
    """
    if name.startswith("starter:"):
        return _OWN
    metadata = {} if folder is None else _metadata(folder / "README.md")
    stated = metadata.get("license_name") or metadata.get("license") or ""
    return ", ".join(map(str, stated)) if isinstance(stated, list) else str(stated)


def _metadata(card: Path) -> dict[str, object]:
    """Return the metadata of a card; empty if it has none that can be read."""
    try:
        head = _HEAD.match(card.read_text(encoding="utf-8"))
        found = read_value(head[1], str(card)) if head else None
    except (OSError, UnicodeDecodeError, ConfigError):
        return {}
    return found if isinstance(found, dict) else {}
