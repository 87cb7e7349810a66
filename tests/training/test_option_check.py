"""Options that transformers refuses are reported before anything is loaded, all of them together."""

from __future__ import annotations

from typing import Any

import pytest

from fulltune import Config, ConfigError
from fulltune.training.option_check import check_options


def config(trainer: dict[str, Any], **train: Any) -> Config:
    return Config(model="m", task="classification", data={"train": "x"}, trainer=trainer, train=train)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"report_to": [["a"]]}, "text"),
        ({"dataloader_num_workers": -1}, "at least 0"),
        ({"eval_accumulation_steps": 0}, "at least 1"),
        ({"neftune_noise_alpha": "x"}, "a number"),
        ({"ddp_timeout": "x"}, "a whole number"),
        ({"use_cpu": "yes"}, "true or false"),
        ({"adam_epsilon": float("inf")}, "finite numbers"),
        ({"lr_scheduler_kwargs": {"num_cycles": float("nan")}}, "finite numbers"),
        ({"log_level": "loud"}, "KeyError"),
        ({"train_sampling_strategy": "weird"}, "one of random"),
        ({"disable_tqdm": False}, "fulltune draws its own progress"),
        ({"save_strategy": "best"}, "guards.overfitting"),
        ({"load_best_model_at_end": True}, "guards.overfitting"),
        ({"push_to_hub": True}, "fulltune models export --push"),
        ({"resume_from_checkpoint": "x"}, "fulltune run --resume"),
        ({"adam_beta1": 2}, "Invalid beta parameter"),
        ({"lr_scheduler_kwargs": "x"}, "must be a mapping"),
        ({"optim_args": "zzz"}, "ValueError"),
        ({"accelerator_config": "nope.json"}, "there is no file 'nope.json'"),
    ],
)
def test_an_option_that_cannot_work_is_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        check_options(config(options))
    assert [problem.field for problem in caught.value.problems] == [f"trainer.{name}" for name in options]


def test_wrong_types_and_values_refused_in_training_are_reported_together() -> None:
    options = {"adam_beta1": 2, "dataloader_num_workers": -1, "lr_scheduler_kwargs": {"nope": 1}, "adam_beta3": 1}
    with pytest.raises(ConfigError) as caught:
        check_options(config(options))
    fields = {problem.field for problem in caught.value.problems}
    assert fields == {f"trainer.{name}" for name in options}


@pytest.mark.parametrize("options", [{}, {"report_to": None}, {"adam_beta2": 0.95, "neftune_noise_alpha": 5}])
def test_options_that_work_pass(options: dict[str, Any]) -> None:
    check_options(config(options))


def test_an_optimizer_without_its_package_is_named() -> None:
    with pytest.raises(ConfigError, match=r"train\.optimizer.*lomo"):
        check_options(config({}, optimizer="lomo"))
