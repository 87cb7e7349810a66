"""Benchmark of keeping freed memory: steps of a 6-layer BERT with and without it, alternating, one process each.

    python benchmarks/allocator.py [PAIRS]

Prints the median seconds per step, page faults and peak memory of both, and the median ratio of the pairs.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time

#: Sequence lengths of one step each: those of clauses in batches of similar length.
LENGTHS = (40, 60, 80, 100, 140, 200, 256)
BATCH = 16


def measure(keep: bool) -> dict[str, float]:
    """Measure in one process: warm up over all lengths, then time two rounds."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from fulltune.runtime.kernels.allocator import keep_freed_pages

    if keep and not keep_freed_pages():
        raise SystemExit("this C library is not glibc: nothing to measure")
    torch.manual_seed(17)
    size = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    model = BertForSequenceClassification(BertConfig(num_labels=19, **size)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step(length: int) -> None:
        ids = torch.randint(1000, 20000, (BATCH, length))
        model(input_ids=ids, labels=torch.randint(0, 19, (BATCH,))).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    for length in LENGTHS:
        step(length)
    faults, started = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
    for length in LENGTHS * 2:
        step(length)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds_a_step": (time.perf_counter() - started) / (2 * len(LENGTHS)),
        "page_faults_a_step": (used.ru_minflt - faults) / (2 * len(LENGTHS)),
        "peak_mib": used.ru_maxrss / 1024,
    }


def main(pairs: int) -> None:
    runs: dict[str, list[dict[str, float]]] = {"plain": [], "keep": []}
    for _ in range(pairs):
        for name, found in runs.items():
            command = [sys.executable, __file__, "--one", name]
            found.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    medians = {
        name: {key: round(statistics.median(run[key] for run in found), 3) for key in found[0]}
        for name, found in runs.items()
    }
    ratios = [a["seconds_a_step"] / b["seconds_a_step"] for a, b in zip(runs["plain"], runs["keep"], strict=True)]
    print(json.dumps(medians | {"speed_up": round(statistics.median(ratios), 3), "pairs": pairs}, indent=2))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(sys.argv[2] == "keep")))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
