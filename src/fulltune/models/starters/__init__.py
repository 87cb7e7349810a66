"""Small pretrained checkpoints that lie inside the package, so that everything runs offline in minutes.

``model: starter:gpt2`` is a decoder, ``starter:bert`` an encoder, ``starter:t5`` an encoder-decoder.
:mod:`starters.make` is how they were made, and makes others from any folder of text.
"""

from __future__ import annotations

from pathlib import Path

#: Every starter that is here.
NAMES = ("gpt2", "bert", "t5")


def folder(name: str) -> Path:
    """Where a starter's files lie (read only).

    Raises:
        KeyError: There is no such starter.
    """
    if name not in NAMES:
        raise KeyError(name)
    return Path(__file__).parent / name
