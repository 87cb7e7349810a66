"""Size, time, score and verdict of a model in each format that it can be exported to.

    python benchmarks/export.py RUN [RUN …] [--out runs] [--formats onnx,onnx-int8] [--margin 0.01]

RUN is a finished run, such as that of ``fulltune demo contracts``, or a version of the registry. Each export is
compared with its original on the run's evaluation rows, as ``fulltune export`` does it; one that is worse is listed.
Times are medians per row, one row at a time; processor time counts all threads. Formats that a model has no exporter
to are left out. Writes results/export.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools import processes

import fulltune
from fulltune.errors import ModelError
from fulltune.pipeline.export.formats import FORMS
from fulltune.records.export import Export

_HEADER = ("model", "format", "MB", "score", "difference", "equal answers", "ms", "CPU ms", "verdict")


def main(runs: Sequence[str], out: str, formats: str, margin: float) -> None:
    found = list[dict[str, Any]]()
    for run in runs:
        for form in formats.split(","):
            found += measured(run, out, form, margin)
    print_table(found)
    processes.write("export", {"margin": margin, "exports": found})


def measured(run: str, out: str, form: str, margin: float) -> list[dict[str, Any]]:
    """Return the record of one export, without its files; empty if the model has no exporter to the format."""
    started = time.process_time()
    with tempfile.TemporaryDirectory() as place:
        try:
            record = fulltune.export(
                run, Path(place) / form, format=form, margin=margin, force="a measurement", out=out
            )
        except ModelError as error:
            print(error)
            return []
    seconds = round(time.process_time() - started, 1)
    return [{**json.loads(record.to_json()), "files": {}, "core_seconds": seconds}]


def print_table(found: Sequence[dict[str, Any]]) -> None:
    """Print one row per original, and one per export."""
    print(" | ".join(_HEADER))
    for model in dict.fromkeys(one["parent"]["name"] for one in found):
        exports = [Export.model_validate({k: v for k, v in one.items() if k != "core_seconds"}) for one in found]
        own = [one for one in exports if one.parent.name == model and one.comparison is not None]
        for number, one in enumerate(own):
            pair, latency = one.comparison, one.latency
            assert pair is not None
            assert latency is not None
            if not number:
                first = [f"{one.parent.bytes / 1e6:.1f}", f"{pair.a.value:.4f}", "", ""]
                print(" | ".join([model, "original", *first, *times(latency.parent_ms, latency.parent_cpu_ms), ""]))
            low, high = pair.difference.interval
            values = [f"{one.bytes / 1e6:.1f}", f"{pair.b.value:.4f}"]
            values += [f"{pair.difference.value:+.4f} [{low:+.4f}, {high:+.4f}]", f"{one.equal_answers}/{one.rows}"]
            spent = times(latency.artifact_ms, latency.artifact_cpu_ms)
            print(" | ".join([model, one.format, *values, *spent, one.verdict]))


def times(elapsed: float, busy: float) -> list[str]:
    return [f"{elapsed:.1f}", f"{busy:.1f}"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--out", default="runs")
    parser.add_argument("--formats", default=",".join(FORMS))
    parser.add_argument("--margin", type=float, default=0.01)
    main(**vars(parser.parse_args()))
