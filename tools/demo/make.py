"""Write the generated rows and databases, compressed, as package data of ``fulltune.data.demo``.

PYTHONPATH=tools python -m demo.make
"""

from __future__ import annotations

import json
import lzma
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fulltune.data.demo
from demo.contracts import make_contracts
from demo.tales import make_tales
from demo.text2sql import make_text2sql

#: Number of clauses: as many as the small BERT needs to learn the task in one and a half epochs.
CLAUSES = 4000


def lines(rows: Iterable[dict[str, Any]]) -> bytes:
    """Return rows as JSONL."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def files() -> dict[str, bytes]:
    """Return the content of every file by its name, without the suffix ``.xz``."""
    content = {"contracts.jsonl": lines(make_contracts(CLAUSES))}
    content |= {f"tales-{name}.jsonl": lines(rows) for name, rows in make_tales().items()}
    with tempfile.TemporaryDirectory() as folder:
        splits = make_text2sql(folder)
        databases = {path.name: path.read_bytes() for path in sorted(Path(folder).glob("*.sqlite"))}
    return content | {f"text2sql-{name}.jsonl": lines(rows) for name, rows in splits.items()} | databases


def main() -> None:
    """Write all files."""
    folder = Path(fulltune.data.demo.__file__).parent
    for name, content in files().items():
        (folder / f"{name}.xz").write_bytes(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))


if __name__ == "__main__":
    main()
