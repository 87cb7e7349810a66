"""Many processes write to one registry concurrently: is a version lost, a number reused, or an alias inconsistent?

    python benchmarks/faults/registry_writers.py 50

Each process adds a version of the same model, which shares a file with all others, and moves the same alias to it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from itertools import pairwise
from pathlib import Path

from fulltune.errors import StoreError
from fulltune.records.run import ModelInfo
from fulltune.store.registry.overview import verify
from fulltune.store.registry.registry import Lineage, Registry, Version

NAME, ALIAS = "causal-lm-tiny", "newest"

#: Processes with the imports done: no thread of the caller is forked, and they start in milliseconds.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["fulltune.store.registry.overview", "fulltune.store.registry.registry"])


def write(out: Path, number: int) -> Version:
    """Add a version with one file of its own and one that all share."""
    place = out / f"made-{number}"
    place.mkdir(parents=True, exist_ok=True)
    (place / "model.safetensors").write_text(f"weights {number}")
    (place / "config.json").write_text("{}")
    base = ModelInfo(source="tiny", sha256="b" * 64, family="decoder", architecture="Tiny")
    facts = {"source": f"run-{number}", "task": "causal-lm", "method": "full", "base": base, "fulltune": "0"}
    lineage = Lineage.model_validate(facts | {"train_sha256": "t", "eval_sha256": "e", "config_sha256": "c"})
    files = {f"model/{path.name}": path for path in place.iterdir()}
    return Registry(out).add(NAME, files, sha256=f"{number:064x}", outcome="accepted", lineage=lineage)


def move(out: Path, version: Version) -> None:
    """Point the alias at a version; retry while others are faster."""
    registry = Registry(out)
    while True:
        try:
            now = registry.aliases(NAME).get(ALIAS)
            registry.move(version, ALIAS, expected=now, action="promote", reason="a test", who="a process")
        except StoreError as error:
            if "was moved in the meantime" not in str(error):
                raise
        else:
            return


def writers(count: int, out: Path) -> list[str]:
    """Let ``count`` processes write concurrently; return the errors as text."""
    processes = [PROCESSES.Process(target=_write_and_move, args=(out, number)) for number in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    wrong = [f"process {n} ended with {p.exitcode}" for n, p in enumerate(processes) if p.exitcode]
    registry = Registry(out)
    versions, moves = registry.versions(NAME), registry.history(NAME, ALIAS)
    if [version.number for version in versions] != list(range(1, count + 1)):
        wrong.append(f"numbers {[version.number for version in versions]}")
    if {version.lineage.source for version in versions} != {f"run-{number}" for number in range(count)}:
        wrong.append("a version is lost")
    if sorted(move.after for move in moves) != list(range(1, count + 1)):
        wrong.append(f"{len(moves)} moves")
    if any(later.before != earlier.after for earlier, later in pairwise(moves)):
        wrong.append("a move began from where the alias was not")
    if registry.aliases(NAME) != {ALIAS: moves[-1].after}:
        wrong.append("the alias is not where the history says")
    if verify(registry).files != count + 1:
        wrong.append(f"{verify(registry).files} files")
    return wrong


def _write_and_move(out: Path, number: int) -> None:
    move(out, write(out, number))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", nargs="?", type=int, default=50)
    count = parser.parse_args().count
    with tempfile.TemporaryDirectory() as folder:
        wrong = writers(count, Path(folder) / "runs")
    print("\n  ".join([f"{count} writers: {len(wrong)} faults", *wrong]))
    return bool(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
