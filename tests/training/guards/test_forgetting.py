"""The forgetting guard in a plain Trainer: it stops when the budget is exceeded, and remembers the base."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
from transformers import Trainer, TrainerControl, TrainerState
from transformers.trainer_utils import get_last_checkpoint

from fulltune.records.run import Retention, Score
from fulltune.training.batches.collate import Collator
from fulltune.training.guards.forgetting import ForgettingGuard


def walk(values: list[float], budget: float = 0.05) -> tuple[ForgettingGuard, int]:
    """Train while the probe gives these values, the first before step 1; return the guard and the last step."""
    given: Iterator[float] = iter(values)
    guard = ForgettingGuard(lambda: {"english": next(given)}, budget)
    state = TrainerState(max_steps=len(values) - 1)
    control = TrainerControl()
    args = fakes.arguments(Path("unused"))
    guard.on_train_begin(args, state, control)
    for step in range(1, len(values)):
        state.global_step = step
        if guard.on_evaluate(args, state, control).should_training_stop:
            return guard, step
    return guard, len(values) - 1


def test_the_guard_stops_above_the_budget_with_one_message() -> None:
    guard, step = walk([2.0, 2.05, 2.08, 2.2, 9.0])
    assert step == 3
    assert [losses["english"] for _, losses in guard.history] == pytest.approx([0.025, 0.04, 0.1])
    [event] = guard.events
    assert (event.guard, event.step, event.verdict) == ("forgetting", 3, "stop")
    assert event.message == "English is 10.0% worse than the base (budget 0.05); training stopped at step 3 of 4."


def test_a_model_that_retains_its_abilities_is_left_alone() -> None:
    guard, step = walk([2.0, 1.9, 2.0, 2.09])
    assert (step, guard.events) == (3, [])


def test_a_score_of_nan_is_a_loss() -> None:
    assert walk([2.0, math.nan, 2.0])[1] == 1
    assert walk([0.0, 1.0, 2.0])[1] == 1


def test_a_loss_at_the_last_step_is_reported_without_a_stop() -> None:
    guard, _ = walk([2.0, 2.0, 3.0])
    assert [(event.step, event.verdict) for event in guard.events] == [(2, "continue")]


def test_a_record_is_judged_by_its_own_verdict() -> None:
    score = Score(value=1.0, low=1.0, high=1.0, n=4)
    found = Retention(
        metric="m", direction="lower", base=score, tuned=score, change=0.4, low=-0.1, high=0.6, budget=0.05,
        verdict="cannot tell",
    )  # fmt: skip
    records = [found, found, found.model_copy(update={"verdict": "lost", "low": 0.1})]
    given = iter(records)
    guard = ForgettingGuard(lambda: {"english": next(given)})
    state = TrainerState(max_steps=9)
    control = TrainerControl()
    args = fakes.arguments(Path("unused"))
    guard.on_train_begin(args, state, control)
    for step, stops in ((1, False), (2, True)):
        state.global_step = step
        assert guard.on_evaluate(args, state, control).should_training_stop is stops


def trainer(folder: Path, model: Any, guard: ForgettingGuard, **options: Any) -> Trainer:
    rows = [{"input_ids": [3 + index % 5] * 8, "labels": [3 + index % 5] * 8} for index in range(16)]
    settings = {"max_steps": 8, "learning_rate": 0.05, "eval_strategy": "steps", "eval_steps": 2, "seed": 1} | options
    return Trainer(
        model=model,
        args=fakes.arguments(folder, **settings),
        data_collator=Collator(0),
        train_dataset=rows,
        eval_dataset=rows[:4],
        callbacks=[guard],
    )


def probe_of(model: Any) -> Any:
    ids = torch.arange(40, 60)[None]

    @torch.no_grad()
    def score() -> dict[str, float]:
        return {"other bytes": float(model(input_ids=ids, labels=ids).loss)}

    return score


def test_a_plain_trainer_that_forgets_is_stopped(tmp_path: Path) -> None:
    model, _ = fakes.gpt2()
    guard = ForgettingGuard(probe_of(model))
    training = trainer(tmp_path, model, guard)
    training.train()
    assert 0 < training.state.global_step < 8
    assert guard.events[0].step == training.state.global_step
    assert guard.seconds > 0


def test_a_resumed_run_compares_with_the_untouched_base(tmp_path: Path) -> None:
    model, _ = fakes.gpt2()
    whole = ForgettingGuard(probe_of(model), budget=1e9)
    trainer(tmp_path, model, whole, save_strategy="steps", save_steps=4, max_steps=4).train()
    again, _ = fakes.gpt2()
    resumed = ForgettingGuard(probe_of(again), budget=1e9)
    trainer(tmp_path, again, resumed, max_steps=8).train(resume_from_checkpoint=get_last_checkpoint(str(tmp_path)))
    assert resumed.base == whole.base
    assert [step for step, _ in resumed.history] == [2, 4, 6, 8]
    assert resumed.history[:2] == whole.history
