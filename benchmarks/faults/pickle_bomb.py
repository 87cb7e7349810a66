"""A poisoned pickle in place of every file of a checkpoint, of fulltune or transformers: does it ever run?

python benchmarks/faults/pickle_bomb.py
"""

from __future__ import annotations

import argparse
import contextlib
import pickle
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
import transformers
from jobs import fakes
from safetensors import SafetensorError

from fulltune import Trainer
from fulltune.errors import FulltuneError
from fulltune.store import manifest

#: Errors with which a replaced file may be refused.
_REFUSALS = (FulltuneError, pickle.UnpicklingError, SafetensorError, OSError, ValueError, RuntimeError, LookupError)
_REFUSALS += (TypeError, AttributeError, EOFError)


class Bomb:
    """Create a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def pickle_bomb(place: Path, names: int = 100) -> tuple[int, list[str]]:
    """Replace files (at most ``names`` of each kind); return how many, and those whose pickle was run."""
    mark = place / "exploded"
    tried = 0
    exploded = list[str]()
    for kind in (Trainer, transformers.Trainer):
        folder = place / kind.__module__
        _train(folder, kind)
        latest = folder / "checkpoint-2"
        for path in sorted(latest.iterdir())[:names]:
            whole = path.read_bytes()
            for poisoned in (_zipped(mark, place), pickle.dumps(Bomb(mark))):
                path.write_bytes(poisoned)
                _forge(latest)
                tried += 1
                _resume(folder, latest)
                if mark.exists():
                    exploded.append(f"{kind.__module__}: {path.name}")
                    mark.unlink()
            path.write_bytes(whole)
    return tried, exploded


def _zipped(mark: Path, place: Path) -> bytes:
    torch.save(Bomb(mark), place / "bomb.pt")
    return (place / "bomb.pt").read_bytes()


def _forge(folder: Path) -> None:
    """Write a manifest that fits the current files: whoever can write the files can write that too."""
    if (folder / manifest.MANIFEST).exists():
        unfinished = folder.rename(manifest.unfinished_folder(folder))
        (unfinished / manifest.MANIFEST).unlink()
        manifest.seal(unfinished, folder, {"format": 1, "step": 2, "sequence": 2})


def _resume(folder: Path, latest: Path) -> None:
    """Resume and ignore any error: only running code matters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(*_REFUSALS):
            _trainer(folder, 3, Trainer).train(resume_from_checkpoint=str(latest))


def _train(folder: Path, kind: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _trainer(folder, 2, kind).train()


def _trainer(folder: Path, steps: int, kind: Any) -> Any:
    model, tokenizer = fakes.gpt2()
    ids = tokenizer("the fox met the king").input_ids
    rows = [{"input_ids": ids, "labels": ids} for _ in range(8)]
    args = fakes.arguments(folder, max_steps=steps, save_strategy="steps", save_steps=2)
    return kind(model=model, args=args, train_dataset=rows)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        count, ran = pickle_bomb(Path(temporary))
    print(f"{count} poisoned files, {len(ran)} ran", *ran, sep="\n  ")
    sys.exit(bool(ran))
