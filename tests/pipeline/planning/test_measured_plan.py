"""The measured plan: memory by part and time by stage, an unchanged base, and no run that cannot fit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matrix import often

from fulltune.config import load_config
from fulltune.errors import ConfigError
from fulltune.experiments.lr_find import weights_sha256
from fulltune.pipeline import run
from fulltune.pipeline.job import Job, prepare_job
from fulltune.pipeline.planning import measured_plan
from fulltune.runtime import machine
from fulltune.tasks.base import Example

PARTS = ["program and data", "weights", "gradients", "optimizer state", "activations"]


def config(place: Path, kind: str, **sections: Any) -> dict[str, Any]:
    rows = [{"text": f"the {'court' if i % 2 else 'film'} is {i}", "label": "ab"[i % 2]} for i in range(40)]
    for name, part in (("train", rows[:30]), ("eval", rows[30:])):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    fakes.save(kind, place / kind)
    return {
        "model": str(place / kind),
        "task": "classification" if kind == "bert" else "causal-lm",
        "data": {"train": str(place / "train.jsonl"), "eval": str(place / "eval.jsonl"), "allow_leaks": True},
        "train": {"batch_size": 4, "max_steps": 6},
        "evaluation": {"continuations": 0},
        "guards": {"forgetting": {"limit": 8}},
        "speed": {"kernels": "off"},
        **sections,
    }


def job(raw: dict[str, Any], place: Path) -> Job:
    return replace(prepare_job(load_config(raw), place), curve=[])


@pytest.mark.parametrize("kind", often(["bert", "gpt2"], lambda kind: kind == "bert"))
def test_a_plan_reports_memory_by_part_and_time_by_stage(kind: str, tmp_path: Path) -> None:
    plan = run.plan(config(tmp_path, kind), out=tmp_path / "runs")
    assert [name for name in plan.memory if name in PARTS] == PARTS
    assert ("base model" in plan.memory) == (kind == "bert")
    assert plan.memory["weights"] == plan.memory["gradients"]
    assert plan.peak_bytes == sum(plan.memory.values())
    assert next(iter(plan.seconds)) == "load and audit"
    assert {*plan.baselines, "train", "evaluate", "retention"} <= plan.seconds.keys()
    assert plan.total_seconds == pytest.approx(sum(plan.seconds.values()))
    assert plan.cores is not None
    assert plan.core_seconds == pytest.approx(plan.cores * plan.total_seconds)
    assert not (tmp_path / "runs").exists()


def test_the_base_and_the_random_state_are_unchanged(tmp_path: Path) -> None:
    known = job(config(tmp_path, "gpt2"), tmp_path)
    before, draws = weights_sha256(known.base.model), torch.get_rng_state()
    measured_plan.full_plan(known, prepared=0.0)
    assert weights_sha256(known.base.model) == before
    assert torch.equal(torch.get_rng_state(), draws)


def test_a_run_that_clearly_fits_measures_nothing(tmp_path: Path) -> None:
    plan = measured_plan.checked_plan(job(config(tmp_path, "bert"), tmp_path))
    assert plan.memory == {}


def limited(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(machine, "memory_bytes", lambda: limit)


def test_a_run_that_cannot_fit_is_refused_before_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = config(tmp_path, "gpt2")
    known = job(raw, tmp_path)
    monkeypatch.setattr(machine, "rss_bytes", lambda: sum(one.nbytes for one in known.base.model.parameters()))
    whole = measured_plan.full_plan(known, prepared=0.0).memory
    limited(monkeypatch, whole["weights"] + whole["gradients"] + whole["optimizer state"] + whole["activations"] // 2)
    with pytest.raises(ConfigError, match="training needs") as raised:
        run.run(raw, out=tmp_path / "runs")
    text = str(raised.value)
    assert "train.batch_size" in text
    assert "train.gradient_checkpointing: true" in text
    assert "train.optimizer: adamw-8bit" in text
    assert "sharding over 2 processes" in text
    assert not list((tmp_path / "runs").glob("*/steps.jsonl"))


def test_the_copy_for_checkpoints_refuses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = job(config(tmp_path, "gpt2", checkpoints={"every": 3}), tmp_path)
    monkeypatch.setattr(machine, "rss_bytes", lambda: sum(one.nbytes for one in known.base.model.parameters()))
    whole = measured_plan.full_plan(known, prepared=0.0).memory
    limited(monkeypatch, sum(whole.values()) - 1)
    less = measured_plan.checked_plan(known).memory
    assert set(whole) - set(less) == {"checkpoint being written"}


@given(
    a_step=st.floats(0.01, 2),
    a_token=st.floats(1e-5, 1e-2),
    tokens=st.lists(st.integers(1, 5000), min_size=2, max_size=6),
)
def test_a_line_through_exact_points_is_found(a_step: float, a_token: float, tokens: list[int]) -> None:
    found = measured_plan.line([(count, a_step + a_token * count) for count in tokens])
    if len(set(tokens)) > 1:
        assert found == pytest.approx((a_step, a_token), rel=1e-4)
    else:
        assert found[0] == 0
        assert found[1] * tokens[0] == pytest.approx(a_step + a_token * tokens[0])


def test_seconds_are_never_negative() -> None:
    assert measured_plan.line([(100, 2.0), (200, 1.0)]) == (0.0, 0.01)
    assert measured_plan.line([(100, 1.0), (200, 4.0)])[0] == 0.0


def test_a_batch_has_rows_of_like_length() -> None:
    rows = [Example(str(length), "x" * length, "") for length in (9, 1, 5, 3, 7, 2, 8, 4, 6, 10)]
    assert [len(row.input) for row in measured_plan.neighbors(rows, 3, 0.0)] == [1, 2, 3]
    assert [len(row.input) for row in measured_plan.neighbors(rows, 4, 0.5)] == [4, 5, 6, 7]
    assert [len(row.input) for row in measured_plan.neighbors(rows, 3, 1.0)] == [8, 9, 10]
    assert len(measured_plan.neighbors(rows, 99, 0.5)) == 10


@given(once=st.floats(0, 5), a_row=st.floats(0.01, 2), count=st.integers(8, 500))
def test_fixed_costs_are_separated_from_costs_per_row(once: float, a_row: float, count: int) -> None:
    found = measured_plan.extrapolated((2, once + 2 * a_row), (8, once + 8 * a_row), count)
    assert found == pytest.approx(once + a_row * count)


class Clock:
    """A clock that a predictor advances: ``once`` seconds for each call, and a number of seconds for each row."""

    def __init__(self, once: float, a_row: float) -> None:
        self.now, self.once, self.a_row = 0.0, once, a_row
        self.calls = list[int]()

    def predict(self, rows: Sequence[Example]) -> Iterator[Any]:
        self.calls.append(len(rows))
        self.now += self.once + self.a_row * len(rows)
        return iter(())


@pytest.mark.parametrize(
    ("once", "a_row", "calls"),
    [
        (0.1, 0.01, [2, 2, 8, 8, 8]),
        (0.0, 0.3, [2, 2, 4]),
        (0.0, 2.0, [2, 4]),
        (7.0, 0.01, [2, 4, 24]),
        (0.0, 6.0, [2]),
    ],
    ids=["fast", "slow", "very slow", "slow once", "slowest"],
)
def test_slow_answers_are_measured_on_fewer_rows(
    once: float, a_row: float, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(once, a_row)
    monkeypatch.setattr(measured_plan.time, "perf_counter", lambda: clock.now)
    rows = [Example(str(number), "x" * number, "") for number in range(40)]
    assert measured_plan.answering_seconds(clock.predict, rows) == pytest.approx(once + 40 * a_row)
    assert clock.calls == calls


def test_a_plan_without_time_for_more_steps_uses_those_of_the_footprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured_plan, "SECONDS", 0.0)
    monkeypatch.setattr(measured_plan, "timing", lambda *args: pytest.fail("more steps are timed"))
    plan = measured_plan.full_plan(job(config(tmp_path, "gpt2"), tmp_path), prepared=0.0)
    assert plan.seconds["train"] > 0
    assert plan.seconds["evaluate"] == plan.seconds["zero_shot"] > 0


def test_without_growth_over_rows_the_larger_sample_is_extrapolated() -> None:
    assert measured_plan.extrapolated((2, 5.0), (8, 4.0), 80) == pytest.approx(40.0)
    assert measured_plan.extrapolated((2, 1.0), (2, 1.5), 2) == pytest.approx(1.5)
