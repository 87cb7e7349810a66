"""Micro-batches with a token budget: a pure function of lengths, seed and epoch."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import fakes
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matrix import often

from fulltune import Trainer
from fulltune.config import Config, load_config
from fulltune.tasks.base import Features
from fulltune.training.arguments import total_steps
from fulltune.training.batches.buckets import BudgetSampler, batch_count, budget_batches, micro_batches, padding_shares
from fulltune.training.fit import fit
from fulltune.training.methods.full import Full

LENGTHS = st.lists(st.tuples(st.integers(1, 120), st.integers(0, 20)), min_size=1, max_size=60)


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(1, 400), st.integers(0, 3), st.integers(0, 5))
def test_every_row_once_within_the_budget_and_a_known_count(
    lengths: list[tuple[int, int]], budget: int, seed: int, epoch: int
) -> None:
    batches = budget_batches(lengths, budget, seed, epoch)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert len(batches) == batch_count(lengths, budget)
    for batch in batches:
        source, target = (max(lengths[row][side] for row in batch) for side in (0, 1))
        assert len(batch) == 1 or len(batch) * (source + target) <= budget
    assert batches == budget_batches(lengths, budget, seed, epoch)


def test_rows_of_similar_length_are_shuffled_every_epoch_and_the_longest_come_first() -> None:
    lengths = [(length, 0) for length in range(8, 72)] * 3
    first, second = (budget_batches(lengths, 512, 17, epoch) for epoch in (0, 1))
    assert {tuple(sorted(batch)) for batch in first} != {tuple(sorted(batch)) for batch in second}
    assert max(lengths) in [lengths[row] for row in first[0]]
    assert first != budget_batches(lengths, 512, 18, 0)
    widths = [max(lengths[row][0] for row in batch) for batch in first]
    assert widths != sorted(widths, reverse=True), "batches come in shuffled order, not from long to short"


def test_padding_is_small_and_batches_are_full() -> None:
    lengths = [(1 + (7 * number) % 200, 0) for number in range(400)]
    batches = budget_batches(lengths, 2048, 3, 0)
    computed = sum(len(batch) * max(lengths[row][0] for row in batch) for batch in batches)
    tokens = sum(length for length, _ in lengths)
    assert 1 - tokens / computed < 0.08
    assert computed / len(batches) > 0.8 * 2048


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_batches_are_divided_among_processes(processes: int) -> None:
    lengths = [(1 + number % 50, 0) for number in range(101)]
    shares = [BudgetSampler(lengths, 256, 5, rank, processes) for rank in range(processes)]
    taken = [list(share) for share in shares]
    assert len({len(share) for share in taken}) == 1
    assert all(len(share) == len(batches) for share, batches in zip(shares, taken, strict=True))
    assert {row for batches in taken for batch in batches for row in batch} == set(range(101))


def _features(kind: str, count: int = 40) -> list[Features]:
    rows = []
    for number in range(count):
        ids = [5 + (number * step) % 60 for step in range(2 + (number * 13) % 37)]
        labels = ids[: 1 + number % 5] if kind == "t5" else list(ids)
        rows.append(Features(ids, labels, f"row:{number}"))
    return rows


def _config(*overrides: str) -> Config:
    given = {
        "model": "fake",
        "task": "causal-lm",
        "data": {"train": "none.jsonl"},
        "train": {"epochs": 2, "batch_size": 8, "learning_rate": 3e-5, "evaluations": 0},
    }
    return load_config(given, overrides)


@pytest.mark.parametrize(
    ("kind", "accumulation"),
    often(product(["gpt2", "t5"], [1, 3]), lambda case: case in [("gpt2", 3), ("t5", 1)]),
)
def test_steps_are_known_beforehand(kind: str, accumulation: int, tmp_path: Path) -> None:
    config = _config("speed.batch_tokens=160", f"train.accumulation={accumulation}")
    bundle, features = fakes.bundle(kind), _features(kind)
    batches = micro_batches(config.speed.batch_tokens, features, is_encoder_decoder=kind == "t5")
    assert batches is not None
    assert batches != len(features) / config.train.batch_size
    result = fit(bundle, Full(config), features, None, config, output_dir=tmp_path)
    assert result.training.steps == total_steps(config.train, len(features), batches)
    if kind == "t5":  # a packed document of one token is not counted
        assert result.training.tokens == 2 * sum(len(one.input_ids) for one in features)


def test_without_a_budget_nothing_is_counted() -> None:
    assert micro_batches(None, _features("gpt2"), is_encoder_decoder=False) is None


def test_tokens_that_a_method_prepends_count() -> None:
    config, features = _config("speed.batch_tokens=160"), _features("gpt2")
    plain = micro_batches(config.speed.batch_tokens, features, is_encoder_decoder=False)
    reserved = micro_batches(config.speed.batch_tokens, features, is_encoder_decoder=False, reserved=20)
    assert plain is not None
    assert reserved is not None
    assert reserved > plain


def test_a_resumed_epoch_continues_with_the_remaining_batches(tmp_path: Path) -> None:
    """Skip batches of an epoch's loader by their count: the remaining ones are unchanged."""
    model, _ = fakes.gpt2()
    rows = [{"input_ids": one.input_ids, "labels": one.labels} for one in _features("gpt2")]
    trainer = Trainer(model=model, args=fakes.arguments(tmp_path), train_dataset=rows, batch_tokens=160)
    loader = trainer.get_train_dataloader()
    loader.set_epoch(1)
    whole = [batch["input_ids"].tolist() for batch in loader]
    skipped = trainer.accelerator.skip_first_batches(trainer.get_train_dataloader(), 3)
    skipped.batch_sampler.batch_sampler.set_epoch(1)
    assert [batch["input_ids"].tolist() for batch in skipped] == whole[3:]
    assert len(whole) > 5


@pytest.mark.parametrize(
    "overrides", [(), ("speed.batch_tokens=160",), ("trainer.train_sampling_strategy=random",)], ids=str
)
def test_the_plan_reports_the_padding(overrides: tuple[str, ...]) -> None:
    shares: Any = padding_shares(_config(*overrides), _features("gpt2", 200))
    assert 0.2 < shares["random"] < 0.7
    assert shares["used"] == shares["random"] if "random" in str(overrides) else shares["used"] < shares["random"] / 2


def test_an_unquoted_off_in_yaml_is_a_string(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(
        "model: fake\ntask: causal-lm\ndata: {train: none.jsonl, chat: on}\n"
        "speed: {packing: off, kernels: off, unpad: off}\n"
    )
    config = load_config(file)
    assert (config.speed.packing, config.speed.kernels, config.data.chat) == ("off", "off", "on")
    assert config.speed.unpad == "off"
