"""Memory of a step: every storage is counted, and a few rows predict many."""

from __future__ import annotations

from itertools import accumulate, product
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matrix import often

from fulltune.config import Config, load_config
from fulltune.pipeline.planning import probe_steps
from fulltune.pipeline.planning.footprint import Footprint
from fulltune.pipeline.planning.live_bytes import LiveBytes
from fulltune.pipeline.planning.probe_steps import Probe, footprint, timing
from fulltune.runtime import plugins
from fulltune.tasks.base import Features


def test_storages_are_counted_once_until_they_are_freed() -> None:
    with LiveBytes() as live:
        one = torch.zeros(1000)
        view = one.view(10, 100)[:5]
        view.add_(1)
        two = one + 1
        del one
        assert live.events == [4000, 4000]
        del view
        assert live.events == [4000, 4000, -4000]
    del two
    assert sum(live.events) == 0


def test_the_backward_pass_is_seen() -> None:
    weight = torch.ones(50, 50, requires_grad=True)
    with LiveBytes() as live:
        (torch.ones(20, 50) @ weight).relu().sum().backward()
        assert sum(live.events) == weight.nbytes, "the gradient alone is left"
    # Input, product and activation; in the backward pass the gradients of both on top of the saved tensors.
    assert max(accumulate(live.events)) >= weight.nbytes + 20 * 50 * 4


def footprint_of(timelines: dict[int, list[int]], rows: int, **changed: Any) -> Footprint:
    usual = {"width": 8, "weights": 100, "gradients": 100, "optimizer": 200, "is_accumulated": False, "seconds": {}}
    return Footprint(rows=rows, timelines=timelines, **(usual | changed))


@given(
    fixed=st.lists(st.integers(-50, 100), min_size=1, max_size=12),
    a_row=st.lists(st.integers(-50, 100), min_size=12, max_size=12),
    rows=st.integers(1, 64),
)
def test_sizes_that_are_linear_in_the_rows_are_predicted_exactly(fixed: list[int], a_row: list[int], rows: int) -> None:
    def timeline(count: int) -> list[int]:
        return [base + count * slope for base, slope in zip(fixed, a_row, strict=False)]

    found = footprint_of({2: timeline(2), 3: timeline(3)}, rows)
    assert found.step_bytes(accumulated=False) == max(accumulate(timeline(rows)))


def test_timelines_that_differ_are_compared_by_their_highest_points() -> None:
    assert footprint_of({2: [30, -10], 3: [20, 20, -5]}, rows=5).step_bytes(accumulated=False) == 60


def test_gradients_of_an_earlier_micro_batch_are_added_unless_measured() -> None:
    assert footprint_of({2: [30]}, rows=2).step_bytes(accumulated=True) == 130
    assert footprint_of({2: [30]}, rows=2, is_accumulated=True).step_bytes(accumulated=True) == 30


def job(**train: Any) -> Config:
    raw = {
        "model": "m",
        "task": "t",
        "data": {"train": "x"},
        "train": {"epochs": 3, "learning_rate": 3e-5} | train,
        "speed": {"kernels": "off", "unpad": "off"},
    }
    return load_config(raw)


def probe(kind: str, folder: Path, lengths: list[int]) -> Probe:
    bundle = fakes.bundle(kind, "classification" if kind == "bert" else "lm")
    labels: Any = [1 if kind == "bert" else [7] * length for length in lengths]
    features = [Features([7] * length, label, f"row {length}") for length, label in zip(lengths, labels, strict=True)]
    method = plugins.load("method", "full")(job())
    method.prepare(bundle)
    return Probe(bundle, method, features, None, folder)


@pytest.mark.parametrize(
    ("kind", "train"),
    often(
        product(["gpt2", "bert", "t5"], [{}, {"accumulation": 2}, {"gradient_checkpointing": True}]),
        lambda case: case in [("t5", {}), ("bert", {"accumulation": 2}), ("gpt2", {"gradient_checkpointing": True})],
    ),
)
def test_a_few_rows_predict_the_memory_of_many(
    kind: str, train: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on, config = probe(kind, tmp_path, [4, 30, 12]), job(batch_size=7, **train)
    estimated = footprint(on, config)
    monkeypatch.setattr(probe_steps, "MORE", 7)
    whole = footprint(on, config)
    assert (list(estimated.timelines), list(whole.timelines)) == ([2, 3], [7])
    accumulated = bool(train.get("accumulation"))
    predicted, measured = (one.step_bytes(accumulated=accumulated) for one in (estimated, whole))
    assert predicted == pytest.approx(measured, rel=0.02)
    assert estimated.width == (60 if kind == "t5" else 30)


def test_state_is_counted_on_the_tensors(tmp_path: Path) -> None:
    on = probe("bert", tmp_path, [4, 8])
    found = footprint(on, job(batch_size=2))
    numbers = sum(one.numel() for one in on.student.model.parameters())
    assert found.weights == found.gradients == 4 * numbers
    # Two moments, and a step counter per tensor.
    assert 8 * numbers <= found.optimizer <= 8 * numbers + 8 * len(list(on.student.model.parameters()))
    assert found.step_bytes(accumulated=False) >= found.gradients


def test_recomputing_needs_less_memory(tmp_path: Path) -> None:
    on = probe("gpt2", tmp_path, [60])
    usual, recomputed = (
        footprint(on, job(batch_size=3, gradient_checkpointing=value)).step_bytes(accumulated=False)
        for value in (False, True)
    )
    assert recomputed < usual


def test_a_pace_has_tokens_and_seconds_of_steps_of_all_lengths(tmp_path: Path) -> None:
    on = probe("gpt2", tmp_path, [length for length in (4, 10, 20, 40) for _ in range(4)])
    timed = timing(on, job(batch_size=2), batch=2)
    found = timed.steps
    assert timed.setup > 0
    assert len(found) == probe_steps.TIMED
    assert all(seconds > 0 for _, seconds in found)
    assert sorted(tokens for tokens, _ in found)[0] < sorted(tokens for tokens, _ in found)[-1]
    assert sum(tokens for tokens, _ in found) <= 2 * (4 + 10 + 20 + 40) + (10 + 20)


def test_an_evaluation_is_timed_on_short_rows_and_long_ones(tmp_path: Path) -> None:
    on = probe("gpt2", tmp_path, [20] * 16)
    curve = [item for length in (4, 40) for item in probe("gpt2", tmp_path, [length] * 100).features]
    config = job(batch_size=2)
    found = timing(on, config, batch=2, curve=curve)
    assert found.evaluation is not None
    tokens, seconds = found.evaluation
    assert tokens == config.evaluation.batch_size * (4 + 40)
    assert seconds > 0
    assert timing(on, config, batch=2).evaluation is None
