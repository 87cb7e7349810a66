"""Cost of a checkpoint every 50 steps: the same training with and without them, alternating, one process each.

    python benchmarks/checkpoints.py [PAIRS] [--steps N] [--every N] [--hidden N] [--layers N]

Prints the median seconds of both, the median ratio of the pairs with its range, the time that training was blocked for
a checkpoint and for the last write (more reliable than the ratio on a machine of varying speed), and the size of a
checkpoint. The time is that of the training loop including the wait for the last write.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def measure(every: int, asked: argparse.Namespace) -> dict[str, float]:
    """Measure in one process: a GPT-2, ``steps`` steps of 8 sequences of 128 tokens; ``every`` 0 saves none."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

    from fulltune import Trainer

    torch.manual_seed(17)
    size = {"n_embd": asked.hidden, "n_layer": asked.layers, "n_head": asked.hidden // 64, "vocab_size": 16000}
    model = GPT2LMHeadModel(GPT2Config(n_positions=128, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **size))
    rows = [{"input_ids": torch.randint(0, 16000, (128,)).tolist()} for _ in range(8 * asked.steps)]
    folder = Path(tempfile.mkdtemp(prefix="checkpoints-", dir=asked.place))
    saving = (
        {"save_strategy": "steps", "save_steps": every, "save_total_limit": 2} if every else {"save_strategy": "no"}
    )
    args = TrainingArguments(
        str(folder), max_steps=asked.steps, per_device_train_batch_size=8, report_to="none", disable_tqdm=True, **saving
    )
    trainer = Trainer(model=model, args=args, train_dataset=rows)
    saves, waits = _timed(trainer, "_save_checkpoint"), _timed(trainer._fulltune.checkpoints, "wait")
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    written = sum(path.stat().st_size for path in folder.glob("checkpoint-*/*"))
    count = len(list(folder.glob("checkpoint-*")))
    shutil.rmtree(folder)
    still = statistics.median(saves) if saves else 0.0
    return {"seconds": seconds, "bytes": written / max(1, count), "still": still, "last": sum(waits) if saves else 0.0}


def _timed(owner: Any, name: str) -> list[float]:
    """Record the seconds of each later call of a method."""
    plain, seconds = getattr(owner, name), list[float]()

    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return plain(*args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - started)

    setattr(owner, name, timed)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=int, nargs="?", default=5)
    for name, default in (("steps", 100), ("every", 50), ("hidden", 384), ("layers", 6)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--place", default=None, help="folder on the disk to write to")
    parser.add_argument("--child", type=int, default=None, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child is not None:
        print(json.dumps(measure(asked.child, asked)))
        return
    pairs = []
    for number in range(asked.pairs):
        order = (0, asked.every) if number % 2 else (asked.every, 0)
        found = {every: _child(every) for every in order}
        pairs.append((found[0], found[asked.every]))
    without, saved = ([pair[side]["seconds"] for pair in pairs] for side in (0, 1))
    ratios = sorted(b / a - 1 for a, b in zip(without, saved, strict=True))
    print(f"without: {statistics.median(without):.2f} s, every {asked.every} steps: {statistics.median(saved):.2f} s")
    print(f"overhead: {statistics.median(ratios):+.2%} (pairs from {ratios[0]:+.2%} to {ratios[-1]:+.2%})")
    still, last = (statistics.median(pair[1][key] for pair in pairs) for key in ("still", "last"))
    print(f"training stands still for {still * 1e3:.0f} ms a checkpoint; the last write ends {last * 1e3:.0f} ms late")
    print(f"a checkpoint takes {pairs[0][1]['bytes'] / 1e6:.0f} MB")


def _child(every: int) -> dict[str, float]:
    command = [sys.executable, *sys.argv, "--child", str(every)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
