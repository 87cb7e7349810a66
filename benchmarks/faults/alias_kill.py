"""SIGKILL while an alias moves: does it always point to the old or the new version?

    python benchmarks/faults/alias_kill.py 100

A process moves the alias back and forth between two versions as fast as it can, and is killed after a random time. Then
the alias must be one of the two, the last one of its history, and the next move must work.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from registry_writers import ALIAS, NAME, PROCESSES, move, write

from fulltune.store.registry.registry import Registry

#: Seconds within which the process is killed, after its first move; several moves happen in that time.
LONGEST = 0.05


def alias_kills(count: int, out: Path, seed: int = 0) -> list[str]:
    """Kill ``count`` processes while they move an alias; return the errors as text."""
    numbers = random.Random(seed)
    registry = Registry(out)
    wrong = []
    versions = [write(out, number) for number in (1, 2)]
    for kill in range(count):
        before = len(registry.history(NAME, ALIAS))
        _killed(out, versions, numbers.uniform(0, LONGEST))
        alias, moves = registry.aliases(NAME).get(ALIAS), registry.history(NAME, ALIAS)
        if alias not in (1, 2) or alias != moves[-1].after:
            wrong.append(f"kill {kill}: the alias is {alias}, the history ends with {moves[-1:]}")
        if len(moves) <= before:
            wrong.append(f"kill {kill}: a move that was made is gone")
        wrong += [f"kill {kill}: {fault}" for fault in registry.faults()]
    return wrong


def _killed(out: Path, versions: list[Any], seconds: float) -> None:
    receiver, sender = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=_to_and_fro, args=(out, versions, sender))
    process.start()
    receiver.recv()
    time.sleep(seconds)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()


def _to_and_fro(out: Path, versions: list[Any], sender: Any) -> None:
    move(out, versions[0])
    sender.send("moved")
    while True:
        for version in reversed(versions):
            move(out, version)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", nargs="?", type=int, default=100)
    count = parser.parse_args().count
    with tempfile.TemporaryDirectory() as folder:
        wrong = alias_kills(count, Path(folder) / "runs")
    print("\n  ".join([f"{count} kills: {len(wrong)} faults", *wrong]))
    return bool(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
