"""Speed, memory and loss of fulltune and its peers, on the three use cases.

    python benchmarks/speed.py [--workload tales clauses sql] [--arms fulltune a b c d e] [--dropout on off]
                               [--steps N] [--repeats N] [--data DIR]

Each measurement is a separate process: it builds the model from the seed, warms up, builds it again, and trains one
pass over the same sequences. Arms alternate, so that other load on the machine affects all of them. Writes
results/speed.json and a plot of the loss curves per workload.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tools import processes

STEPS = {"tales": 3, "clauses": 40, "sql": 20}
WARM = {"tales": 1, "clauses": 3, "sql": 3}
SEED = 17

#: Workload, peer, and the target of fulltune's speed relative to it.
SPEED_TARGETS = (
    ("tales", "b", 2.8), ("tales", "c", 1.7), ("sql", "b", 2.2), ("sql", "c", 1.7),
    ("clauses", "b", 2.2), ("clauses", "c", 1.6), ("clauses", "a", 12.0),
)  # fmt: skip
MEMORY_TARGET = 0.60
LOSS_TARGET = 0.005
MATRIX_TARGET = 0.75

Found = dict[str, Any]


def measure(request: Found) -> Found:
    """Measure in one process: one arm on one workload."""
    from tools import arms, workloads

    from fulltune.runtime import machine

    def build(steps: int) -> workloads.Workload:
        options = {"seed": SEED, "dropout": request["dropout"] == "on"}
        return workloads.make(request["workload"], Path(request["data"]), steps=steps, **options)

    with tempfile.TemporaryDirectory() as folder:
        arms.train(request["arm"], build(WARM[request["workload"]]), SEED, Path(folder))
        workload = build(request["steps"])
        started = time.perf_counter()
        curve = arms.train(request["arm"], workload, SEED, Path(folder))
        seconds = time.perf_counter() - started
    peak = machine.peak_rss_bytes()
    return {
        "tokens": workload.tokens,
        "seconds": seconds,
        "tokens_per_second": workload.tokens / seconds,
        "peak_bytes": peak,
        "eval_loss": workloads.loss(workload),
        "curve": curve,
    }


def matrix_peak(size: int = 4096) -> float:
    """Return the FLOP per second of a product of two square FP32 matrices, by the faster of torch's two libraries."""
    import torch

    a, b = torch.randn(size, size), torch.randn(size, size)
    ways = [lambda: a @ b]
    if torch.backends.mkldnn.is_available():
        ways.append(lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""))
    return max(2 * size**3 / min(_seconds(way) for _ in range(5)) for way in ways)


def gpt2_operations(tokens: float, window: int = 1024) -> float:
    """Return the operations of training GPT-2 124M on this many tokens: 3 · (2 N + 2 · layers · window · width).

    N excludes the embeddings of positions (Kaplan et al. 2020, table 1; the head counts: its product is computed).
    """
    layers = 12
    width = 768
    vocabulary = 50257
    parameters = 12 * layers * width**2 + vocabulary * width
    return tokens * 3 * (2 * parameters + 2 * layers * window * width)


