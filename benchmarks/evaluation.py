"""Seconds of the untrained baselines, with and without shared prefixes, alternating, and whether their answers agree.

    python benchmarks/evaluation.py CONFIG [--rows 32] [--pairs 3]

``CONFIG`` is a job as for ``fulltune run``. Prints one JSON object: for zero-shot and few-shot the median seconds each
way, the median ratio of the pairs, and the largest relative difference of any number in the predictions.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from fulltune.config import load_config
from fulltune.evaluation.baselines.catalog import gather, predictor
from fulltune.models import likelihoods
from fulltune.models.prefix_cache import PrefixCache
from fulltune.pipeline import job, model_loading
from fulltune.tasks import dataset


@contextmanager
def nothing_shared() -> Iterator[None]:
    """Read every text completely and separately, and compute all logits."""
    with (
        mock.patch.object(PrefixCache, "length", return_value=0),
        mock.patch.object(likelihoods, "_groups", lambda texts, most: ([text] for text in texts)),
        mock.patch.object(likelihoods, "takes_loss_at_head", return_value=False),
    ):
        yield


def numbers(predictions: list[Any]) -> list[float]:
    """Return all numbers of predictions, including those in mappings."""
    values = [value for prediction in predictions for value in prediction.values.values()]
    flat = [part for value in values for part in (value.values() if isinstance(value, dict) else [value])]
    return [float(value) for value in flat if isinstance(value, int | float)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=3)
    asked = parser.parse_args()
    config = load_config(asked.config)
    task, _ = job.checked_task_and_method(config)
    task, data = dataset.prepare(config, task)
    base = model_loading.load_model(config, task, "runs")
    given = gather(config, task, data, base, len(data.train.examples))
    rows, found = data.eval.examples[: asked.rows], dict[str, Any]()
    for name in ("zero_shot", "few_shot"):

        def answer(name: str = name) -> tuple[float, list[Any]]:
            started = time.perf_counter()
            predictions = list(predictor(name, given)(rows))
            return time.perf_counter() - started, predictions

        seconds: dict[str, list[float]] = {"shared": [], "plain": []}
        for _ in range(asked.pairs):
            took, shared = answer()
            seconds["shared"].append(took)
            with nothing_shared():
                took, plain = answer()
            seconds["plain"].append(took)
        pairs = zip(seconds["plain"], seconds["shared"], strict=True)
        apart = [
            abs(one - other) / max(1.0, abs(other)) for one, other in zip(numbers(shared), numbers(plain), strict=True)
        ]
        found[name] = {
            **{way: statistics.median(values) for way, values in seconds.items()},
            "median_ratio": statistics.median(plain / shared for plain, shared in pairs),
            "same_outputs": [one.output for one in shared] == [one.output for one in plain],
            "largest_relative_difference": max(apart, default=0.0),
        }
    print(json.dumps({"rows": len(rows), "systems": found}, indent=1))


if __name__ == "__main__":
    main()
