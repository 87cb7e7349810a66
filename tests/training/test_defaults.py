"""Learning rate and epochs of a config that leaves them out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fakes
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fulltune
from fulltune.config import Config, load_config
from fulltune.pipeline.job import check_inputs, prepare_job
from fulltune.pipeline.planning import quick_plan, stored_model
from fulltune.training.defaults import ModelKind, epochs, learning_rate, with_defaults

TASKS = {"bert": "classification", "gpt2": "causal-lm", "t5": "seq2seq"}


def job(place: Path, kind: str, rows: int = 24, **sections: Any) -> dict[str, Any]:
    """Write a tiny model and rows for it; return a config without a section ``train``."""
    fakes.save(kind, place / kind)
    texts = [" ".join(fakes.WORDS[at : at + 4]) for at in range(rows)]
    lines = [
        json.dumps({"text": text, "label": "ab"[at % 2], "source": text, "target": text.split()[0]})
        for at, text in enumerate(texts)
    ]
    (place / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    columns = {"gpt2": ("text",), "bert": ("text", "label"), "t5": ("source", "target")}[kind]
    data = {"train": str(place / "rows.jsonl"), "eval": 0.25, "max_length": 16} | {name: name for name in columns}
    return {"model": str(place / kind), "task": TASKS[kind], "data": data, **sections}


@pytest.mark.parametrize(
    ("kind", "rate", "passes"), [("bert", 5e-4, 20), ("gpt2", 4e-4, 20), ("t5", 3e-3, 20)], ids=["bert", "gpt2", "t5"]
)
def test_a_config_without_training_options_gets_those_of_the_model(
    kind: str, rate: float, passes: float, tmp_path: Path
) -> None:
    asked = load_config(job(tmp_path, kind))
    prepared = prepare_job(asked, tmp_path / "runs")
    assert (prepared.config.train.rate, prepared.config.train.passes) == (rate, passes)
    assert asked.train.learning_rate is None  # another model or method still gets its own
    lora = prepared.with_config(asked.model_copy(update={"method": "lora"}))
    assert lora.config.train.rate == pytest.approx(min(1e-2, 10 * rate))


def test_the_plan_says_what_was_chosen_and_why(tmp_path: Path) -> None:
    plan = fulltune.plan(job(tmp_path, "bert"), out=tmp_path / "runs")
    rate, length = plan.chosen
    assert (
        rate == f"train.learning_rate is not set: 0.0005, which is usual for models of {plan.parameters:,} parameters."
    )
    assert length == "train.epochs is not set: 20, which is usual for 18 training sequences."
    assert plan.total_steps == 20 * plan.steps_per_epoch


@pytest.mark.parametrize("kind", TASKS)
def test_a_quick_plan_chooses_the_same(kind: str, tmp_path: Path) -> None:
    inputs, files = check_inputs(load_config(job(tmp_path, kind)), tmp_path / "runs")
    model = stored_model.read(files)
    assert model is not None
    quick = quick_plan.quick_plan(inputs, model)
    prepared = prepare_job(inputs.config, tmp_path / "runs")
    assert quick.chosen == prepared.chosen


def test_what_is_set_is_kept(tmp_path: Path) -> None:
    asked = job(tmp_path, "bert", train={"epochs": 1, "learning_rate": 1e-5})
    prepared = prepare_job(load_config(asked), tmp_path / "runs")
    assert (prepared.config.train, prepared.chosen) == (load_config(asked).train, ())
    shorter = prepare_job(load_config(asked | {"train": {"max_steps": 3}}), tmp_path / "runs")
    assert len(shorter.chosen) == 1  # epochs do not matter then


def test_a_run_writes_the_chosen_values_into_its_config(tmp_path: Path) -> None:
    asked = job(tmp_path, "bert", rows=12, baselines={"skip": ["tfidf", "linear_probe", "few_shot", "zero_shot"]})
    record = fulltune.run(asked, out=tmp_path / "runs")
    written = load_config(tmp_path / "runs" / record.run_id / "config.yaml")
    assert (written.train.learning_rate, written.train.epochs) == (5e-4, 20)
    assert record.training.learning_rate == 5e-4
    assert record.training.epochs == 20


@given(
    st.sampled_from(["encoder", "decoder", "encoder-decoder"]),
    st.integers(0, 10**11),
    st.integers(1, 10**6),
)
def test_small_data_gets_more_epochs_and_large_models_lower_rates(family: str, parameters: int, steps: int) -> None:
    kind = ModelKind(family, parameters)
    usual = epochs(kind, 10**9)
    chosen = epochs(kind, steps)
    assert usual <= chosen <= max(usual, 20)
    assert chosen in (usual, 20) or chosen * steps >= 250
    assert learning_rate(kind) <= learning_rate(ModelKind(family, 1_000_000))
    assert learning_rate(kind, "lora") == pytest.approx(min(1e-2, 10 * learning_rate(kind)))


def test_a_small_model_that_learns_sql_from_questions_alone_trains_longer() -> None:
    data = {"train": "x", "schema_in_prompt": "none"}
    config = Config(model="m", task="text2sql", data=data, train={"batch_size": 16})
    small, large = (with_defaults(config, ModelKind("encoder-decoder", size), 400) for size in (2_000_000, 10**9))
    assert (small.train.epochs, large.train.epochs) == (28, 10)


def test_a_value_that_is_not_chosen_yet_is_no_number() -> None:
    config = Config(model="m", task="causal-lm", data={"train": "x"})
    with pytest.raises(RuntimeError, match=r"train\.epochs is not known before the model is"):
        print(config.train.passes)
