"""``python -m fulltune``."""

from fulltune.cli import entry

entry()
