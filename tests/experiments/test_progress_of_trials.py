"""Progress of trainings outside a run announces as many steps as are done."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fakes
import pytest

import fulltune
from fulltune.config import load_config
from fulltune.experiments.trials import Bench
from fulltune.pipeline.job import prepare_job
from fulltune.runtime.progress import Bar, Progress


class Recorded(Progress):
    """Record the announced total and the steps done of each stage."""

    def __init__(self) -> None:
        self.stages: dict[str, tuple[int | None, int]] = {}

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "row") -> Iterator[Bar]:
        done = [0]

        class Counter(Bar):
            def advance(self, count: int = 1, note: str = "") -> None:
                done[0] += count

        yield Counter()
        self.stages[name] = (total, done[0])

    def note(self, text: str) -> None:
        return None


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    """Return a config whose rows of unequal length are batched by tokens."""
    for name, rows in (("train", 40), ("valid", 8), ("eval", 8)):
        lines = [
            {"text": "the fox " * (1 + index % 9) + f"{name} {index}", "label": ("no", "yes")[index % 2]}
            for index in range(rows)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    fakes.save("bert", tmp_path / "bert")
    return {
        "model": str(tmp_path / "bert"),
        "task": "classification",
        "data": {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "valid", "eval")},
        "train": {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3, "evaluations": 1},
        "speed": {"batch_tokens": 48, "unpad": "off"},
    }


def test_a_trial_with_batches_of_tokens_announces_the_steps_that_it_takes(job: dict[str, Any], tmp_path: Path) -> None:
    progress = Recorded()
    Bench(tmp_path / "runs", progress).train(load_config(job), "trial")
    total, done = progress.stages["trial"]
    assert total == done
    assert total is not None
    assert total > 2 * 40 / 16


def test_a_rate_search_with_batches_of_tokens_announces_the_steps_that_it_takes(
    job: dict[str, Any], tmp_path: Path
) -> None:
    job["train"]["epochs"] = 1
    progress = Recorded()
    fulltune.find_learning_rate(job, out=tmp_path / "runs", steps=30, confirm_steps=500, progress=progress)
    rates = {name: counts for name, counts in progress.stages.items() if name.startswith("rate ")}
    assert rates
    for total, done in rates.values():
        assert total == done


@pytest.mark.parametrize(("method", "reserved"), [("full", 0), ("prompt-tuning", 10)])
def test_tokens_that_a_method_puts_before_every_row_count_in_its_batches(
    method: str, reserved: int, job: dict[str, Any], tmp_path: Path
) -> None:
    adapter = {"adapter": {"prompt_tokens": reserved}} if reserved else {}
    made = prepare_job(load_config(job | {"method": method} | adapter), tmp_path / "runs")
    plain = prepare_job(load_config(job), tmp_path / "runs")
    counts = made.micro_batches(made.features), plain.micro_batches(plain.features)
    assert None not in counts
    assert (counts[0] > counts[1]) == bool(reserved)
