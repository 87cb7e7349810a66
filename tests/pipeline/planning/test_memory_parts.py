"""Memory by part, and the changes that would make a job fit, each with its own figure."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import BertConfig, GPT2Config, T5Config

from fulltune.config import Config, load_config
from fulltune.pipeline.planning import memory
from fulltune.pipeline.planning.footprint import Footprint

GIB = 2**30

#: Enough steps for checkpoints.
STEPS = 1000


def job(**sections: Any) -> Config:
    return load_config({"model": "m", "task": "t", "data": {"train": "x"}, "checkpoints": None, **sections})


def footprint(rows: int = 8, **changed: Any) -> Footprint:
    """Return the footprint of a model of 1 GiB whose steps take 1 GiB per row."""
    taken = {count: (count * GIB, GIB, -count * GIB) for count in (2, 3)}
    usual: dict[str, Any] = {"width": 512, "weights": GIB, "gradients": GIB, "optimizer": 2 * GIB, "timelines": taken}
    return Footprint(rows=rows, is_accumulated=False, seconds={}, **(usual | changed))


def test_parts_add_up_to_the_peak() -> None:
    found = memory.parts(job(), footprint(), program=GIB, base=0, steps=STEPS)
    training = {"weights": 1, "gradients": 1, "optimizer state": 2, "activations": 8}
    assert {name: size / GIB for name, size in found.items() if name in training} == training
    assert found["program and data"] == GIB
    assert found["allocator"] == round(memory.SLACK * 12 * GIB)
    assert "base model" not in found


def test_regularizers_and_checkpoints_hold_copies() -> None:
    config = job(checkpoints={}, regularize={"ewc": 1.0})
    found = memory.parts(config, footprint(), program=GIB, base=GIB, steps=STEPS)
    assert found["copies for regularizers"] == 2 * GIB
    assert found[memory.COPY] == 3 * GIB
    assert memory.essential(found) == sum(found.values()) - 3 * GIB


@pytest.mark.parametrize(
    ("every", "steps", "is_written"), [(None, 10, False), (None, 11, True), (7, 7, False), (7, 8, True)]
)
def test_a_training_that_ends_before_its_first_checkpoint_holds_no_copy(
    every: int | None, steps: int, is_written: bool
) -> None:
    found = memory.parts(job(checkpoints={"every": every}), footprint(), program=GIB, base=0, steps=steps)
    assert (memory.COPY in found) is is_written


def ways(limit: int, config: Config | None = None, **changed: Any) -> dict[str, float]:
    recomputing = footprint(timelines={2: (GIB, GIB, -GIB), 3: (GIB, GIB, -GIB)})
    options = {"recomputing": recomputing} | changed
    config = config or job(train={"batch_size": 8})
    found = memory.proposals(config, footprint(), limit=limit, program=0, base=0, steps=STEPS, **options)
    return {one.change: one.bytes / GIB / (1 + memory.SLACK) for one in found}


def test_proposals_come_in_order_with_their_figures() -> None:
    found = ways(limit=9 * GIB)
    assert list(found) == [
        "train.batch_size: 2 with train.accumulation: 4",
        "train.gradient_checkpointing: true",
        "train.optimizer: adamw-8bit",
        "all of these together",
        "sharding over 2 processes (fulltune launch)",
    ]
    small, recomputing, light, every, sharded = found.values()
    # Gradients of earlier micro-batches are held during the step.
    assert small == pytest.approx(1 + 2 + (1 + 3))
    assert recomputing == pytest.approx(1 + 2 + 2)
    assert light == pytest.approx(1 + 0.508 + 9, abs=1e-3)
    assert every < min(small, recomputing, light)
    slack = memory.SLACK
    assert sharded * (1 + slack) == pytest.approx((1 + 1 + 2) / 2 + 4 + slack * (1 + 1 + 2 + 4))


def test_options_already_in_use_are_not_proposed() -> None:
    config = job(train={"batch_size": 1})
    found = memory.proposals(config, footprint(rows=1, optimizer=GIB // 4), None, GIB, program=0, base=0, steps=STEPS)
    assert [one.change for one in found] == ["sharding over 2 processes (fulltune launch)"]


def test_with_a_token_budget_the_budget_is_lowered() -> None:
    config = job(speed={"batch_tokens": 4096})
    assert next(iter(ways(9 * GIB, config))) == "speed.batch_tokens: 1024 with train.accumulation: 4"


def test_a_refusal_lists_the_memory_by_part_and_every_fix() -> None:
    taken = memory.parts(job(), footprint(), program=GIB, base=0, steps=STEPS)
    limit = 8 * GIB
    found = memory.proposals(job(), footprint(), None, limit, program=GIB, base=0, steps=STEPS)
    text = str(memory.refusal(taken, limit, list(found)))
    assert "training needs 13.6 GiB (activations 8.0 GiB, optimizer state 2.0 GiB" in text
    assert "at most 8.0 GiB" in text
    fits, _, short = text.partition("Not enough alone: ")
    assert "Any of these makes it fit: " in fits
    assert "train.batch_size: 1 with train.accumulation: 8" in fits
    assert "train.optimizer: adamw-8bit (12." in short


def test_a_refusal_without_a_fix_reports_that() -> None:
    text = str(memory.refusal({"weights": 9 * GIB}, GIB, []))
    assert "Choose a smaller model, or more memory" in text


@pytest.mark.parametrize("config", [GPT2Config(), BertConfig(), T5Config()])
def test_a_rough_bound_is_known_for_all_families(config: Any) -> None:
    few, many = (memory.rough_step_bytes(config, rows, 128) for rows in (1, 8))
    assert few is not None
    assert many == pytest.approx(8 * few)
    longer = memory.rough_step_bytes(config, 1, 256)
    assert longer is not None
    assert longer > 2 * few


def test_unknown_sizes_give_no_bound() -> None:
    assert memory.rough_step_bytes(object(), 1, 1) is None
