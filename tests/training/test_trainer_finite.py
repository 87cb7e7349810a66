"""A loss or gradient norm that is not finite: no step is taken, the rows are named, the weights are intact."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import datasets
import fakes
import pytest
import torch
from matrix import often
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from transformers import DataCollatorForLanguageModeling, TrainerCallback

from fulltune import NonFiniteError, Trainer

TEXTS = [f"the tale of fox number {number}" for number in range(12)]


def _rows(tokenizer: Any, named: bool = False) -> list[dict[str, Any]]:
    encoded = [tokenizer(text).input_ids for text in TEXTS]
    return [{"input_ids": ids} | ({"row_id": f"tales:{i + 1}"} if named else {}) for i, ids in enumerate(encoded)]


def _break_loss(model: Any, at: int, value: float = float("nan")) -> None:
    """Multiply the logits of forward pass ``at`` (counted from 1) by ``value``."""
    calls = iter(range(1, 1000))

    def spoil(module: nn.Module, args: Any, output: Any) -> Any:
        if module.training and next(calls) == at:  # checks of the model run in eval mode
            return output * value
        return output

    model.get_output_embeddings().register_forward_hook(spoil)


def _break_gradient(model: Any, at: int) -> None:
    calls = iter(range(1, 1000))
    bias = model.transformer.ln_f.bias
    bias.register_hook(lambda gradient: gradient * float("inf") if next(calls) == at else gradient)


class StopAfter(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        control.should_training_stop = state.global_step >= self.step
        return control


def _args(folder: Path, **options: Any) -> Any:
    standard = {"per_device_train_batch_size": 2, "num_train_epochs": 1, "learning_rate": 1e-3}
    return fakes.arguments(folder, **(standard | options))


def _weights_after(folder: Path, steps: int, **options: Any) -> dict[str, Tensor]:
    model, tokenizer = fakes.gpt2()
    Trainer(
        model=model, args=_args(folder, **options), train_dataset=_rows(tokenizer), callbacks=[StopAfter(steps)]
    ).train()
    return model.state_dict()


@pytest.mark.parametrize(
    ("quantity", "options"),
    often(
        product(["loss", "gradient norm"], [{}, {"max_grad_norm": 0}, {"gradient_accumulation_steps": 2}]),
        lambda case: case in [("loss", {}), ("gradient norm", {"gradient_accumulation_steps": 2})],
    ),
)
def test_weights_are_those_of_the_last_good_step(quantity: str, options: dict[str, Any], tmp_path: Path) -> None:
    model, tokenizer = fakes.gpt2()
    trainer = Trainer(model=model, args=_args(tmp_path, **options), train_dataset=_rows(tokenizer))
    micro = options.get("gradient_accumulation_steps", 1)
    (_break_loss if quantity == "loss" else _break_gradient)(model, at=3 * micro)
    with pytest.raises(NonFiniteError) as raised:
        trainer.train()
    assert raised.value.step == 3
    assert raised.value.quantity == quantity
    assert len(raised.value.row_ids) == (2 if quantity == "loss" else 2 * micro)
    expected = _weights_after(tmp_path, 2, **options)
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert len(expected) > 20
    assert all(value.grad is None or not value.grad.any() for value in model.parameters())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_rows_of_the_offending_batch_are_named(value: float, tmp_path: Path) -> None:
    model, tokenizer = fakes.gpt2()
    _break_loss(model, at=2, value=value)
    args = _args(tmp_path, train_sampling_strategy="sequential")
    with pytest.raises(NonFiniteError, match=r"at step 2 \(rows tales:3, tales:4\)") as raised:
        Trainer(model=model, args=args, train_dataset=_rows(tokenizer, named=True)).train()
    assert raised.value.row_ids == ("tales:3", "tales:4")
    assert raised.value.exit_code == 3


@pytest.mark.parametrize(
    ("kind", "keep_columns", "workers"),
    [*((kind, keep, 0) for kind in ("list", "datasets", "columns") for keep in (False, True)), ("list", False, 1)],
)
def test_row_numbers_are_carried_with_any_kind_of_rows(
    kind: str, keep_columns: bool, workers: int, tmp_path: Path
) -> None:
    model, tokenizer = fakes.gpt2()
    _break_loss(model, at=4)
    rows = _rows(tokenizer)
    data: dict[str, Any] = {
        "list": rows,
        "datasets": datasets.Dataset.from_list(rows),
        "columns": tokenizer(TEXTS, padding=True),
    }
    args = _args(
        tmp_path,
        train_sampling_strategy="sequential",
        remove_unused_columns=not keep_columns,
        dataloader_num_workers=workers,
    )
    with pytest.raises(NonFiniteError) as raised:
        Trainer(model=model, args=args, train_dataset=data[kind]).train()
    assert raised.value.row_ids == ("6", "7")


def test_a_stream_has_no_row_numbers(tmp_path: Path) -> None:
    model, tokenizer = fakes.gpt2()
    _break_loss(model, at=2)

    class Stream(IterableDataset[dict[str, Any]]):
        def __iter__(self) -> Iterator[dict[str, Any]]:
            yield from _rows(tokenizer)

    with pytest.raises(NonFiniteError, match="rows unknown") as raised:
        Trainer(model=model, args=_args(tmp_path, max_steps=4), train_dataset=Stream()).train()
    assert raised.value.row_ids == ()


def test_a_batch_taken_outside_of_training_can_go_directly_to_the_model(tmp_path: Path) -> None:
    model, tokenizer = fakes.gpt2()
    trainer = Trainer(model=model, args=_args(tmp_path), train_dataset=_rows(tokenizer))
    batch = next(iter(trainer.get_train_dataloader()))
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert torch.isfinite(model(**batch).loss)


def test_training_continues_after_the_fault_is_fixed(tmp_path: Path) -> None:
    model, tokenizer = fakes.gpt2()
    _break_loss(model, at=2)
    trainer = Trainer(model=model, args=_args(tmp_path), train_dataset=_rows(tokenizer))
    with pytest.raises(NonFiniteError):
        trainer.train()
    trainer.train()
    assert trainer.state.global_step == 6


def test_a_step_in_which_no_token_is_masked_learns_nothing(tmp_path: Path) -> None:
    model, tokenizer = fakes.make("bert")
    before = copy.deepcopy(model.state_dict())
    trainer = Trainer(
        model=model,
        args=fakes.arguments(tmp_path, max_steps=2),
        train_dataset=[dict(tokenizer("a text")) for _ in range(4)],
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=1e-9),
    )
    trainer.train()
    assert [entry["loss"] for entry in trainer.state.log_history if "loss" in entry] == [0, 0]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
