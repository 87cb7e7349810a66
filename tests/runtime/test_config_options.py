"""Keyword arguments of the Python API are merged over a config and checked like it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fulltune
from fulltune.config import Config, TrainConfig, dump_config, load_config
from fulltune.errors import ConfigError
from fulltune.records.run import Record

FILE = """
model: gpt2
task: classification
data: {train: rows.jsonl, text: body}
train: {epochs: 2, batch_size: 4}
guards: {forgetting: {budget: 0.2}}
trainer: {dataloader_num_workers: 2}
"""

#: Everything that takes a config and the keys of one.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "run": fulltune.run,
    "plan": fulltune.plan,
    "evaluate": lambda *args, **options: fulltune.evaluate("latest", *args, **options),
    "find_learning_rate": fulltune.find_learning_rate,
    "learning_curve": fulltune.learning_curve,
    "sweep": lambda *args, **options: fulltune.sweep(*args, over=["train.epochs=1,2"], **options),
    "compare_methods": fulltune.compare_methods,
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(FILE, encoding="utf-8")
    return path


def test_sections_are_merged_key_by_key(file: Path) -> None:
    config = load_config(
        file,
        ["train.seed=3"],
        options={
            "model": "bert",
            "train": {"epochs": 1, "seed": 2},
            "guards": {"forgetting": {"limit": 9}},
            "trainer": {"dataloader_num_workers": 0, "weight_decay": 0.5},
        },
    )
    assert config.model == "bert"
    assert (config.train.epochs, config.train.batch_size, config.train.seed) == (1, 4, 3)
    assert config.guards.forgetting is not None
    assert (config.guards.forgetting.budget, config.guards.forgetting.limit) == (0.2, 9)
    assert config.trainer == {"dataloader_num_workers": 0, "weight_decay": 0.5}


def test_a_section_can_be_an_object_and_null_turns_it_off(file: Path) -> None:
    config = load_config(file, options={"train": TrainConfig(epochs=5), "guards": {"forgetting": None}})
    assert (config.train.epochs, config.train.batch_size) == (5, 4)
    assert config.guards.forgetting is None
    assert load_config(file, options={"checkpoints": None}).checkpoints is None
    assert load_config(file, options={"train": None}).train == TrainConfig()


def test_options_apply_to_mappings_and_configs_as_well(file: Path) -> None:
    config = load_config(file)
    for source in (
        config,
        {"model": "gpt2", "task": "classification", "data": {"train": "rows.jsonl", "text": "body"}},
    ):
        merged = load_config(source, options={"train": {"epochs": 7}})
        assert (merged.train.epochs, merged.data.text) == (7, "body")
    assert load_config(config) == config


def test_another_method_gets_its_own_learning_rate(file: Path) -> None:
    config = load_config(file)
    assert load_config(config, options={"method": "lora"}).train.learning_rate is None  # chosen with the model
    chosen = load_config(file, ["train.learning_rate=1e-5"])
    assert load_config(chosen, ["method=lora"]).train.learning_rate == 1e-5


def test_rows_in_memory_replace_a_file_and_keep_the_columns_of_the_config(file: Path) -> None:
    rows = [{"body": f"text {index}", "label": "ab"[index % 2], "other": {1, 2}} for index in range(4)]
    config = load_config(file, options={"data": {"train": rows}})
    assert Path(str(config.data.train)).read_text(encoding="utf-8").count("body") == 4


@pytest.mark.parametrize("name", FUNCTIONS)
def test_all_problems_are_reported_at_once_with_their_place(name: str, file: Path, tmp_path: Path) -> None:
    file.write_text(FILE + "speed: {kernel: off}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        FUNCTIONS[name](
            file, train={"epoch": 1, "batch_size": 0}, overrides=["data.lable=x", "train"], epochs=3, out=tmp_path
        )
    found = {(problem.field, problem.where) for problem in caught.value.problems}
    assert found == {
        ("", "--set"),
        ("data.lable", "--set"),
        ("epochs", "keyword arguments"),
        ("speed.kernel", str(file)),
        ("train.batch_size", "keyword arguments"),
        ("train.epoch", "keyword arguments"),
    }
    assert "Did you mean 'label'?" in str(caught.value)
    assert "Write it as train.epochs" in str(caught.value)
    assert not list(tmp_path.glob("2*"))


@pytest.mark.parametrize("key", ["\x1b[31mred", "train[0]", "str", "\u202ename"], ids=ascii)
def test_unknown_keys_are_named_whatever_they_contain(key: str, file: Path) -> None:
    with pytest.raises(ConfigError, match="unknown key") as caught:
        load_config(file, options={key: 1})
    assert [(problem.field, problem.where) for problem in caught.value.problems] == [(key, "keyword arguments")]
    assert str(caught.value).isprintable()
    with pytest.raises(ConfigError) as caught:
        load_config(file, options={"train": {key: 1}})
    assert [problem.field for problem in caught.value.problems] == [f"train.{key}"]


@pytest.mark.parametrize("override", ["train..epochs=1", ".epochs=1", "train.=1", "train. .x=1"])
def test_an_override_with_an_empty_key_shows_how_to_write_it(override: str, file: Path) -> None:
    with pytest.raises(ConfigError, match=r"an empty key in .*Write one dot between two keys") as caught:
        load_config(file, [override])
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("rate", [5e-324, 1e-320, 1e-39])
def test_a_rate_that_float32_cannot_hold_is_refused(rate: float, file: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected at least 1\.18e-38: a lower rate changes no weight"):
        load_config(file, options={"train": {"learning_rate": rate}})


def test_a_config_can_consist_of_keywords_alone(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        fulltune.run(train={"epochs": 1}, out=tmp_path)
    assert {problem.field for problem in caught.value.problems} == {"model", "task", "data"}
    assert load_config(options={"model": "m", "task": "t", "data": {"train": "x"}}) == Config.model_validate(
        {"model": "m", "task": "t", "data": {"train": "x"}}
    )


def test_a_run_uses_the_options(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[Config]()

    def prepare(config: Config, *args: Any, **options: Any) -> Record:
        seen.append(config)
        raise ConfigError("stopped here")

    monkeypatch.setattr("fulltune.pipeline.open_run.prepare_job", prepare)
    with pytest.raises(ConfigError, match="stopped here"):
        fulltune.run(file, train={"epochs": 9}, out=tmp_path)
    assert [config.train.epochs for config in seen] == [9]


def test_columns_of_plug_ins_are_named_by_role(file: Path) -> None:
    data = load_config(file, options={"data": {"columns": {"domain": "field"}}}).data
    assert [data.column(role) for role in ("text", "domain", "other")] == ["body", "field", "other"]
    with pytest.raises(ConfigError, match=r"names the column of 'text': write `data\.text: body`"):
        load_config(file, options={"data": {"columns": {"text": "body"}}})


@pytest.mark.parametrize("value", [20260131, 0, 1.5, True])
def test_a_number_is_no_date(value: object, file: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.chat_date.*expected a date such as 2026-01-31"):
        load_config(file, options={"data": {"chat_date": value}})


def test_a_config_that_is_loaded_again_keeps_infinite_options(file: Path) -> None:
    loaded = load_config(file, options={"trainer": {"neftune_noise_alpha": float("inf")}})
    assert load_config(loaded).trainer == loaded.trainer


def test_numbers_of_numpy_are_numbers(file: Path) -> None:
    options = {"data": {"eval": np.float32(0.25)}, "trainer": {"logging_steps": np.int64(5)}}
    config = load_config(file, options=options)
    assert (config.data.eval, config.trainer["logging_steps"]) == (0.25, 5)
    assert "logging_steps: 5" in dump_config(config)
