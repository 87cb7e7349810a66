"""The overfitting guard, with plain numbers and in real trainers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TrainerControl, TrainerState, TrainingArguments

import fulltune
from fulltune.errors import ConfigError, StoreError
from fulltune.training.guards.overfitting import BestState, OverfittingGuard


class Driver:
    """Drive a guard with plain numbers: one weight whose value is the step."""

    def __init__(self, guard: OverfittingGuard, folder: Path, max_steps: int = 100) -> None:
        self.guard, self.model = guard, torch.nn.Linear(1, 1, bias=False)
        self.args = TrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none")
        self.state, self.control = TrainerState(max_steps=max_steps), TrainerControl()

    @property
    def weight(self) -> float:
        return float(self.model.weight.detach())

    def begin(self, step: int = 0, saved: dict[str, Any] | None = None) -> None:
        self.state.global_step = step
        self.state.stateful_callbacks = {} if saved is None else {"OverfittingGuard": saved}
        self.guard.on_train_begin(self.args, self.state, self.control)

    def see(self, step: int, value: float, name: str = "eval_loss") -> bool:
        """Evaluate once; return whether training is to stop."""
        torch.nn.init.constant_(self.model.weight, step)
        self.state.global_step = step
        self.guard.on_evaluate(self.args, self.state, self.control, metrics={name: value}, model=self.model)
        return self.control.should_training_stop

    def end(self) -> None:
        self.guard.on_train_end(self.args, self.state, self.control, model=self.model)


def drive(guard: OverfittingGuard, folder: Path, values: Sequence[float], name: str = "eval_loss") -> Driver:
    """Evaluate at steps 0, 10, 20, …, until the guard stops or the values end."""
    driver = Driver(guard, folder, max_steps=10 * len(values))
    driver.begin()
    for index, value in enumerate(values):
        if driver.see(10 * index, value, name):
            break
    driver.end()
    return driver


def test_the_best_weights_are_restored_and_the_stop_is_reported(tmp_path: Path) -> None:
    guard = OverfittingGuard("loss", patience=2)
    driver = drive(guard, tmp_path, [3.0, 2.0, 1.5, 1.6, 1.7, 0.1])
    assert driver.weight == 20
    stop, keep = guard.events
    assert (stop.verdict, stop.step) == ("stop", 40)
    assert stop.message == (
        "The validation loss did not fall below 1.5 (step 20) in 2 evaluations; training stopped at step 40 of 60."
    )
    assert (keep.verdict, keep.step) == ("continue", 20)
    assert (
        keep.message == "The weights of step 20 are kept: validation loss 1.5, against 3 at step 0 and 1.7 at step 40."
    )
    assert list(tmp_path.iterdir()) == []


def test_step_0_is_kept_when_nothing_beats_it(tmp_path: Path) -> None:
    guard = OverfittingGuard("accuracy", patience=0)
    driver = Driver(guard, tmp_path)
    driver.begin()
    for step, value in ((0, 0.5), (10, 0.4), (20, 0.5), (30, math.nan)):
        assert not driver.see(step, value, "eval_accuracy")
    driver.end()
    assert (driver.weight, guard.best_step) == (0, 0)
    (keep,) = guard.events
    assert keep.message == (
        "Nothing beat step 0, which is kept: its validation accuracy is 0.5, the best of 2 later ones 0.5."
    )


def test_the_last_step_may_be_the_best(tmp_path: Path) -> None:
    guard = OverfittingGuard()
    assert drive(guard, tmp_path, [3.0, 2.0, 1.0]).weight == 20
    assert [event.message for event in guard.events] == [
        "Nothing was overfitted: the last step, 20, has the best validation loss, 1, against 3 at step 0."
    ]


def test_a_change_smaller_than_min_delta_does_not_count(tmp_path: Path) -> None:
    guard = OverfittingGuard("loss", patience=0, min_delta=0.1)
    assert drive(guard, tmp_path, [3.0, 2.95, 2.89, 2.85]).weight == 20


@pytest.mark.parametrize(
    ("name", "given", "asked", "higher"),
    [
        ("loss", None, None, False),
        ("eval_loss", None, True, False),
        ("accuracy", None, None, True),
        ("wer", None, False, False),
        ("wer", False, None, False),
    ],
)
def test_the_direction_of_a_metric(
    name: str, given: bool | None, asked: bool | None, higher: bool, tmp_path: Path
) -> None:
    driver = Driver(OverfittingGuard(name, higher_is_better=given), tmp_path)
    driver.args.greater_is_better = asked
    driver.begin()
    assert driver.guard.higher_is_better is higher


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(0, 9) | st.just(math.nan), min_size=1, max_size=12),
    patience=st.integers(0, 4),
    higher=st.booleans(),
)
def test_the_first_best_value_before_the_stop_is_kept(
    values: list[float], patience: int, higher: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    guard = OverfittingGuard("score", patience=patience, higher_is_better=higher)
    driver = drive(guard, tmp_path_factory.mktemp("run"), values, "eval_score")
    best, last = None, 0
    for last, value in enumerate(values):
        if not math.isnan(value) and (best is None or (value > values[best] if higher else value < values[best])):
            best = last
        if patience and last - (-1 if best is None else best) >= patience:
            break
    assert driver.weight == 10 * (last if best is None else best)
    assert guard.best_step == (None if best is None else 10 * best)


def test_an_interrupted_run_resumes_with_its_history(tmp_path: Path) -> None:
    first = Driver(OverfittingGuard("loss", patience=2), tmp_path)
    first.begin()
    for step, value in ((0, 3.0), (10, 1.0), (20, 1.5)):
        assert not first.see(step, value)
    saved = first.guard.state()
    second = Driver(OverfittingGuard("loss", patience=2), tmp_path)
    second.begin(step=20, saved=saved)
    assert not second.see(20, 1.5)  # the evaluation at the start repeats an earlier one
    assert second.see(30, 1.2)
    second.end()
    assert second.weight == 10
    assert [event.step for event in second.guard.events] == [30, 10]


def test_after_a_rollback_the_best_state_stays_a_candidate(tmp_path: Path) -> None:
    driver = Driver(OverfittingGuard("loss"), tmp_path)
    driver.begin()
    driver.see(0, 3.0)
    saved = driver.guard.state()
    driver.see(10, 1.0)
    driver.begin(step=5, saved=saved)
    driver.see(15, 2.0)
    driver.end()
    assert driver.weight == 10


def test_without_its_file_a_resumed_run_starts_over(tmp_path: Path) -> None:
    driver = Driver(OverfittingGuard("loss"), tmp_path)
    driver.begin(step=20, saved={"attributes": {"history": [[0, 0.5], [10, 0.1]]}})
    driver.see(20, 1.5)
    driver.see(30, 1.7)
    driver.end()
    assert driver.weight == 20


def test_a_new_run_ignores_the_file_of_another(tmp_path: Path) -> None:
    BestState(tmp_path / "best.safetensors").keep(torch.nn.Linear(1, 1, bias=False), 999, 0.0)
    assert drive(OverfittingGuard(), tmp_path, [3.0, 2.0, 4.0]).weight == 10


def test_training_that_an_exception_ended_can_be_finished_by_hand(tmp_path: Path) -> None:
    driver = Driver(OverfittingGuard(), tmp_path)
    driver.begin()
    driver.see(0, 3.0)
    driver.see(10, 4.0)
    driver.guard.finish(driver.model, 13)
    driver.guard.finish(driver.model, 13)
    assert driver.weight == 0
    assert len(driver.guard.events) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert", "t5", "bart"])
def test_weights_are_kept_bit_for_bit_and_tied_ones_stay_tied(kind: str, tmp_path: Path) -> None:
    model = fakes.bundle(kind).model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pointers = {name: value.data_ptr() for name, value in model.state_dict().items()}
    kept = BestState(tmp_path / "run" / "best.safetensors")
    assert kept.kept() is None
    kept.keep(model, 7, 0.1)
    assert kept.kept() == (7, 0.1)
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(2).add_(1)
    kept.restore(model)
    assert len(before) > 10
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert pointers == {name: value.data_ptr() for name, value in model.state_dict().items()}


def test_weights_that_cannot_be_written_are_reported(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(StoreError, match="the best weights cannot be written"):
        BestState(tmp_path / "taken" / "best.safetensors").keep(torch.nn.Linear(1, 1), 0, 0.0)


# ---- In trainers ----


def rows(seed: int, count: int) -> list[dict[str, Any]]:
    """Return texts with random labels: what is learned from one set does not hold for another."""
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 60, (count, 8), generator=random).tolist()
    labels = torch.randint(0, 2, (count,), generator=random).tolist()
    return [
        {"input_ids": row, "attention_mask": [1] * 8, "labels": label} for row, label in zip(ids, labels, strict=True)
    ]


def accuracy(output: Any) -> dict[str, float]:
    return {"accuracy": float((output.predictions.argmax(-1) == output.label_ids).mean())}


@pytest.fixture(params=[transformers.Trainer, fulltune.Trainer], ids=["plain", "fulltune"])
def trainer_class(request: pytest.FixtureRequest) -> Any:
    return request.param


def make_trainer(trainer_class: Any, folder: Path, guard: OverfittingGuard, **options: Any) -> Any:
    model, _ = fakes.bert(head="classification", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    standard = {"max_steps": 40, "eval_strategy": "steps", "eval_steps": 4, "learning_rate": 3e-3, "seed": 1}
    return trainer_class(
        model=model,
        args=fakes.arguments(folder, **standard | options),
        train_dataset=rows(1, 16),
        eval_dataset=rows(2, 16),
        compute_metrics=accuracy,
        callbacks=[guard],
    )


def test_a_run_that_overfits_is_stopped_and_its_best_step_restored(trainer_class: Any, tmp_path: Path) -> None:
    guard = OverfittingGuard("eval_loss", patience=2)
    trainer = make_trainer(trainer_class, tmp_path, guard)
    trainer.train()
    assert trainer.state.global_step < 40
    assert guard.history[0][0] == 0
    assert guard.best == min(guard.history, key=lambda point: (point[1], point[0]))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(guard.best[1], rel=1e-5)
    assert [event.verdict for event in guard.events] == ["stop", "continue"]


def test_a_custom_metric_can_select(trainer_class: Any, tmp_path: Path) -> None:
    guard = OverfittingGuard("accuracy", patience=0)
    trainer = make_trainer(trainer_class, tmp_path, guard)
    trainer.train()
    assert len(guard.history) == 11
    assert trainer.evaluate()["eval_accuracy"] == max(value for _, value in guard.history)


def test_a_wrong_metric_name_fails_before_the_first_step(trainer_class: Any, tmp_path: Path) -> None:
    guard = OverfittingGuard("eval_acuracy")
    trainer = make_trainer(trainer_class, tmp_path, guard)
    with pytest.raises(ConfigError, match="Did you mean 'accuracy'") as caught:
        trainer.train()
    assert "one of accuracy, loss" in str(caught.value)
    assert trainer.state.global_step == 0


def test_a_resumed_run_equals_an_uninterrupted_one(trainer_class: Any, tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 8, "max_steps": 20}
    whole = OverfittingGuard("loss", patience=0)
    done = make_trainer(trainer_class, tmp_path / "whole", whole, **options)
    done.train()

    class Interrupt(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 18:
                raise KeyboardInterrupt

    begun = make_trainer(trainer_class, tmp_path / "parts", OverfittingGuard("loss", patience=0), **options)
    begun.add_callback(Interrupt())
    with pytest.raises(KeyboardInterrupt):
        begun.train()
    assert (tmp_path / "parts" / "best.safetensors").exists()
    guard = OverfittingGuard("loss", patience=0)
    resumed = make_trainer(trainer_class, tmp_path / "parts", guard, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-16"))
    assert guard.history == whole.history
    assert guard.best == whole.best
    for name, value in done.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_best_weights_that_are_damaged_are_refused(tmp_path: Path) -> None:
    state, model = BestState(tmp_path / "best.safetensors"), torch.nn.Linear(4, 4)
    state.keep(model, 3, 0.5)
    whole = state.path.read_bytes()
    for data in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:-1], whole[:9] + b"\x00" + whole[10:]):
        state.path.write_bytes(data)
        with pytest.raises(StoreError, match="the file of the best weights is corrupt"):
            state.restore(model)
