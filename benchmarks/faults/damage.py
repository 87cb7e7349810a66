"""Every file of a checkpoint is cut, deleted, and flipped in one bit, in turn: is it detected every time?

python benchmarks/faults/damage.py 100    # bits that are flipped in each file
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from jobs import fakes

from fulltune import Trainer
from fulltune.training.checkpoints import format


def checkpoint(folder: Path) -> Path:
    """Return a checkpoint of a short training of a tiny model."""
    model, tokenizer = fakes.gpt2()
    rows = [{"input_ids": tokenizer(f"the fox number {i}").input_ids} for i in range(8)]
    args = fakes.arguments(folder, max_steps=2, save_strategy="steps", save_steps=1)
    Trainer(model=model, args=args, train_dataset=rows).train()
    return folder / "checkpoint-2"


def harms(flips: int, seed: int = 0) -> Iterator[tuple[str, Callable[[Path], object]]]:
    """Return the kinds of damage to a file, by name."""
    numbers = random.Random(seed)

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[numbers.randrange(len(data))] ^= 1 << numbers.randrange(8)
        path.write_bytes(data)

    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[: numbers.randrange(path.stat().st_size)])

    yield from (("deleted", Path.unlink), ("cut", cut), ("emptied", lambda path: path.write_bytes(b"")))
    for _ in range(flips):
        yield "one bit flipped", flip


def damage(flips: int, folder: Path) -> tuple[int, list[str]]:
    """Damage a checkpoint; return how often, and the damage that was not detected (the previous one must be used)."""
    latest = checkpoint(folder)
    tried = 0
    missed = list[str]()
    for name in sorted(path.name for path in latest.iterdir()):
        whole = (latest / name).read_bytes()
        for kind, harm in harms(flips):
            harm(latest / name)
            tried += 1
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                chosen = format.newest(folder)
            if chosen != folder / "checkpoint-1" or not any(latest.name in str(one.message) for one in caught):
                missed.append(f"{name} {kind}")
            (latest / name).write_bytes(whole)
    assert format.newest(folder) == latest, "it is whole again"
    shutil.rmtree(latest)
    return tried, missed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("flips", type=int, nargs="?", default=100)
    with tempfile.TemporaryDirectory() as place:
        count, unseen = damage(parser.parse_args().flips, Path(place))
    print(f"{count} times damaged, {len(unseen)} not noticed", *unseen, sep="\n  ")
    sys.exit(bool(unseen))
