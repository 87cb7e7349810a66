"""Small pretrained checkpoints that lie inside the package, so that everything runs offline in minutes.

``model: starter:gpt2`` (decoder), ``starter:bert`` (encoder with its masked-LM head) and ``starter:t5``
(encoder-decoder). :mod:`fulltune.starters.make` is how they were made.
"""

from __future__ import annotations

from pathlib import Path

#: Every starter, in the order of the families in the documentation.
NAMES = ("gpt2", "bert", "t5")


def folder(name: str) -> Path:
    """Where a starter's files lie (read only).

    Raises:
        KeyError: There is no such starter.
    """
    if name not in NAMES:
        raise KeyError(name)
    return Path(__file__).parent / name
