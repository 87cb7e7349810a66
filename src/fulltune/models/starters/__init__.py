"""Locate the small pretrained checkpoints of the package, with which everything runs offline in minutes.

``model: starter:gpt2`` is a decoder, ``starter:bert`` an encoder, ``starter:t5`` an encoder-decoder. They are built by
:mod:`starters.make`, which can also build others from any folder of text.
"""

from __future__ import annotations

from pathlib import Path

#: Names of all starters.
NAMES = ("gpt2", "bert", "t5")


def folder(name: str) -> Path:
    """Return the folder of a starter's files (read only).

    Raises:
        KeyError: The starter does not exist.
    """
    if name not in NAMES:
        raise KeyError(name)
    return Path(__file__).parent / name
