"""Micro-batches split into parts of similar length: less is computed, and the step is the same."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fulltune import Trainer
from fulltune.config import Config, load_config
from fulltune.errors import ConfigError
from fulltune.pipeline.planning.probe_steps import widest
from fulltune.tasks.base import Features
from fulltune.training.batches import unpadding
from fulltune.training.batches.buckets import padding_shares
from fulltune.training.batches.unpadding import OVERHEAD, Lengths, parts, unpadded
from fulltune.training.device import unpads
from fulltune.training.fit import fit
from fulltune.training.methods.full import Full
from fulltune.training.regularization.dropout import set_dropout

LENGTHS = st.lists(st.tuples(st.integers(1, 600), st.integers(0, 200)), min_size=1, max_size=8)


def cost(lengths: list[Lengths], found: list[list[int]]) -> int:
    widths = [sum(max(lengths[row][side] for row in part) for side in (0, 1)) for part in found]
    return sum(OVERHEAD + len(part) * width for part, width in zip(found, widths, strict=True))


@settings(max_examples=200, deadline=None)
@given(LENGTHS)
def test_the_cheapest_split_of_sorted_rows_is_used(lengths: list[Lengths]) -> None:
    found = parts(lengths)
    assert sorted(row for part in found for row in part) == list(range(len(lengths)))
    order = sorted(range(len(lengths)), key=lambda row: lengths[row], reverse=True)
    places = range(1, len(order))
    ways = [
        [order[a:b] for a, b in itertools.pairwise((0, *cuts, len(order)))]
        for count in range(len(order))
        for cuts in itertools.combinations(places, count)
    ]
    assert cost(lengths, found) == min(cost(lengths, way) for way in ways)


def test_rows_of_one_length_stay_together_in_their_order() -> None:
    assert parts([(300, 0)] * 16) == [list(range(16))]
    assert parts([(9, 0), (30, 0), (20, 0)]) == [[0, 1, 2]], "a part costs more than this padding"
    assert parts([(60, 0)] * 15 + [(512, 0)]) == [[15], list(range(15))]


def batch_of(widths: list[int], **more: Any) -> dict[str, Any]:
    ids = torch.nn.utils.rnn.pad_sequence([torch.arange(1, width + 1) for width in widths], batch_first=True)
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), **more}


def test_parts_hold_every_token_and_hardly_any_padding() -> None:
    batch = batch_of([60, 500, 64, 58], labels=torch.tensor([0, 1, 2, 3]), weight=torch.tensor(2.0), name="all")
    long, short = unpadded(batch, "class")
    assert long["input_ids"].tolist() == [list(range(1, 501))]
    assert short["input_ids"].shape == short["attention_mask"].shape == (3, 64)
    assert [long["labels"].tolist(), sorted(short["labels"].tolist())] == [[1], [0, 2, 3]]
    for row, label in zip(short["input_ids"], short["labels"], strict=True):
        assert torch.equal(row, batch["input_ids"][label, :64])
    assert (short["weight"], short["name"]) == (batch["weight"], "all")
    assert batch["input_ids"].shape == (4, 500), "the batch itself is left alone"


def test_labels_that_are_a_separate_text_are_trimmed_too() -> None:
    labels = torch.full((4, 90), -100)
    for row, width in enumerate((3, 4, 90, 5)):
        labels[row, :width] = 7
    first, second = unpadded(batch_of([300, 40, 300, 44], labels=labels), "seq2seq")
    assert (first["input_ids"].shape, first["labels"].shape) == ((2, 300), (2, 90))
    assert (second["input_ids"].shape, second["labels"].shape) == ((2, 44), (2, 5))


def test_batches_that_cannot_be_split_or_gain_nothing_are_unchanged() -> None:
    even = batch_of([200, 198, 200])
    on_the_left = batch_of([500, 60, 60])
    packed = batch_of([500, 60, 60])
    on_the_left = {name: value.flip(1) for name, value in on_the_left.items()}
    del packed["attention_mask"]
    for batch in (even, on_the_left, packed, "no batch"):
        assert unpadded(batch, "class")[0] is batch


# ---- The step is the same ----


def rows_of(kind: str, count: int = 24) -> list[dict[str, Any]]:
    rows = []
    for number in range(count):
        ids = [5 + (number * step) % 40 for step in range(60 if number % 6 == 1 else 3 + number % 5)]
        labels: Any = number % 2 if kind == "bert" else ids[: 2 + number % 9] if kind == "t5" else ids
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def trained(folder: Path, kind: str, unpad: bool, most: int = 99, **options: Any) -> tuple[Trainer, list[int]]:
    model, _ = fakes.make(kind, "classification" if kind == "bert" else "lm")
    set_dropout(model, 0.0)
    known = {"r_drop", "class_weights"} & options.keys()
    kwargs = {name: options.pop(name) for name in known}
    settings = {"max_steps": 3, "per_device_train_batch_size": 6, "train_sampling_strategy": "sequential"}
    args = fakes.arguments(folder, **(settings | options))
    trainer = Trainer(model=model, args=args, train_dataset=rows_of(kind), unpad=unpad, **kwargs)
    seen: list[int] = []

    def before(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["input_ids"].numel())
        if len(kwargs["input_ids"]) > most:
            torch.empty(2**57)

    model.register_forward_pre_hook(before, with_kwargs=True)
    trainer.train()
    return trainer, seen


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("gpt2", {}),
        ("bert", {"gradient_accumulation_steps": 2}),
        ("bert", {"class_weights": [0.5, 2.0], "label_smoothing_factor": 0.1}),
        ("bert", {"r_drop": 1.0}),
        ("t5", {"label_smoothing_factor": 0.1, "gradient_accumulation_steps": 2}),
    ],
    ids=str,
)
def test_parts_make_the_same_step_as_the_complete_batch(
    kind: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpadding, "OVERHEAD", 16)
    whole, computed = trained(tmp_path, kind, False, **dict(options))
    cut, less = trained(tmp_path, kind, True, **dict(options))
    assert len(less) > len(computed)
    assert sum(less) < sum(computed) / 2
    losses = [[entry["loss"] for entry in one.state.log_history if "loss" in entry] for one in (whole, cut)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert cut._fulltune.step.padding.fraction < whole._fulltune.step.padding.fraction / 2
    for name, value in cut.model.state_dict().items():
        torch.testing.assert_close(value, whole.model.state_dict()[name], rtol=1e-4, atol=1e-4)


def test_a_part_that_does_not_fit_is_split_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpadding, "OVERHEAD", 16)
    whole, _ = trained(tmp_path, "bert", False)
    cut, _ = trained(tmp_path, "bert", True, most=3)
    assert len(cut._fulltune.step.micro_batches.events) == 1
    for name, value in cut.model.state_dict().items():
        torch.testing.assert_close(value, whole.model.state_dict()[name], rtol=1e-4, atol=1e-4)


# ---- What is reported ----


def job(*overrides: str) -> Config:
    train = {"epochs": 2, "batch_size": 6, "learning_rate": 3e-5, "evaluations": 0}
    given = {"model": "fake", "task": "classification", "data": {"train": "none.jsonl"}, "train": train}
    return load_config(given, overrides)


def features(long: int = 60) -> list[Features]:
    return [Features([5] * (long if number % 6 == 1 else 4), number % 2, f"row:{number}") for number in range(48)]


def test_a_run_reports_the_padding_that_was_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpadding, "OVERHEAD", 16)
    found = {}
    for switch in ("auto", "off"):
        config = job(f"speed.unpad={switch}", "trainer.train_sampling_strategy=random")
        bundle = fakes.bundle("bert", "classification")
        found[switch] = fit(bundle, Full(config), features(), None, config, output_dir=tmp_path).training.padding
        assert padding_shares(config, features())["used"] == pytest.approx(found[switch], abs=0.1)
    assert found["auto"] < 0.05 < 0.5 < found["off"]


def test_memory_is_planned_for_the_largest_part() -> None:
    rows = features(600)
    assert widest(job("speed.unpad=off"), rows, "encoder") == (6, 600)
    most, longest = widest(job(), rows, "encoder")
    assert longest == 600
    assert 1 <= most <= 6
    short = [Features([5] * (600 if number == 0 else 40), 0, str(number)) for number in range(48)]
    assert widest(job(), short, "encoder") == (1, 600)
    assert widest(job(), short, "decoder") == (6, 600), "a decoder may pack them"


def test_unpadding_is_for_the_cpu_and_can_be_turned_off() -> None:
    assert unpads(job(), "cpu")
    assert not unpads(job(), "cuda")
    assert not unpads(job("speed.unpad=off"), "cpu")
    assert not unpads(job("trainer.neftune_noise_alpha=5"), "cpu")
    with pytest.raises(ConfigError, match=r"speed\.unpad"):
        job("speed.unpad=sometimes")
