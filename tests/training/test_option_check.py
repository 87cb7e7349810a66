"""Options that transformers refuses are reported before anything is loaded, all of them together."""

from __future__ import annotations

from typing import Any

import pytest

from fulltune import Config, ConfigError
from fulltune.training.arguments import checkpointing_name
from fulltune.training.option_check import check_options

CHECKPOINTING = f"{checkpointing_name()}_kwargs"


def config(trainer: dict[str, Any], **train: Any) -> Config:
    return Config(
        model="m",
        task="classification",
        data={"train": "x"},
        trainer=trainer,
        train={"epochs": 3, "learning_rate": 3e-5} | train,
    )


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
        ({"log_level": "loud"}, "one of detail, debug, info, warning, error, critical, passive"),
        ({"dataloader_num_workers": 100_000}, r"at most \d+ processes, 16 per core"),
        ({"dataloader_prefetch_factor": 10**7}, "at most 1,024"),
        ({"dataloader_persistent_workers": True}, "num_workers > 0"),
        ({"ddp_bucket_cap_mb": 10**9}, "at most 65,536"),
        ({"logging_steps": -5}, "above 0"),
        ({"logging_steps": -0.5}, "above 0"),
        ({"save_steps": 0}, "above 0"),
        ({"label_names": ["a"]}, "use data.columns"),
        ({"local_rank": 3}, "use `torchrun`"),
        ({"parallelism_config": {"a": 1}}, "trainer.fsdp_config"),
        ({"include_for_metrics": ["input"]}, "one of inputs, loss. Did you mean 'inputs'"),
        ({CHECKPOINTING: {"reentrant": True}}, "Did you mean 'use_reentrant'"),
        ({"torch_compile_backend": "inductr"}, "Did you mean 'inductor'"),
        ({"torch_compile_mode": "fast"}, "one of default"),
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


def test_arguments_of_checkpointing_are_checked_by_name() -> None:
    with pytest.raises(ConfigError, match="'x'; expected true or false") as caught:
        check_options(config({CHECKPOINTING: {"use_reentrant": "x", "determinism_check": "all"}}))
    names = [f"trainer.{CHECKPOINTING}.{name}" for name in ("use_reentrant", "determinism_check")]
    assert [problem.field for problem in caught.value.problems] == names


def test_options_of_accelerate_are_checked_by_name() -> None:
    options = {"split_batches": "x", "even_batch": True, "dispatch_batches": None}
    with pytest.raises(ConfigError, match="Did you mean 'even_batches'") as caught:
        check_options(config({"accelerator_config": options}))
    fields = [problem.field for problem in caught.value.problems]
    assert fields == ["trainer.accelerator_config.split_batches", "trainer.accelerator_config"]


def test_wrong_types_and_values_refused_in_training_are_reported_together() -> None:
    options = {"adam_beta1": 2, "dataloader_num_workers": -1, "lr_scheduler_kwargs": {"nope": 1}, "adam_beta3": 1}
    with pytest.raises(ConfigError) as caught:
        check_options(config(options))
    fields = {problem.field for problem in caught.value.problems}
    assert fields == {f"trainer.{name}" for name in options}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"report_to": None},
        {"adam_beta2": 0.95, "neftune_noise_alpha": 5},
        {"local_rank": -1, "label_names": None, "include_for_metrics": ["loss"], "log_level": "error"},
        {
            CHECKPOINTING: {"use_reentrant": False},
            "logging_steps": 0.1,
            "torch_compile_backend": None,
        },
    ],
)
def test_options_that_work_pass(options: dict[str, Any]) -> None:
    check_options(config(options))


def test_an_optimizer_without_its_package_is_named() -> None:
    with pytest.raises(ConfigError, match=r"train\.optimizer.*lomo"):
        check_options(config({}, optimizer="lomo"))
