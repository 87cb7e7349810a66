"""``python -m fulltune.data.demo contracts OUT_DIR``: write an example data set as files."""

from __future__ import annotations

import argparse
from pathlib import Path

from fulltune.data.demo.files import DATASETS


def main(arguments: list[str] | None = None) -> None:
    """Write the example data that the arguments name."""
    parser = argparse.ArgumentParser(prog="python -m fulltune.data.demo", description="Write example data.")
    parser.add_argument("name", choices=sorted(DATASETS))
    parser.add_argument("folder", type=Path, help="made when it is not there")
    options = parser.parse_args(arguments)
    for path, rows in DATASETS[options.name](options.folder).items():
        print(f"{path}: {rows} rows")


if __name__ == "__main__":
    main()
