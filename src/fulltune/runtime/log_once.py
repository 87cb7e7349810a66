"""Log a message only once per process."""

from __future__ import annotations

import logging
from collections.abc import Hashable

_written: set[tuple[str, Hashable]] = set()


def log_once(logger: logging.Logger, level: int, key: Hashable, message: str, *arguments: object) -> None:
    """Log a message unless the same logger has logged one with the same key in this process.

    Args:
        logger: Logger to use. Messages below its level count as logged.
        level: Level of the message, as in :mod:`logging`.
        key: Identifies the message, e.g. model class and reason, so that copies of a model do not repeat it.
        message: Format string, as in :meth:`logging.Logger.log`.
        arguments: Arguments of the format string.
    """
    if (logger.name, key) not in _written:
        _written.add((logger.name, key))
        logger.log(level, message, *arguments)
