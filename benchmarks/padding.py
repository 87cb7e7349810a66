"""Padding by batching method, and memory and time of the loss, in pairs.

    python benchmarks/padding.py [--data tales.jsonl] [--tokenizer starter:gpt2] [--pairs 5]

Prints one JSON object. ``padding``: the fraction of padding in an epoch's inputs, for random batches, batches by
length, a token budget, and each of them packed. ``loss``: peak memory and seconds of one head of GPT-2's size, forward
and backward, with logits and at the head, alternating.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

WIDTH = 768
VOCABULARY = 50257
ROWS = 4
LENGTH = 1024
BATCH = 8
BUDGET = 4096
WINDOW = 1024


def lengths_of(data: Path | None, tokenizer_name: str) -> list[int]:
    """Return the tokens of each document, at most a window; random with a long tail if no file is given."""
    if data is None:
        import numpy as np

        drawn = np.random.default_rng(17).lognormal(mean=5.0, sigma=0.9, size=2000)
        return [int(min(WINDOW, max(4, length))) for length in drawn]
    from transformers import AutoTokenizer

    from fulltune.models.sources import find

    tokenizer: Any = AutoTokenizer.from_pretrained(**find(tokenizer_name).kwargs)
    texts = [json.loads(line)["text"] for line in data.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [min(WINDOW, len(tokenizer(text, verbose=False).input_ids)) for text in texts]


def padding(lengths: list[int]) -> dict[str, dict[str, float]]:
    """Return fractions of padding, with one document per row and packed."""
    import torch
    from transformers.trainer_pt_utils import get_length_grouped_indices

    from fulltune.training.batches.buckets import budget_batches
    from fulltune.training.batches.packing import groups

    generator = torch.Generator().manual_seed(17)
    orders = {
        "random": torch.randperm(len(lengths), generator=generator).tolist(),
        "by length": get_length_grouped_indices(lengths, BATCH, generator=generator),
    }
    made = {name: [order[at : at + BATCH] for at in range(0, len(order), BATCH)] for name, order in orders.items()}
    made["budget"] = budget_batches([(length, 0) for length in lengths], BUDGET, 17, 0)
    tokens, found = sum(lengths), dict[str, dict[str, float]]()
    for name, batches in made.items():
        plain = sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)
        packed = sum(
            len(groups([lengths[row] for row in batch])) * max(lengths[row] for row in batch) for batch in batches
        )
        found[name] = {"plain": 1 - tokens / plain, "packed": 1 - tokens / packed, "batches": len(batches)}
    return found


def loss(at_head: bool) -> dict[str, float]:
    """Measure in one process: three passes of a head with its loss; the first one is not timed."""
    import torch

    from fulltune.models.head_loss import loss_at
    from fulltune.models.losses import token_cross_entropy

    torch.manual_seed(17)
    head = torch.nn.Linear(WIDTH, VOCABULARY, bias=False)
    hidden = torch.randn(ROWS, LENGTH, WIDTH, requires_grad=True)
    labels = torch.randint(0, VOCABULARY, (ROWS, LENGTH))

    def once() -> float:
        started = time.perf_counter()
        if at_head:
            with loss_at(head, labels) as found:
                head(hidden)
            total = found.total
        else:
            total = token_cross_entropy(head(hidden), labels)[0].sum()
        (total / labels.numel()).backward()
        head.zero_grad()
        hidden.grad = None
        return time.perf_counter() - started

    once()
    seconds = statistics.median(once() for _ in range(2))
    return {"seconds": seconds, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def paired(pairs: int) -> dict[str, Any]:
    """Measure both ways alternately, one process each."""
    runs: dict[str, list[dict[str, float]]] = {"logits": [], "head": []}
    for _ in range(pairs):
        for name, rows in runs.items():
            done = subprocess.run(
                [sys.executable, __file__, "--loss", name], capture_output=True, text=True, check=True
            )
            rows.append(json.loads(done.stdout.splitlines()[-1]))
    medians = {
        name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in runs.items()
    }
    ratios = [one["seconds"] / other["seconds"] for one, other in zip(runs["logits"], runs["head"], strict=True)]
    return {**medians, "median_ratio_of_seconds": statistics.median(ratios), "pairs": pairs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tokenizer", default="starter:gpt2")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--loss", choices=["logits", "head"], help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.loss:
        print(json.dumps(loss(asked.loss == "head")))
        return
    print(
        json.dumps({"padding": padding(lengths_of(asked.data, asked.tokenizer)), "loss": paired(asked.pairs)}, indent=1)
    )


if __name__ == "__main__":
    main()
