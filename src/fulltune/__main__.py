"""``python -m fulltune``."""

from fulltune.cli.main import entry

entry()
