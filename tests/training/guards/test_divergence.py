"""The spike detector and the divergence guard, with plain numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainerControl, TrainerState, TrainingArguments

from fulltune.errors import DivergenceError, NonFiniteError
from fulltune.training.guards.divergence import (
    CEILING,
    FLOOR,
    HISTORY,
    LEAST,
    DivergenceGuard,
    SpikeDetector,
    batch_width,
    weight_norms,
    weighted_median,
)

LOSSES = st.floats(0.01, 20.0)
BAD = st.sampled_from([math.nan, math.inf, -math.inf])


def fed(losses: Iterable[float], **options: Any) -> SpikeDetector:
    detector = SpikeDetector(**options)
    for loss in losses:
        detector.see(loss)
    return detector


def steady(count: int = 30) -> list[float]:
    return [2.0 + 0.1 * (index % 3) for index in range(count)]


# ---- The detector ----


@given(st.lists(st.one_of(LOSSES, BAD), max_size=80))
def test_nonfinite_losses_and_spikes_do_not_enter_the_window(losses: list[float]) -> None:
    detector = SpikeDetector(window=20)
    for loss in losses:
        limit, before = detector.limit(), list(detector.losses)
        sight = detector.see(loss)
        is_good = math.isfinite(loss) and loss <= limit
        assert (sight == "good") == is_good
        assert list(detector.losses) == ([*before, loss][-20:] if is_good else before)
        assert all(math.isfinite(kept) for kept in detector.losses)


@given(st.lists(LOSSES, min_size=HISTORY, max_size=60))
def test_the_limit_is_that_of_numpy(losses: list[float]) -> None:
    detector = fed(losses, window=25, threshold=7.0)
    if len(detector.losses) < HISTORY:
        return
    window = np.array(detector.losses)
    spread = np.median(np.abs(window - np.median(window)))
    level = max(np.median(window), detector.start, LEAST)
    ceiling = detector.start + (CEILING - 1) * max(detector.start, LEAST)
    assert detector.limit() == pytest.approx(min(ceiling, np.median(window) + 7 * max(spread, FLOOR * level)))


@given(st.lists(st.one_of(LOSSES, BAD), max_size=40), st.integers(1, 6))
def test_consecutive_spikes_are_a_divergence_whatever_came_before(losses: list[float], patience: int) -> None:
    detector = fed([2.0, *losses], patience=patience)
    detector.see(detector.middle())
    sights = [detector.see(1e9) for _ in range(patience)]
    assert sights == ["spike"] * (patience - 1) + ["diverged"]


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=20))
def test_spikes_that_recover_are_not_a_divergence(runs: list[tuple[int, bool]]) -> None:
    detector = fed(steady(), patience=5)
    for length, is_nan in runs:
        assert all(detector.see(math.nan if is_nan else 1e6) == "spike" for _ in range(length))
        assert detector.see(2.0) == "good"
        assert detector.spikes == 0


@given(st.lists(st.one_of(LOSSES, BAD), max_size=60), st.lists(st.one_of(LOSSES, BAD), min_size=1, max_size=30))
def test_a_restored_detector_continues_identically(before: list[float], after: list[float]) -> None:
    detector, again = fed(before, window=15, patience=3), SpikeDetector(window=15, patience=3)
    again.restore(json.loads(json.dumps(detector.state())))
    assert [again.see(loss) for loss in after] == [detector.see(loss) for loss in after]


@given(st.integers(0, 2**32 - 1), st.floats(0.5, 8.0))
def test_a_curve_that_falls_with_noise_gives_no_alarm(seed: int, level: float) -> None:
    """Losses that decay to a tenth with log-normal noise of a quarter, as with small batches."""
    noise = np.random.default_rng(seed).normal(0, 0.25, 300)
    decay = 0.1 + 0.9 * np.exp(-np.arange(300) / 60)
    detector = SpikeDetector()
    assert "diverged" not in {detector.see(float(loss)) for loss in level * decay * np.exp(noise)}


def grouped_by_length(random: np.random.Generator, cycles: int) -> list[tuple[float, float]]:
    """Return losses and widths of batches that are sorted by length, fifty at a time, as the library groups them.

    Seven of fifty batches are of short texts, whose loss per token is three times that of the others. Training lowers
    both.
    """
    steps = []
    for cycle in range(cycles):
        widths = np.sort(np.exp([*random.normal(6, 0.3, 43), *random.normal(2, 0.3, 7)]))[::-1]
        level = 1.0 - 0.3 * cycle / cycles
        losses = level * (1.2 + 12.0 / np.sqrt(widths)) + random.normal(0, 0.03, 50)
        steps += list(zip(losses.tolist(), widths.tolist(), strict=True))
    return steps


@pytest.mark.parametrize("seed", range(5))
def test_short_batches_in_a_row_are_no_divergence(seed: int) -> None:
    detector = SpikeDetector()
    detector.anchor(2.4)
    sights = [detector.see(loss, width) for loss, width in grouped_by_length(np.random.default_rng(seed), 6)]
    assert "diverged" not in sights
    assert sights.count("spike") < 3
    unaware = SpikeDetector()
    unaware.anchor(2.4)
    assert "diverged" in [unaware.see(loss) for loss, _ in grouped_by_length(np.random.default_rng(seed), 6)]


@pytest.mark.parametrize("seed", range(5))
def test_a_divergence_of_batches_grouped_by_length_is_found(seed: int) -> None:
    detector, steps = SpikeDetector(), grouped_by_length(np.random.default_rng(seed), 4)
    detector.anchor(2.4)
    for loss, width in steps[:160]:
        detector.see(loss, width)
    sights = [detector.see(3 * loss + 2, width) for loss, width in steps[160:175]]
    assert "diverged" in sights


def test_the_middle_is_that_of_tokens() -> None:
    detector = SpikeDetector()
    for loss, width in ((1.0, 400.0), (3.0, 4.0), (3.0, 4.0), (1.2, 300.0)):
        detector.see(loss, width)
    assert detector.middle() == 1.0
    assert detector.middle(4.0) == 3.0
    assert weighted_median([3.0, 1.0, 2.0], [0.0, 0.0, 0.0]) == 2.0


def test_the_width_is_that_of_the_labels_or_of_the_inputs() -> None:
    ids = torch.zeros(4, 30, dtype=torch.long)
    assert batch_width({"input_ids": ids, "labels": torch.zeros(4, 7, dtype=torch.long)}) == 7
    assert batch_width({"input_ids": ids, "labels": torch.zeros(4, 7)}) == 30
    assert batch_width({"input_ids": ids, "labels": torch.zeros(4)}) == 30
    assert batch_width({"pixels": ids}) == 0


def test_without_a_history_only_the_ceiling_counts() -> None:
    detector = fed([2.0])
    assert detector.limit() == CEILING * 2.0
    assert fed([2.0] * (HISTORY - 1)).limit() == CEILING * 2.0
    assert fed([2.0] * HISTORY).limit() == pytest.approx(2.0 + 10 * FLOOR * 2.0)


def test_a_slow_climb_reaches_the_ceiling() -> None:
    """Each loss is only a little above the window, which would follow indefinitely."""
    detector = fed([2.0] * 50)
    sights = [detector.see(2.0 * 1.02**step) for step in range(200)]
    assert "diverged" in sights
    assert max(detector.losses) <= CEILING * 2.0


def test_losses_near_0_may_rise_by_many_times_themselves() -> None:
    detector = fed([0.001] * 50)
    assert {detector.see(0.2) for _ in range(20)} == {"good"}


def test_the_first_losses_of_a_divergence_do_not_become_the_norm() -> None:
    detector = SpikeDetector()
    assert [detector.see(loss) for loss in (2.9, 200.0, 900.0, 700.0, 800.0, 750.0)][-1] == "diverged"
    assert list(detector.losses) == [2.9]


def test_the_start_is_the_evaluation_of_the_base_or_the_first_loss_where_that_is_higher() -> None:
    for first, start in ((2.0, 3.0), (5.0, 5.0)):
        detector = SpikeDetector()
        for loss in (3.0, math.nan, 2.0):
            detector.anchor(loss)
        assert detector.start == 3.0
        detector.see(first)
        detector.see(6.0)
        assert detector.start == start


def test_losses_that_are_high_from_the_first_step_on_are_a_divergence() -> None:
    """None is four times the start; half of the window is one and a half times it."""
    bad = [1.0, *[1.8, 1.6, 2.1, 1.7, 1.9] * 3]
    detector = SpikeDetector()
    detector.anchor(1.0)
    sights = [detector.see(loss) for loss in bad]
    assert sights[: HISTORY - 1] == ["good"] * (HISTORY - 1)
    assert sights[HISTORY - 1] == "diverged"
    unanchored = SpikeDetector()
    assert {unanchored.see(loss) for loss in bad} == {"good"}


@given(st.lists(st.floats(0.0, 1.5), max_size=60))
def test_losses_up_to_half_above_the_base_are_not_a_divergence(losses: list[float]) -> None:
    detector = SpikeDetector()
    detector.anchor(1.0)
    assert "diverged" not in {detector.see(loss) for loss in [*losses[:9], *[1.0] * 3]}


def test_losses_below_0_have_a_limit_above_them() -> None:
    detector = fed([-3.0] * 20)
    assert -3.0 < detector.limit() < 0


# ---- The guard ----


class Driver:
    """Drive a guard as a plain trainer would, with losses only."""

    def __init__(self, guard: DivergenceGuard, folder: Path, rows: Any = None) -> None:
        self.guard, self.model = guard, torch.nn.Linear(2, 1)
        if rows is not None:
            guard.attach(rows)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1.0)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1 / (1 + step))
        self.args = TrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none")
        self.state, self.control = TrainerState(max_steps=100, stateful_callbacks=[guard]), TrainerControl()

    @property
    def around(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "lr_scheduler": self.scheduler}

    def begin(self) -> None:
        self.guard.on_train_begin(self.args, self.state, self.control, **self.around)

    def step(self, *losses: float) -> bool:
        """Run one step with one micro-batch per loss; return whether training is to stop."""
        for value in self.model.parameters():
            value.grad = torch.ones_like(value)
        for loss in losses:
            self.guard.add(loss)
        self.guard.on_pre_optimizer_step(self.args, self.state, self.control, **self.around)
        self.optimizer.step()
        self.scheduler.step()
        self.state.global_step += 1
        self.guard.on_step_end(self.args, self.state, self.control, **self.around)
        return self.control.should_training_stop


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    made = Driver(DivergenceGuard(patience=2), tmp_path)
    made.begin()
    return made


def test_the_loss_of_a_step_is_the_sum_of_its_micro_batches(driver: Driver) -> None:
    assert not driver.step(1.0, 0.5, 0.5)
    assert list(driver.guard.detector.losses) == [2.0]


def test_the_step_that_is_detected_is_not_taken(driver: Driver) -> None:
    for _ in range(3):
        assert not driver.step(2.0)
    assert not driver.step(50.0)
    before = driver.model.weight.clone()
    assert driver.step(60.0)
    assert torch.equal(driver.model.weight, before)
    (event,) = driver.guard.events
    assert event.verdict == "stop"
    assert event.message == (
        "The loss stayed above 8 for 2 steps and was 60 at step 5, where 2 was usual; "
        "training stopped with the weights before it."
    )


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_at_once(driver: Driver, loss: float) -> None:
    driver.step(2.0)
    before = driver.model.weight.clone()
    assert driver.step(loss)
    assert torch.equal(driver.model.weight, before)
    assert f"The loss became {loss} at step 2" in driver.guard.events[0].message


def test_weights_that_are_not_finite_stop(driver: Driver) -> None:
    driver.optimizer.param_groups[0]["lr"] = 3e38
    assert driver.step(2.0)
    assert driver.guard.events[0].message == "The weights are not finite after step 1."


def test_a_loss_scaler_may_skip_what_is_not_finite(driver: Driver) -> None:
    driver.optimizer.scaler = object()  # type: ignore[attr-defined]
    for _ in range(HISTORY):
        driver.step(2.0)
    assert not driver.step(math.nan)
    assert not driver.step(2.0)
    assert driver.guard.events == []


def test_training_that_made_the_model_worse_is_reported(driver: Driver) -> None:
    driver.guard.detector.anchor(1.0)
    assert not driver.step(1.0)
    assert driver.guard.is_calm
    while not driver.step(1.9):
        assert not driver.guard.is_calm
    assert driver.guard.events[0].message == (
        "The loss is worse than before training: most losses lie above 1.5, where 1 was the start, and it was 1.9 at "
        "step 10; training stopped with the weights before it."
    )


def test_a_trainer_that_rolls_back_gets_the_error(tmp_path: Path) -> None:
    driver = Driver(DivergenceGuard(patience=2), tmp_path, rows=lambda: [f"row:{driver.state.global_step + 1}"])
    driver.begin()
    driver.step(2.0)
    driver.step(50.0)
    with pytest.raises(DivergenceError, match="rows row:2") as raised:
        driver.step(60.0)
    assert (raised.value.step, raised.value.loss, raised.value.limit) == (3, 60.0, 8.0)
    assert raised.value.row_ids == ("row:2",)
    assert raised.value.exit_code == 3


def test_the_rate_is_cut_when_training_returns(driver: Driver) -> None:
    guard = driver.guard
    guard.roll_back(NonFiniteError(7, "loss", math.nan, ["a"]), 0)
    driver.begin()
    assert driver.optimizer.param_groups[0]["lr"] == pytest.approx(0.3)
    driver.step(2.0)
    assert driver.optimizer.param_groups[0]["lr"] == pytest.approx(0.15)
    assert driver.scheduler.get_last_lr() == [pytest.approx(0.15)]


def test_the_state_is_plain_and_complete(driver: Driver) -> None:
    guard = driver.guard
    driver.step(2.0)
    guard.roll_back(NonFiniteError(7, "loss", math.nan, ["a"]), 0)
    saved = json.loads(json.dumps(guard.state()))
    again = DivergenceGuard(**saved["args"])
    assert (again.patience, again.rate_factor) == (2, 0.3)
    driver.guard, driver.state.global_step = again, 5
    driver.state.stateful_callbacks = {"DivergenceGuard": saved}  # type: ignore[assignment]
    before = driver.optimizer.param_groups[0]["lr"]
    driver.begin()
    assert (again.roll_backs, again.rate, list(again.detector.losses)) == (1, 0.3, [2.0])
    assert driver.optimizer.param_groups[0]["lr"] == before


def test_a_checkpoint_without_the_guard_can_be_resumed(driver: Driver) -> None:
    driver.state.global_step, driver.state.stateful_callbacks = 5, {}  # type: ignore[assignment]
    driver.begin()
    assert "DivergenceGuard" in driver.state.stateful_callbacks  # type: ignore[operator]
    assert driver.guard.roll_backs == 0


def test_the_evaluation_of_the_base_counts_as_a_starting_loss(driver: Driver) -> None:
    around = driver.around
    driver.guard.on_evaluate(driver.args, driver.state, driver.control, metrics={"eval_loss": 4.0}, **around)
    driver.step(1.0)
    driver.guard.on_evaluate(driver.args, driver.state, driver.control, metrics={"eval_loss": 9.0}, **around)
    assert driver.guard.detector.start == 4.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_norms_show_a_weight_that_is_not_finite(bad: float) -> None:
    model = torch.nn.Linear(3, 2)
    assert weight_norms(model).shape == (2,)
    assert weight_norms(model).isfinite().all()
    torch.nn.init.constant_(model.bias, bad)
    assert not weight_norms(model).isfinite().all()
