"""``fulltune.callbacks.Guards`` in trainers of transformers and of packages that build on it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import TrainerCallback

import fulltune
from fulltune import StoreError
from fulltune.callbacks import Guards
from fulltune.store.manifest import verify
from fulltune.training.checkpoints.format import is_ours

TEXTS = [f"the fox number {number} the king" for number in range(28)]
STEPS = 28


def break_losses(model: nn.Module, *passes: int, factor: float = float("nan")) -> None:
    """Multiply the losses of these training passes (counted from 1)."""
    count = 0

    def spoil(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal count
        count += module.training
        if module.training and count in passes:
            output["loss"] = output["loss"] * factor

    model.register_forward_hook(spoil)


class Norms(TrainerCallback):
    """Record the sum of all weights before each step, and the learning rates."""

    def __init__(self) -> None:
        self.sums: list[float] = []
        self.rates: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.sums.append(float(sum(value.detach().double().sum() for value in kwargs["model"].parameters())))
        self.rates.append(kwargs["optimizer"].param_groups[0]["lr"])


def trained(
    folder: Path,
    *callbacks: TrainerCallback,
    spoil: Callable[[nn.Module], object] = lambda model: None,
    resume: str | bool | None = None,
    kind: type[transformers.Trainer] = transformers.Trainer,
    **options: Any,
) -> transformers.Trainer:
    """Return a trainer of a tiny GPT-2 after 4 epochs of 7 steps."""
    model, tokenizer = fakes.gpt2()
    spoil(model)
    data = [{"input_ids": ids, "labels": ids} for ids in (tokenizer(text).input_ids[:12] for text in TEXTS)]
    standard = {"per_device_train_batch_size": 4, "num_train_epochs": 4, "learning_rate": 1e-3}
    args = fakes.arguments(folder, **(standard | {"lr_scheduler_type": "constant"} | options))
    trainer = kind(model=model, args=args, train_dataset=data, callbacks=list(callbacks))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def weights(trainer: transformers.Trainer) -> dict[str, Tensor]:
    assert isinstance(trainer.model, nn.Module)
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def are_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    assert len(left) > 20
    return all(torch.equal(value, right[name]) for name, value in left.items())


# ---- Rolling back ----


def test_a_nan_costs_the_steps_since_the_last_good_state(tmp_path: Path) -> None:
    guards, norms = Guards(), Norms()
    trainer = trained(tmp_path, guards, norms, spoil=lambda model: break_losses(model, 17))
    assert [(event.step, event.verdict) for event in guards.events] == [(17, "roll back")]
    assert guards.events[0].message == (
        "The loss became nan at step 17 (rows unknown); training went back to step 10, and the learning rate is 0.3 of "
        "the configured one (roll-back 1 of 2)."
    )
    assert norms.sums[17] == norms.sums[10] != norms.sums[16]
    assert norms.rates[16:18] == pytest.approx([1e-3, 3e-4])
    assert norms.rates[-1] == pytest.approx(3e-4)
    assert trainer.state.global_step == STEPS
    assert all(bool(value.isfinite().all()) for value in weights(trainer).values())


def test_the_moments_of_the_optimizer_are_restored(tmp_path: Path) -> None:
    """Stop after the roll-back: the state of the optimizer is that of a training that stopped at step 10."""

    class Stop(TrainerCallback):
        def __init__(self, step: int) -> None:
            self.step = step

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == self.step

    rolled = trained(tmp_path, Guards(), Stop(17), spoil=lambda model: break_losses(model, 17))
    plain = trained(tmp_path, Stop(10))
    assert are_same(weights(rolled), weights(plain))
    states = [trainer.optimizer.state_dict()["state"] for trainer in (rolled, plain)]  # type: ignore[union-attr]
    assert len(states[0]) > 20
    for number, state in states[0].items():
        assert torch.equal(state["exp_avg"], states[1][number]["exp_avg"])
        assert torch.equal(state["exp_avg_sq"], states[1][number]["exp_avg_sq"])


def test_after_the_last_roll_back_training_stops_with_the_last_good_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    guards, norms = Guards(retries=1), Norms()
    trainer = trained(tmp_path, guards, norms, spoil=lambda model: break_losses(model, 13, 15))
    assert [event.verdict for event in guards.events] == ["roll back", "stop"]
    assert guards.events[1].message == (
        "The loss became nan at step 15 (rows unknown), after 1 roll-back; training stopped with the weights of "
        "step 10."
    )
    assert trainer.state.global_step == 15
    total = float(sum(value.detach().double().sum() for value in trainer.model.parameters()))  # type: ignore[union-attr]
    assert total == norms.sums[10]
    assert guards.events[1].message in caplog.text


def test_losses_that_stay_high_are_rolled_back(tmp_path: Path) -> None:
    guards = Guards(patience=3)
    trained(tmp_path, guards, spoil=lambda model: break_losses(model, *range(14, 29), factor=50.0))
    assert [event.verdict for event in guards.events] == ["roll back", "roll back", "stop"]
    assert [event.step for event in guards.events] == [16, 19, 22]


def test_weights_that_are_not_finite_are_replaced(tmp_path: Path) -> None:
    class Spoil(TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 4:
                with torch.no_grad():
                    next(kwargs["model"].parameters())[0, 0] = float("inf")

    guards = Guards()
    trainer = trained(tmp_path, guards, Spoil())
    assert "weights" in guards.events[0].message
    assert all(bool(value.isfinite().all()) for value in weights(trainer).values())


def test_a_healthy_training_is_not_changed_and_leaves_nothing_behind(tmp_path: Path) -> None:
    guards = Guards()
    guarded = trained(tmp_path, guards)
    assert guards.events == []
    assert list(tmp_path.iterdir()) == []
    assert are_same(weights(guarded), weights(trained(tmp_path)))


def test_at_most_one_good_state_is_stored(tmp_path: Path) -> None:
    seen = set[str]()

    class Look(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            (folder,) = (tmp_path / ".rollback").iterdir()
            seen.add(folder.name)

    trained(tmp_path, Guards(), Look())
    assert seen == {"checkpoint-0", "checkpoint-10", "checkpoint-20"}


def test_an_optimizer_whose_state_cannot_be_stored_is_stopped_instead(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd(torch.optim.SGD):
        def state_dict(self) -> dict[str, Any]:
            return super().state_dict() | {"odd": object()}

    class OddTrainer(transformers.Trainer):
        def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
            self.optimizer = Odd(self.model.parameters(), lr=1e-3)  # type: ignore[union-attr]
            return self.optimizer

    guards = Guards()
    trained(tmp_path, guards, kind=OddTrainer, spoil=lambda model: break_losses(model, 5))
    assert [event.verdict for event in guards.events] == ["stop"]
    assert "divergence would stop this training, not roll it back" in caplog.text


def test_in_the_trainer_of_fulltune_it_is_its_divergence_guard(tmp_path: Path) -> None:
    guards = Guards(rate_factor=1.0)
    trainer = trained(tmp_path, guards, kind=fulltune.Trainer, spoil=lambda model: break_logits(model, 17))
    assert [event.verdict for event in guards.events] == ["roll back"]
    assert are_same(weights(trainer), weights(trained(tmp_path, kind=fulltune.Trainer)))  # the rows were repeated


def break_logits(model: Any, at: int) -> None:
    calls = iter(range(1, 1000))

    def spoil(module: nn.Module, inputs: Any, output: Any) -> Any:
        return output * float("nan") if module.training and next(calls) == at else output

    model.get_output_embeddings().register_forward_hook(spoil)


# ---- Verified checkpoints ----

SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 7}


def test_checkpoints_have_a_manifest(tmp_path: Path) -> None:
    trained(tmp_path, Guards(), save_total_limit=2, **SAVING)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["checkpoint-21", "checkpoint-28"]
    manifest = verify(tmp_path / "checkpoint-28")
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"} <= manifest.files.keys()
    assert manifest.properties == {"writer": "transformers", "step": 28}


def test_a_training_resumes_from_an_intact_checkpoint(tmp_path: Path) -> None:
    whole = weights(trained(tmp_path, Guards(), **SAVING))
    guards = Guards()
    resumed = trained(tmp_path, guards, resume=str(tmp_path / "checkpoint-14"), **SAVING)
    assert are_same(weights(resumed), whole)


@pytest.mark.parametrize("named", [True, False])
def test_a_damaged_checkpoint_is_refused_before_the_first_step(named: bool, tmp_path: Path) -> None:
    trained(tmp_path, Guards(), **SAVING)
    folder = tmp_path / "checkpoint-28"
    damage(folder / "model.safetensors")
    (folder / "scheduler.pt").write_bytes((folder / "scheduler.pt").read_bytes() + b" ")
    norms = Norms()
    with pytest.raises(StoreError) as raised:
        trained(tmp_path, Guards(), norms, resume=str(folder) if named else True, num_train_epochs=5, **SAVING)
    message = str(raised.value)
    assert "model.safetensors: the content has the SHA-256" in message
    assert "scheduler.pt: the file has" in message
    assert message.count("Resume from another checkpoint.") == 2
    assert norms.sums == []


def test_a_checkpoint_without_a_manifest_is_reported_and_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained(tmp_path, **SAVING)
    caplog.set_level(logging.WARNING)
    trained(tmp_path, Guards(), resume=True, num_train_epochs=5, **SAVING)
    assert "checkpoint-28 has no manifest: its files are not verified" in caplog.text


def test_roll_backs_are_counted_across_a_resume(tmp_path: Path) -> None:
    trained(tmp_path, Guards(), spoil=lambda model: break_losses(model, 5), **SAVING)
    guards, norms = Guards(), Norms()
    trained(tmp_path, guards, norms, resume=str(tmp_path / "checkpoint-14"), **SAVING)
    assert guards.roll_backs == 1
    assert norms.rates == pytest.approx([3e-4] * 14)
    assert json.loads((tmp_path / "checkpoint-28" / "trainer_state.json").read_text())["stateful_callbacks"]["Guards"]


def test_the_trainer_of_fulltune_verifies_these_checkpoints(tmp_path: Path) -> None:
    trained(tmp_path, Guards(), **SAVING)
    assert not is_ours(tmp_path / "checkpoint-28")
    trained(tmp_path, kind=fulltune.Trainer, resume=True, num_train_epochs=5)
    damage(tmp_path / "checkpoint-28" / "model.safetensors")
    with pytest.raises(StoreError, match=r"model\.safetensors"):
        trained(tmp_path, kind=fulltune.Trainer, resume=True, num_train_epochs=5)


def damage(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# ---- Trainers of other packages ----


def quiet(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "save_strategy": "steps",
        "save_steps": 7,
    }


@pytest.mark.filterwarnings("ignore")  # of the package itself
def test_it_guards_the_trainer_of_trl(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    model, tokenizer = fakes.gpt2()
    break_losses(model, 12)
    guards = Guards()
    trainer = trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(max_length=16, bf16=False, gradient_checkpointing=False, **quiet(tmp_path)),
        train_dataset=pytest.importorskip("datasets").Dataset.from_list([{"text": text} for text in TEXTS]),
        processing_class=tokenizer,
        callbacks=[guards],
    )
    trainer.train()
    assert [(event.step, event.verdict) for event in guards.events] == [(12, "roll back")]
    assert trainer.state.global_step == 14
    assert all(bool(value.isfinite().all()) for value in weights(trainer).values())
    assert "model.safetensors" in verify(tmp_path / "checkpoint-14").files


@pytest.mark.filterwarnings("ignore")  # of the package itself
def test_it_guards_the_trainer_of_sentence_transformers(tmp_path: Path) -> None:
    st = pytest.importorskip("sentence_transformers")
    fakes.save("bert", tmp_path / "base")
    model = st.SentenceTransformer(str(tmp_path / "base"), device="cpu")
    calls = iter(range(1, 1000))
    bias = next(value for name, value in model.named_parameters() if name.endswith("LayerNorm.bias"))
    bias.register_hook(lambda gradient: gradient * float("nan") if next(calls) == 12 else gradient)
    guards = Guards()
    rows = [{"anchor": text, "positive": text.replace("fox", "king")} for text in TEXTS]
    trainer = st.SentenceTransformerTrainer(
        model=model,
        args=st.SentenceTransformerTrainingArguments(**quiet(tmp_path / "out")),
        train_dataset=pytest.importorskip("datasets").Dataset.from_list(rows),
        loss=pytest.importorskip("sentence_transformers.losses").MultipleNegativesRankingLoss(model),
        callbacks=[guards],
    )
    trainer.train()
    assert [event.verdict for event in guards.events] == ["roll back"]
    assert "gradient norm became nan" in guards.events[0].message
    assert trainer.state.global_step == 14
    assert all(bool(value.isfinite().all()) for value in weights(trainer).values())
    damage(tmp_path / "out" / "checkpoint-14" / "model.safetensors")
    with pytest.raises(StoreError, match=r"model\.safetensors"):
        trainer.train(resume_from_checkpoint=True)
