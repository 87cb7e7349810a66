from __future__ import annotations

from pathlib import Path
from typing import Any

import fakes
import pytest

from fulltune import Config, ConfigError, Trainer
from fulltune.config import RegularizeConfig
from fulltune.training.advice import advice
from fulltune.training.arguments import checkpointing_name, total_steps, training_arguments, warmup_steps


def _config(trainer: dict[str, Any] | None = None, **train: Any) -> Config:
    return Config(
        model="m",
        task="causal-lm",
        data={"train": "x"},
        train={"epochs": 3, "learning_rate": 3e-5} | train,
        trainer=trainer or {},
    )


def test_every_first_class_option_is_passed_on(tmp_path: Path) -> None:
    config = _config(
        epochs=2,
        batch_size=3,
        accumulation=4,
        learning_rate=1e-4,
        scheduler="linear",
        warmup=0.1,
        weight_decay=0.02,
        max_grad_norm=0.5,
        label_smoothing=0.1,
        gradient_checkpointing=True,
        seed=5,
    )
    args = training_arguments(config, tmp_path, 100)
    assert (args.num_train_epochs, args.per_device_train_batch_size, args.gradient_accumulation_steps) == (2, 3, 4)
    assert (args.learning_rate, args.lr_scheduler_type, args.warmup_steps) == (1e-4, "linear", 0.1)
    assert (args.weight_decay, args.max_grad_norm, args.label_smoothing_factor) == (0.02, 0.5, 0.1)
    assert (getattr(args, checkpointing_name()), args.seed, args.data_seed) == (True, 5, 5)
    assert (args.optim, args.bf16, args.fp16, args.report_to, args.save_strategy) == (
        "adamw_torch_fused",
        False,
        False,
        [],
        "no",
    )


def test_any_other_field_passes_through(tmp_path: Path) -> None:
    args = training_arguments(_config({"adam_beta2": 0.95, "save_strategy": "epoch", "data_seed": 3}), tmp_path, 10)
    assert (args.adam_beta2, args.save_strategy, args.data_seed) == (0.95, "epoch", 3)


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    keys = {"adam_beta_2": 0.9, "warmup_ratio": 0.1, "no_cuda": True, "logging_dir": "x", "learning_rate": 1.0}
    with pytest.raises(ConfigError) as raised:
        training_arguments(_config(keys), tmp_path, 10)
    message = str(raised.value)
    assert len(raised.value.problems) == len(keys)
    assert "did you mean 'adam_beta2'" in message.lower()
    assert "train.warmup" in message
    assert "trainer.use_cpu" in message
    assert "TENSORBOARD_LOGGING_DIR" in message
    assert "set train.learning_rate and remove trainer.learning_rate" in message.lower()


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("learning_rte", "did you mean train.learning_rate?"),
        ("lr", "use train.learning_rate"),
        ("num_epochs", "use train.epochs"),
        ("max_seq_length", "use data.max_length"),
        ("qwertz", "see the documentation of transformers.TrainingArguments"),
    ],
)
def test_a_name_that_is_no_field_leads_to_our_option(name: str, fix: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        training_arguments(_config({name: 1}), tmp_path, 10)
    assert [problem.fix for problem in raised.value.problems] == [fix]


def test_a_file_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"'trainer\.deepspeed': there is no file '/nope\.json'; expected the path of"
    ):
        training_arguments(_config({"deepspeed": "/nope.json"}), tmp_path, 10)


def test_a_field_that_agrees_with_the_option_is_accepted(tmp_path: Path) -> None:
    assert training_arguments(_config({"learning_rate": 3e-5}), tmp_path, 10).learning_rate == 3e-5


def test_a_value_that_the_library_refuses_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="transformers does not accept these training arguments"):
        training_arguments(_config({"save_strategy": "sometimes"}), tmp_path, 10)


