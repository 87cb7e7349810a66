from __future__ import annotations

from typing import Any

import fakes
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulltune import Config, ConfigError
from fulltune.training import engine_check, engines

USUAL = {"epochs": 3, "learning_rate": 3e-5}


def _config(**options: Any) -> Config:
    return Config(**({"model": "m", "task": "causal-lm", "data": {"train": "x"}, "train": USUAL} | options))


@given(batch=st.integers(1, 64), accumulation=st.integers(1, 64), processes=st.integers(1, 64))
def test_all_processes_together_make_the_same_batch(batch: int, accumulation: int, processes: int) -> None:
    if batch * accumulation % processes:
        with pytest.raises(ConfigError, match="rows per step for"):
            engine_check.divided_batch(batch, accumulation, processes)
        return
    rows, steps = engine_check.divided_batch(batch, accumulation, processes)
    assert rows * steps * processes == batch * accumulation
    assert rows <= batch
    assert steps <= accumulation


def _launched(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in ({"RANK": "0", "WORLD_SIZE": "4"} | variables).items():
        monkeypatch.setenv(name, value)


def test_one_process_changes_nothing() -> None:
    assert engines.arguments(_config().train) == {}
    assert not engine_check.is_sharded_launch()
    engine_check.check(_config(regularize={"ewc": 1.0}))


def test_micro_batches_are_distributed_before_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    _launched(monkeypatch)
    found = engines.arguments(_config(train={"batch_size": 6, "accumulation": 2}).train)
    assert (found["per_device_train_batch_size"], found["gradient_accumulation_steps"]) == (3, 1)


def test_a_batch_that_does_not_divide_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _launched(monkeypatch)
    with pytest.raises(ConfigError, match=r"6 rows per step for 4 processes.*Change train\.batch_size"):
        engine_check.check(_config(train={"batch_size": 6}))


def test_what_a_sharded_engine_cannot_do_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    config = _config(method="lora", train={"optimizer": "adamw-8bit"}, regularize={"ewc": 1.0, "distill": 0.1})
    _launched(monkeypatch)
    engine_check.check(config)
    _launched(monkeypatch, ACCELERATE_USE_DEEPSPEED="true", ACCELERATE_DEEPSPEED_ZERO_STAGE="3")
    with pytest.raises(ConfigError) as raised:
        engine_check.check(config)
    message = str(raised.value)
    assert len(raised.value.problems) == 4
    for problem in ("lora with zero3", "adamw-8bit with zero3", "ewc with zero3", "distill with zero3", "preset ddp"):
        assert problem in message


@pytest.mark.parametrize(
    ("kind", "head", "names"),
    [
        ("gpt2", "lm", ["GPT2Block"]),
        ("llama", "lm", ["LlamaDecoderLayer"]),
        ("bert", "classification", ["BertLayer"]),
        ("t5", "lm", ["T5Block"]),
        ("bart", "lm", ["BartDecoderLayer", "BartEncoderLayer"]),
    ],
)
def test_blocks_are_sharded_one_by_one_and_embeddings_separately(kind: str, head: str, names: list[str]) -> None:
    assert engines.blocks(fakes.make(kind, head)[0]) == names


def test_the_model_is_copied_for_an_engine_that_shards_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = fakes.gpt2()
    assert engines.to_train(model) is model
    _launched(monkeypatch, ACCELERATE_USE_FSDP="true")
    assert engines.to_train(model) is not model
