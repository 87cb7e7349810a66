"""Run the command line: ``python -m fulltune``, and the console script."""

import sys


def main() -> None:
    """Run a command; Ctrl-C ends it with exit code 130, also while modules are imported."""
    try:
        from fulltune.cli.main import entry

        entry()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
