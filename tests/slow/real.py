"""Helpers of the slow tests: the folder of the real data, and the printing of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from fulltune.records.run import Record

DATA = Path(__file__).parents[3] / "shared" / "data"

real_data = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason="the real data (../shared/data) is not here"),
    # Libraries warn about their own future releases; fulltune's own warnings are in the record.
    pytest.mark.filterwarnings("default"),
]


def show(record: Record) -> None:
    """Print the measurements, which are then in the last lines of the CI log."""
    print(f"\n{record.headline}")
    for system, scores in record.scores.items():
        print(f"  {system}: " + ", ".join(f"{m} {s.value:.4f} [{s.low:.4f}, {s.high:.4f}]" for m, s in scores.items()))
    for name, delta in record.comparison.items():
        print(f"  {name}: {delta.delta:+.4f} [{delta.low:+.4f}, {delta.high:+.4f}] {delta.verdict}")
    cost = record.resources
    print(f"  {cost.train_seconds:.0f} s training, {cost.tokens_per_second:.0f} tokens/s, {cost.stage_seconds}")
