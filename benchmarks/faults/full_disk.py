"""A disk that fills up while a checkpoint is written: is the last one intact, and does the message name the fix?

    python benchmarks/faults/full_disk.py 10    # tries, each with a little more space

As root on Linux a small tmpfs is mounted; elsewhere the size of the files that the process may write is limited.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from jobs import fakes

from fulltune import Trainer
from fulltune.errors import StoreError
from fulltune.store import manifest
from fulltune.training.checkpoints import format

#: Forks of a process that has imported torch but not used it: after use, torch cannot compute in a fork.
_clean = multiprocessing.get_context("forkserver")
_clean.set_forkserver_preload(["jobs", "fulltune.training.trainer"])


@dataclass
class Result:
    """Results by kind, one line per fault: no intact checkpoint, an unhelpful message, or no message."""

    tried: int = 0
    faults: list[str] = field(default_factory=list)


def full_disk(tries: int, place: Path) -> Result:
    """Let the disk fill up ``tries`` times while the third checkpoint is written."""
    size, result = _size(place), Result()
    for number in range(tries):
        # The third one must not fit next to the first two, which fill up pages.
        room = int(size * (2.2 + 0.7 * (number + 1) / (tries + 1)))
        with _small_disk(place / f"{number}", room) as (folder, limit):
            parent, child = _clean.Pipe()
            process = _clean.Process(target=_train, args=(folder, int(size * 0.6) if limit else 0, child))
            process.start()
            message = parent.recv()
            process.join()
            result.tried += 1
            if not format.newest(folder):
                result.faults.append(f"{room} bytes: no whole checkpoint is left")
            if "free some space" not in message.lower():
                result.faults.append(f"{room} bytes: {message or 'no message'}")
            left = [path.name for path in folder.iterdir() if path.name.endswith(".part")]
            result.faults += [f"{room} bytes: {name} is left behind" for name in left]
    return result


def _train(folder: Path, limit: int, answer: Any) -> None:
    """Write a checkpoint per step, without checking the free space, so that the write itself fails."""
    manifest.shutil.disk_usage = lambda path: shutil._ntuple_diskusage(1 << 40, 0, 1 << 40)  # type: ignore[attr-defined]
    try:
        _trainer(folder, 2).train()
        if limit:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        _trainer(folder, 4).train(resume_from_checkpoint=True)
    except StoreError as error:
        answer.send(str(error))
    else:
        answer.send("")


def _trainer(folder: Path, steps: int) -> Trainer:
    model, tokenizer = fakes.gpt2()
    rows = [{"input_ids": tokenizer(f"the fox number {i}").input_ids} for i in range(8)]
    return Trainer(
        model=model,
        args=fakes.arguments(folder, max_steps=steps, save_strategy="steps", save_steps=1),
        train_dataset=rows,
    )


def _size(place: Path) -> int:
    """Return the bytes of one checkpoint."""
    _trainer(place / "size", 1).train()
    found = sum(path.stat().st_size for path in (place / "size" / "checkpoint-1").iterdir())
    shutil.rmtree(place / "size")
    return found


@contextlib.contextmanager
def _small_disk(folder: Path, room: int) -> Iterator[tuple[Path, bool]]:
    """Return a folder with this much space, and whether a limit on the size of files has to replace it."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(folder)]
    is_root = sys.platform == "linux" and os.geteuid() == 0
    mounted = is_root and subprocess.run(command, check=False, capture_output=True).returncode == 0
    try:
        yield folder, not mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tries", type=int, nargs="?", default=10)
    with tempfile.TemporaryDirectory() as temporary:
        found = full_disk(parser.parse_args().tries, Path(temporary))
    print(f"{found.tried} full disks, {len(found.faults)} faults", *found.faults, sep="\n  ")
    sys.exit(bool(found.faults))