def _seconds(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def run(options: argparse.Namespace) -> Found:
    """Run all measurements, arms alternating."""
    from tools import arms

    found: Found = {}
    for workload in options.workload:
        steps = options.steps or STEPS[workload]
        cells = [(arm, dropout) for dropout in options.dropout for arm in options.arms]
        rows = {cell: [] for cell in cells}
        for turn in range(options.repeats):
            for arm, dropout in cells:
                reason = arms.missing(arm, workload)
                if reason:
                    rows[arm, dropout] = [{"error": reason}]
                    continue
                request = {"workload": workload, "arm": arm, "dropout": dropout, "steps": steps, "data": options.data}
                preload = processes.tcmalloc() if arm == "c" else None
                answer = processes.ask(__file__, request, preload=preload)
                rows[arm, dropout].append(answer)
                shown = answer.get("error") or f"{answer['tokens_per_second']:.0f} tokens/s"
                print(f"{workload} {arm} dropout {dropout} {turn + 1}/{options.repeats}: {shown}", file=sys.stderr)
        found[workload] = {f"{arm}, dropout {dropout}": summary(rows[arm, dropout]) for arm, dropout in cells}
    return found


def summary(rows: list[Found]) -> Found:
    """Return medians over the repeats, and the single rates for pairing."""
    whole = [row for row in rows if "error" not in row]
    if not whole:
        return {"error": rows[0]["error"]}
    medians = {
        key: statistics.median(row[key] for row in whole) for key in ("tokens_per_second", "peak_bytes", "eval_loss")
    }
    rates = [row["tokens_per_second"] for row in whole]
    return {**medians, "rates": rates, "tokens": whole[0]["tokens"], "curve": whole[0]["curve"]}


def judge(found: Found, peak: float) -> list[list[Any]]:
    """Return each target with its measurement: name, target, value, verdict."""
    rows: list[list[Any]] = []
    for workload, peer, wanted in SPEED_TARGETS:
        ours, theirs = (_cell(found, workload, arm) for arm in ("fulltune", peer))
        got = (
            statistics.median(a / b for a, b in zip(ours["rates"], theirs["rates"], strict=False))
            if ours and theirs
            else None
        )
        rows.append(
            [f"{workload}: times as fast as {peer}", f"≥ {wanted:g}", got, _verdict(got, got and got >= wanted)]
        )
    for workload in found:
        ours, theirs = (_cell(found, workload, arm) for arm in ("fulltune", "b"))
        share = ours["peak_bytes"] / theirs["peak_bytes"] if ours and theirs else None
        rows.append(
            [
                f"{workload}: peak memory over b's",
                f"≤ {MEMORY_TARGET:g}",
                share,
                _verdict(share, share and share <= MEMORY_TARGET),
            ]
        )
        gap = abs(ours["eval_loss"] / theirs["eval_loss"] - 1) if ours and theirs else None
        rows.append(
            [
                f"{workload}: final loss off b's",
                f"≤ {LOSS_TARGET:g}",
                gap,
                _verdict(gap, gap is not None and gap <= LOSS_TARGET),
            ]
        )
    ours = _cell(found, "tales", "fulltune")
    share = gpt2_operations(ours["tokens_per_second"]) / peak if ours else None
    rows.append(
        [
            "tales: fraction of the matrix peak",
            f"≥ {MATRIX_TARGET:g}",
            share,
            _verdict(share, share and share >= MATRIX_TARGET),
        ]
    )
    return rows


def _cell(found: Found, workload: str, arm: str) -> Found | None:
    cell = found.get(workload, {}).get(f"{arm}, dropout on") or found.get(workload, {}).get(f"{arm}, dropout off")
    return cell if cell and "error" not in cell else None


def _verdict(got: float | None, reached: Any) -> str:
    return "not measured" if got is None else "reached" if reached else "missed"


def plot(workload: str, cells: Found) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for name, cell in cells.items():
        if "curve" in cell:
            axes.plot(*zip(*cell["curve"], strict=True), label=name, linewidth=1)
    axes.set(xlabel="step", ylabel="training loss", title=f"{workload}: the same training by each arm")
    axes.legend(fontsize=7)
    figure.savefig(processes.RESULTS / f"speed-{workload}.png", dpi=150, bbox_inches="tight")


def report(found: Found, peak: float) -> None:
    columns = ("arm", "useful tokens/s", "peak GiB", "final eval loss", "note")
    for workload, cells in found.items():
        rows = [
            [name, "", "", "", cell["error"]]
            if "error" in cell
            else [name, cell["tokens_per_second"], cell["peak_bytes"] / 2**30, cell["eval_loss"], ""]
            for name, cell in cells.items()
        ]
        processes.table(workload, columns, rows)
        plot(workload, cells)
    targets = [[name, wanted, "" if got is None else got, verdict] for name, wanted, got, verdict in judge(found, peak)]
    processes.table(f"targets (matrix peak {peak / 1e9:.0f} GFLOP/s)", ("target", "wanted", "got", ""), targets)


def main() -> None:
    from tools import arms, workloads

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", nargs="+", choices=workloads.NAMES, default=list(workloads.NAMES))
    parser.add_argument("--arms", nargs="+", choices=list(arms.ARMS), default=list(arms.ARMS))
    parser.add_argument("--dropout", nargs="+", choices=["on", "off"], default=["on", "off"])
    parser.add_argument("--steps", type=int, help=f"optimizer steps (default: {STEPS})")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--data", default="../shared/data", help="tales, contracts and geoquery; generated where absent"
    )
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure(options.one)))
        return
    if not Path(options.data).is_dir():
        options.data = tempfile.mkdtemp(prefix="fulltune-bench-")
    peak = matrix_peak()
    found = run(options)
    path = processes.write(
        "speed", {"matrix_peak": peak, "workloads": found, "targets": judge(found, peak), "arms": arms.ARMS}
    )
    report(found, peak)
    print(path)


if __name__ == "__main__":
    main()