@pytest.mark.parametrize("scheduler", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.25, 2])
def test_every_scheduler_warms_up(scheduler: str, warmup: float, tmp_path: Path) -> None:
    model, tokenizer = fakes.gpt2()
    rows = [dict(tokenizer("text")) for _ in range(8)]
    config = _config(epochs=1, batch_size=1, scheduler=scheduler, warmup=warmup, learning_rate=1e-4)
    trainer = Trainer(model=model, args=training_arguments(config, tmp_path, 8), train_dataset=rows)
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert len(rates) == 8
    assert max(rates) == pytest.approx(1e-4)
    assert rates[0] < 1e-4 or rates[1] == pytest.approx(1e-4)
    assert (rates[-1] == pytest.approx(1e-4)) == (scheduler == "constant")


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert", "t5", "bart"])
def test_biases_and_norms_do_not_decay(kind: str, tmp_path: Path) -> None:
    model, _ = fakes.make(kind)
    trainer = Trainer(model=model, args=training_arguments(_config(), tmp_path, 10))
    decaying = set(trainer.get_decay_parameter_names(model))
    vectors = {name for name, value in model.named_parameters() if value.dim() == 1}
    matrices = {n for n, v in model.named_parameters() if v.dim() == 2 and "relative_attention_bias" not in n}
    assert len(vectors) >= 5
    assert not vectors & decaying
    assert matrices <= decaying


def test_steps_are_those_the_trainer_takes(tmp_path: Path) -> None:
    for rows, options in ((10, {"batch_size": 3, "accumulation": 2, "epochs": 2.5}), (7, {"max_steps": 3}), (1, {})):
        model, tokenizer = fakes.gpt2()
        config = _config(**options)
        data = [dict(tokenizer("text")) for _ in range(rows)]
        trainer = Trainer(model=model, args=training_arguments(config, tmp_path, rows), train_dataset=data)
        trainer.train()
        assert total_steps(config.train, rows) == trainer.state.global_step
        assert warmup_steps(config.train, 50) == trainer.args.get_warmup_steps(50)


def test_about_150_points_are_logged(tmp_path: Path) -> None:
    assert training_arguments(_config(), tmp_path, 10_000).logging_steps == 25
    assert training_arguments(_config(), tmp_path, 1).logging_steps == 1


def test_no_advice_on_usual_values() -> None:
    assert advice(_config(), steps=1000, parameters=124_000_000) == []
    pulled = _config(weight_decay=0.0)
    assert len(advice(pulled, steps=1000, parameters=124_000_000)) == 1
    anchored = pulled.model_copy(update={"regularize": RegularizeConfig(l2_sp=0.01)})
    assert advice(anchored, steps=1000, parameters=124_000_000) == []
    assert advice(_config(learning_rate=3e-4), steps=1000, parameters=20_000_000) == []


@pytest.mark.parametrize(
    ("options", "trainer", "words"),
    [
        ({"batch_size": 64}, {}, "effective batch is 64"),
        ({"batch_size": 1, "accumulation": 2}, {}, "effective batch is 2"),
        ({"learning_rate": 1e-3}, {}, "diverge"),
        ({"learning_rate": 1e-6}, {}, "train slowly"),
        ({"warmup": 0.5}, {}, "Warm-up takes 500 of 1000 steps"),
        ({"warmup": 2000}, {}, "never reaches"),
        ({"weight_decay": 0.5}, {}, "weight_decay is 0.5"),
        ({}, {"bf16": True}, "less than 32 bits"),
    ],
)
def test_each_unusual_value_gets_one_line_of_advice(
    options: dict[str, Any], trainer: dict[str, Any], words: str
) -> None:
    lines = advice(_config(trainer, **options), steps=1000, parameters=124_000_000)
    assert len(lines) == 1
    assert words in lines[0]


def test_small_models_have_their_own_range() -> None:
    assert "2e-05 to 0.005" in advice(_config(learning_rate=1e-6), steps=1000, parameters=1000)[0]
