"""Measurements in separate processes, and results as files."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fulltune.runtime import machine

RESULTS = Path(__file__).parents[1] / "results"

#: Where `apt-get install libtcmalloc-minimal4` installs the library on Debian and Ubuntu.
_TCMALLOC = ("libtcmalloc_minimal.so.4", "libtcmalloc.so.4")


def ask(script: str, request: Mapping[str, Any], *, preload: str | None = None) -> dict[str, Any]:
    """Run ``script --one REQUEST`` and read the JSON object in the last line of its output.

    Returns:
        That object, or ``{"error": …}`` with the last line of its error output.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if preload:
        environment["LD_PRELOAD"] = preload
    command = [sys.executable, script, "--one", json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode < 0:
        return {"error": f"killed by signal {-done.returncode}; 9 is what a machine does that is out of memory"}
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return {"error": lines[-1] if lines else f"exit code {done.returncode}"}
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def tcmalloc() -> str | None:
    """Return the library to preload, if it is installed."""
    folders = [Path("/usr/lib"), *Path("/usr/lib").glob("*-linux-gnu")]
    return next((str(folder / name) for name in _TCMALLOC for folder in folders if (folder / name).exists()), None)


def about() -> dict[str, Any]:
    """Return machine and versions, for a result."""
    import torch

    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("fulltune", "torch", "transformers", "accelerate", "trl")},
    }


def write(name: str, found: Mapping[str, Any]) -> Path:
    """Write one result as ``results/NAME.json``."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**about(), **found}, indent=2) + "\n", encoding="utf-8")
    return path


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table; floats with three digits."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(*columns, title=title, title_justify="left")
    for row in rows:
        shown.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row))
    Console(width=160).print(shown)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
