"""Log lines that are written once in a process."""

from __future__ import annotations

import logging
from collections.abc import Hashable

_written: set[tuple[str, Hashable]] = set()


def log_once(logger: logging.Logger, level: int, key: Hashable, message: str, *arguments: object) -> None:
    """Log a message unless one with the same key was logged by the same logger in this process.

    Args:
        logger: Writes the message; lines that its level suppresses count as written.
        level: Of the message, as in :mod:`logging`.
        key: Names the class of the model and the reason: copies of a model and other lengths say nothing new.
        message: As in :meth:`logging.Logger.log`.
        arguments: Of the message.
    """
    if (logger.name, key) not in _written:
        _written.add((logger.name, key))
        logger.log(level, message, *arguments)
