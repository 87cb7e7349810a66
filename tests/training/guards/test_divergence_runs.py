"""Training that diverges returns to its last good checkpoint, or stops with intact weights."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
import transformers
from matrix import often
from torch import Tensor, nn
from transformers import TrainerCallback

from fulltune import Trainer, TrainingStopped
from fulltune.errors import NonFiniteError, StoreError
from fulltune.training.checkpoints.format import Snapshot
from fulltune.training.guards.divergence import DivergenceGuard, scale_learning_rate

#: Of many lengths, so that ordering by length matters; 7 steps per epoch, so that checkpoints fall inside an epoch.
TEXTS = [f"the fox number {number}" + " the king" * (number % 5) for number in range(28)]
STEPS = 28


def rows(tokenizer: Any) -> list[dict[str, Any]]:
    return [{"input_ids": tokenizer(text).input_ids, "row_id": f"tales:{i}"} for i, text in enumerate(TEXTS)]


def break_pass(model: Any, *passes: int, value: float = float("nan")) -> None:
    """Multiply the logits of these training passes (counted from 1) by ``value``."""
    count = 0

    def spoil(module: nn.Module, inputs: Any, output: Any) -> Any:
        nonlocal count
        if module.training:
            count += 1
            if count in passes:
                return output * value
        return output

    model.get_output_embeddings().register_forward_hook(spoil)


class CutAfter(TrainerCallback):
    """Cut the learning rate by hand at a step."""

    def __init__(self, step: int, factor: float) -> None:
        self.step, self.factor = step, factor

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            scale_learning_rate(kwargs["optimizer"], kwargs["lr_scheduler"], self.factor)


class Seen(TrainerCallback):
    """Record the last logged learning rate of each step, and the number of optimizer steps taken."""

    def __init__(self) -> None:
        self.rates: dict[int, float] = {}
        self.taken = 0

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "learning_rate" in logs:
            self.rates[state.global_step] = logs["learning_rate"]

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.taken += 1


def trained(
    folder: Path,
    *callbacks: TrainerCallback,
    spoil: Callable[[nn.Module], object] = lambda model: None,
    kind: type[transformers.Trainer] = Trainer,
    evaluate: bool = False,
    **options: Any,
) -> transformers.Trainer:
    """Return a trainer of a tiny GPT-2 with dropout after 4 epochs of 7 steps."""
    model, tokenizer = fakes.gpt2()
    spoil(model)
    standard: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 4,
        "learning_rate": 1e-3,
        "train_sampling_strategy": "group_by_length",
        "eval_on_start": evaluate,
        "seed": 3,
    }
    args = fakes.arguments(folder, **(standard | options))
    data = rows(tokenizer)
    trainer = kind(model=model, args=args, train_dataset=data, eval_dataset=data[:4], callbacks=list(callbacks))
    try:
        trainer.train()
    except TrainingStopped as error:
        trainer.stopped = error  # type: ignore[attr-defined]
    return trainer


def weights(trainer: transformers.Trainer) -> dict[str, Tensor]:
    assert isinstance(trainer.model, nn.Module)
    return trainer.model.state_dict()


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert len(left) > 20
    assert [name for name, value in left.items() if not torch.equal(value, right[name])] == []


def assert_finite(trainer: transformers.Trainer) -> None:
    assert len(weights(trainer)) > 10
    assert all(bool(value.isfinite().all()) for value in weights(trainer).values())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, dict[str, Tensor]]:
    """Return the weights of a training without faults, with and without an evaluation before it."""
    return {one: weights(trained(tmp_path_factory.mktemp("plain"), evaluate=one)) for one in (False, True)}


# ---- Rolling back ----


@pytest.mark.parametrize(
    ("broken", "evaluate"),
    often(product([1, 11, 18], [False, True]), lambda case: case in [(1, False), (18, True)]),
)
def test_a_nan_costs_the_steps_since_the_checkpoint_and_nothing_else(
    broken: int, evaluate: bool, tmp_path: Path, undisturbed: dict[bool, dict[str, Tensor]]
) -> None:
    """With a factor of 1 the weights are those of a training without faults: the complete state was restored."""
    guard, seen = DivergenceGuard(rate_factor=1.0), Seen()
    trainer = trained(tmp_path, guard, seen, spoil=lambda model: break_pass(model, broken), evaluate=evaluate)
    assert_same(weights(trainer), undisturbed[evaluate])
    assert [event.verdict for event in guard.events] == ["roll back"]
    since = (broken - 1) % 10
    assert seen.taken == STEPS + since
    assert trainer.state.global_step == STEPS


@pytest.mark.parametrize("strategy", often(["random", "sequential"], lambda strategy: strategy == "random"))
def test_every_order_of_the_rows_is_restored(strategy: str, tmp_path: Path) -> None:
    options = {"train_sampling_strategy": strategy, "gradient_accumulation_steps": 2, "num_train_epochs": 5}
    guard = DivergenceGuard(rate_factor=1.0)
    trainer = trained(tmp_path, guard, spoil=lambda model: break_pass(model, 32), **options)
    assert len(guard.events) == 1
    assert_same(weights(trainer), weights(trained(tmp_path, **options)))


@pytest.mark.parametrize(
    "scheduler", often(["linear", "cosine", "constant_with_warmup"], lambda scheduler: scheduler == "cosine")
)
def test_the_rate_is_cut_for_the_rest_of_the_schedule(scheduler: str, tmp_path: Path) -> None:
    """Compare with the weights of a training whose rate was cut by hand at the step of the checkpoint."""
    options = {"lr_scheduler_type": scheduler, "warmup_steps": 3}
    guard, seen = DivergenceGuard(rate_factor=0.3), Seen()
    trainer = trained(tmp_path, guard, seen, spoil=lambda model: break_pass(model, 17), **options)
    plain = Seen()
    assert_same(weights(trainer), weights(trained(tmp_path, CutAfter(10, 0.3), plain, **options)))
    assert seen.rates == pytest.approx(plain.rates)
    assert guard.rate == pytest.approx(0.3)


def test_cuts_add_up_from_the_same_checkpoint(tmp_path: Path) -> None:
    guard = DivergenceGuard(rate_factor=0.5, retries=2)
    trainer = trained(tmp_path, guard, spoil=lambda model: break_pass(model, 14, 19))
    assert [event.verdict for event in guard.events] == ["roll back", "roll back"]
    assert_same(weights(trainer), weights(trained(tmp_path, CutAfter(10, 0.25))))


def test_a_rollback_is_reported_with_numbers_and_rows_and_leaves_nothing_behind(tmp_path: Path) -> None:
    guard = DivergenceGuard()
    trained(tmp_path, guard, spoil=lambda model: break_pass(model, 13), train_sampling_strategy="sequential")
    (event,) = guard.events
    assert (event.guard, event.step, event.verdict) == ("divergence", 13, "roll back")
    assert event.message == (
        "The loss became nan at step 13 (rows tales:20, tales:21, tales:22, tales:23); training went back to step 10, "
        "and the learning rate is 0.3 of the configured one (roll-back 1 of 2)."
    )
    assert list(tmp_path.iterdir()) == []


def test_at_most_two_checkpoints_are_on_disk(tmp_path: Path) -> None:
    class Count(TrainerCallback):
        most = 0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.most = max(self.most, len(list((tmp_path / ".rollback").iterdir())))

    count = Count()
    trained(tmp_path, DivergenceGuard(), count)
    assert 0 < count.most <= 2


# ---- Stopping ----


def test_after_the_last_try_the_weights_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    guard = DivergenceGuard(retries=1)
    trainer = trained(tmp_path, guard, spoil=lambda model: break_pass(model, 14, 17))
    stopped = trainer.stopped  # type: ignore[attr-defined]
    assert stopped.exit_code == 3
    assert "the loss became nan at step 13" in str(stopped)
    assert "after 1 roll-back, with the learning rate at 0.3 of the configured one" in str(stopped)
    assert "the weights are those of step 10" in str(stopped)
    assert trainer.state.global_step == 10
    assert [event.verdict for event in guard.events] == ["roll back", "stop"]
    assert guard.events[1].message.endswith("after 1 roll-back; training stopped with the weights of step 10.")

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 10

    assert_same(weights(trainer), weights(trained(tmp_path, Stop())))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("rate", "clip"), often(product([1.0, 1e3, 1e37], [1.0, 0.0]), lambda case: case in [(1e3, 1.0), (1e37, 0.0)])
)
def test_a_rate_far_too_high_ends_with_finite_weights(rate: float, clip: float, tmp_path: Path) -> None:
    guard = DivergenceGuard()
    trainer = trained(tmp_path, guard, learning_rate=rate, max_grad_norm=clip, evaluate=True)
    assert_finite(trainer)
    assert guard.events
    assert len(guard.events) <= 3
    if rate > 1:
        assert "with the weights of step 0" in guard.events[-1].message
        assert_same(weights(trainer), fakes.gpt2()[0].state_dict())


def test_weights_that_are_not_finite_at_the_end_are_detected(tmp_path: Path) -> None:
    class Spoil(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == state.max_steps:
                kwargs["model"].transformer.ln_f.bias.data[0] = float("inf")

    guard = DivergenceGuard(retries=0)
    trainer = trained(tmp_path, guard, Spoil())
    assert "weights became nan at step 28" in str(trainer.stopped)  # type: ignore[attr-defined]
    assert_finite(trainer)
    assert trainer.state.global_step == 20


def test_a_bad_checkpoint_is_not_used_twice(tmp_path: Path, undisturbed: dict[bool, dict[str, Tensor]]) -> None:
    """After two faults right after a checkpoint the one before it is used."""
    guard = DivergenceGuard(rate_factor=1.0)
    trainer = trained(tmp_path, guard, spoil=lambda model: break_pass(model, 21, 22))
    assert [event.message.split(";")[1].split(",")[0] for event in guard.events] == [
        " training went back to step 20",
        " training went back to step 10",
    ]
    assert_same(weights(trainer), undisturbed[False])


# ---- No intervention ----


def test_a_healthy_training_is_not_touched(tmp_path: Path, undisturbed: dict[bool, dict[str, Tensor]]) -> None:
    guard = DivergenceGuard()
    assert_same(weights(trained(tmp_path, guard, evaluate=True)), undisturbed[True])
    assert guard.events == []


def test_a_spike_that_recovers_is_left_alone(tmp_path: Path) -> None:
    def spoil(model: nn.Module) -> None:
        break_pass(model, 15, 16, 17, 18, value=1e3)

    guard = DivergenceGuard()
    trainer = trained(tmp_path, guard, spoil=spoil)
    assert guard.events == []
    assert trainer.state.global_step == STEPS


def test_consecutive_spikes_roll_back(tmp_path: Path, undisturbed: dict[bool, dict[str, Tensor]]) -> None:
    guard = DivergenceGuard(rate_factor=1.0)
    trainer = trained(tmp_path, guard, spoil=lambda model: break_pass(model, *range(15, 20), value=1e3))
    (event,) = guard.events
    assert (event.step, event.verdict) == (19, "roll back")
    assert "for 5 steps and was" in event.message
    assert "rows tales:" in event.message
    assert "went back to step 10" in event.message
    assert_same(weights(trainer), undisturbed[False])


# ---- Resuming ----


def test_a_resumed_training_keeps_the_cut_and_the_count(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 18, "train_sampling_strategy": "random"}
    whole = DivergenceGuard()
    expected = trained(tmp_path, whole, spoil=lambda model: break_pass(model, 13), **options)
    checkpoint = str(tmp_path / "checkpoint-18")
    guard = DivergenceGuard()
    model, tokenizer = fakes.gpt2()
    trainer = Trainer(model=model, args=expected.args, train_dataset=rows(tokenizer), callbacks=[guard])
    trainer.train(resume_from_checkpoint=checkpoint)
    assert (guard.roll_backs, guard.rate) == (1, pytest.approx(0.3))
    assert list(guard.detector.losses) == list(whole.detector.losses)
    assert_same(weights(trainer), weights(expected))


def test_a_resumed_training_can_roll_back_to_its_first_checkpoint(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 13, "train_sampling_strategy": "random"}
    expected = trained(tmp_path, **options)
    model, tokenizer = fakes.gpt2()
    break_pass(model, 1)
    guard = DivergenceGuard(rate_factor=1.0)
    trainer = Trainer(model=model, args=expected.args, train_dataset=rows(tokenizer), callbacks=[guard])
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-13"))
    assert "went back to step 13" in guard.events[0].message
    assert (tmp_path / "checkpoint-13").is_dir()
    assert_same(weights(trainer), weights(expected))


def test_the_same_trainer_can_train_again(tmp_path: Path) -> None:
    guard = DivergenceGuard()
    trainer = trained(tmp_path, guard, spoil=lambda model: break_pass(model, 13))
    assert len(guard.events) == 1
    trainer.train()
    assert guard.events == []
    assert (guard.roll_backs, guard.rate) == (0, 1.0)


# ---- Other trainers ----


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}, {"max_grad_norm": 0.0}])
def test_a_plain_trainer_stops_with_the_weights_before_the_nan(options: dict[str, Any], tmp_path: Path) -> None:
    at = 13 if "gradient_accumulation_steps" in options else 7  # 7 micro-batches per epoch, the last one incomplete
    guard = DivergenceGuard()

    def spoil(model: nn.Module) -> None:
        break_pass_of_loss(model, at)

    trainer = plain(tmp_path, guard, spoil=spoil, **options)
    assert [event.message for event in guard.events] == [
        "The loss became nan at step 7 (rows unknown); training stopped with the weights before it."
    ]
    assert trainer.state.global_step == 7

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 6

    assert_same(weights(trainer), weights(plain(tmp_path, Stop(), **options)))


def test_a_plain_trainer_stops_at_a_gradient_that_is_not_finite(tmp_path: Path) -> None:
    calls = iter(range(1, 1000))

    def spoil(model: Any) -> None:
        bias = model.transformer.ln_f.bias
        bias.register_hook(lambda gradient: gradient * float("inf") if next(calls) == 4 else gradient)

    guard = DivergenceGuard()
    trainer = plain(tmp_path, guard, spoil=spoil)
    assert "The gradient norm became" in guard.events[0].message
    assert_finite(trainer)


@pytest.mark.parametrize("options", [{}, {"label_smoothing_factor": 0.1}])
@pytest.mark.parametrize("rate", [1e3, 1e37])
def test_a_plain_trainer_stops_when_it_diverges(options: dict[str, Any], rate: float, tmp_path: Path) -> None:
    guard = DivergenceGuard()
    trainer = plain(tmp_path, guard, learning_rate=rate, **options)
    assert [event.verdict for event in guard.events] == ["stop"]
    assert trainer.state.global_step < STEPS


def test_a_plain_trainer_is_left_alone_when_it_is_healthy(tmp_path: Path) -> None:
    guard = DivergenceGuard()
    assert_same(weights(plain(tmp_path, guard)), weights(plain(tmp_path)))
    assert guard.events == []
    assert len(guard.detector.losses) == STEPS


def plain(folder: Path, *callbacks: TrainerCallback, **options: Any) -> transformers.Trainer:
    """Return a trainer of transformers whose rows have labels and one length."""

    def with_labels(tokenizer: Any) -> list[dict[str, Any]]:
        ids = [tokenizer(text).input_ids[:12] for text in TEXTS]
        return [{"input_ids": one, "labels": one} for one in ids]

    model, tokenizer = fakes.gpt2()
    spoil = options.pop("spoil", lambda model: None)
    spoil(model)
    standard = {"per_device_train_batch_size": 4, "num_train_epochs": 4, "learning_rate": 1e-3}
    args = fakes.arguments(folder, **(standard | options))
    trainer = transformers.Trainer(
        model=model, args=args, train_dataset=with_labels(tokenizer), callbacks=list(callbacks)
    )
    trainer.train()
    return trainer


def break_pass_of_loss(model: nn.Module, at: int) -> None:
    """Break passes like :func:`break_pass`, for a model that computes its own loss."""
    calls = iter(range(1, 1000))

    def spoil(module: nn.Module, inputs: Any, output: Any) -> Any:
        if next(calls) == at:
            output["loss"] = output["loss"] * float("nan")
        return output

    model.register_forward_hook(spoil)


# ---- Errors ----


def test_a_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Any, folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Snapshot, "_fill", full)
    with pytest.raises(StoreError, match=r"No space left on device.*guards\.divergence: null write none"):
        trained(tmp_path, DivergenceGuard())
    assert list(tmp_path.iterdir()) == []


def test_without_the_guard_nothing_changes(tmp_path: Path) -> None:
    trainer = trained(tmp_path, spoil=lambda model: break_pass(model, 13))
    assert isinstance(trainer.stopped, NonFiniteError)  # type: ignore[attr-defined]
    assert trainer.state.global_step == 12
