"""A plan counts steps like the trainer, and lists every problem at once."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainingArguments

from fulltune.config import Config, load_config
from fulltune.errors import ConfigError
from fulltune.pipeline.planning.plan import BYTES_PER_PARAMETER, ModelSize, RowCounts, SequenceCounts, build_plan
from fulltune.records.plan import Plan
from fulltune.training.arguments import evaluation_steps

GIB = 2**30


#: What is chosen for a large encoder.
USUAL = {"epochs": 3, "learning_rate": 3e-5}


def config(few_shot: int = 4, **train: Any) -> Config:
    raw = {"model": "m", "task": "classification", "data": {"train": "t.jsonl"}, "train": USUAL | train}
    return load_config({**raw, "baselines": {"few_shot": few_shot}})


def plan(config: Config, **counts: Any) -> Plan:
    usual: dict[str, Any] = {
        "train_rows": 1000,
        "eval_rows": 200,
        "valid_rows": 100,
        "sequences": 1000,
        "tokens": 50_000,
        "parameters": 1_000_000,
        "machine_memory": 8 * GIB,
    }
    given = usual | counts
    return build_plan(
        config,
        RowCounts(given["train_rows"], given["eval_rows"], given["valid_rows"], given.get("unscored", 0)),
        SequenceCounts(given["sequences"], given["tokens"]),
        ModelSize(given["parameters"]),
        machine_memory=given["machine_memory"],
    )


def test_a_plan_in_numbers() -> None:
    made = plan(config(batch_size=8, accumulation=2, epochs=3, warmup=0.06, evaluations=4))
    assert made.rows == {"train": 1000, "eval": 200, "valid": 100}
    assert (made.steps_per_epoch, made.total_steps, made.warmup_steps, made.effective_batch) == (63, 189, 12, 16)
    assert made.memory_bytes == 16_000_000
    assert made.evaluations == (48, 95, 142, 189)
    assert made.advice == ()
    assert Plan.model_validate_json(made.to_json()) == made


@given(
    sequences=st.integers(1, 500),
    batch=st.integers(1, 40),
    accumulation=st.integers(1, 5),
    epochs=st.floats(0.1, 5, allow_nan=False),
)
def test_steps_are_those_of_a_loop(sequences: int, batch: int, accumulation: int, epochs: float) -> None:
    made = plan(config(batch_size=batch, accumulation=accumulation, epochs=epochs), sequences=sequences)
    micro = len(range(0, sequences, batch))
    steps = len(range(0, micro, accumulation))
    assert made.steps_per_epoch == steps
    assert made.total_steps == math.ceil(epochs * steps)


@pytest.mark.parametrize("warmup", [0, 0.06, 0.5, 1, 10, 500.0])
def test_warm_up_is_counted_as_transformers_does(warmup: float, tmp_path: Any) -> None:
    made = plan(config(warmup=warmup))
    reference = TrainingArguments(output_dir=str(tmp_path), warmup_steps=warmup, use_cpu=True)
    assert made.warmup_steps == reference.get_warmup_steps(made.total_steps)


def test_max_steps_overrides_epochs() -> None:
    made = plan(config(max_steps=7, epochs=100))
    assert (made.total_steps, made.evaluations[-1]) == (7, 7)


@given(total=st.integers(1, 2000), points=st.integers(0, 50))
def test_evaluations_are_evenly_spaced_and_end_with_the_training(total: int, points: int) -> None:
    steps = evaluation_steps(total, points)
    assert len(steps) == min(points, total) if points <= total or total == 1 else len(steps) <= points
    assert list(steps) == sorted(set(steps))
    assert all(1 <= step <= total for step in steps)
    assert (steps[-1] == total) if points else (steps == ())


def test_all_problems_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        plan(config(few_shot=50), train_rows=10, eval_rows=0, parameters=10 * GIB)
    text = str(caught.value)
    assert len(caught.value.problems) == 3
    assert "at most 10 (rows of train)" in text
    assert "data.eval" in text
    assert "160.0 GiB" in text
    assert "8.0 GiB" in text


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"train_rows": 0, "sequences": 0}, "data.train"),
        ({"eval_rows": 0}, "data.eval"),
        ({"sequences": 0}, "Raise data.max_length"),
        ({"parameters": GIB}, "Choose a smaller model"),
    ],
)
def test_each_problem_names_its_fix(counts: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(config(), **counts)
    assert len(caught.value.problems) == 1
    assert message in str(caught.value)


def test_memory_that_just_fits_is_no_problem_and_unknown_memory_neither() -> None:
    fits = GIB // BYTES_PER_PARAMETER
    assert "before activations" in plan(config(), parameters=fits, machine_memory=GIB).advice[-1]
    assert plan(config(), parameters=10 * GIB, machine_memory=None).machine_bytes is None


def test_settings_outside_the_usual_ranges_get_advice() -> None:
    lines = plan(config(learning_rate=1e-2, batch_size=64), parameters=100_000_000).advice
    assert [line.split(" is ")[0] for line in lines] == ["The effective batch", "train.learning_rate"]


@pytest.mark.parametrize(
    ("counts", "words"),
    [({"valid_rows": 0}, "uses rows of eval"), ({"eval_rows": 99}, "wide"), ({"sequences": 3}, "single step")],
)
def test_advice_about_the_data(counts: dict[str, int], words: str) -> None:
    assert any(words in line for line in plan(config(), **counts).advice)


def test_the_default_number_of_shots_adapts_to_few_rows_and_only_a_configured_one_is_refused() -> None:
    made = plan(config(), train_rows=3)
    assert "Few-shot prompts have 3 examples: train has no more rows." in made.advice
    with pytest.raises(ConfigError, match=r"baselines\.few_shot"):
        plan(config(few_shot=5), train_rows=3)
