"""Packed documents are kept apart: the same logits, losses and weights as with one document per row."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BloomConfig, BloomForCausalLM, Qwen2Config, Qwen2ForCausalLM

from fulltune.config import Config, load_config
from fulltune.tasks.base import Features
from fulltune.training.batches import packing
from fulltune.training.batches.collate import Collator
from fulltune.training.fit import TrainingResult, fit
from fulltune.training.methods.full import Full

LENGTHS = (3, 17, 5, 9, 1, 2, 12, 4)


def _qwen() -> Any:
    config = Qwen2Config(
        vocab_size=260, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(1)
    return Qwen2ForCausalLM(config).eval()


def _model(kind: str, attention: str) -> Any:
    model: Any = _qwen() if kind == "qwen" else fakes.make(kind)[0]
    model.set_attn_implementation(attention)
    return model


def _documents(lengths: tuple[int, ...] = LENGTHS) -> list[dict[str, Any]]:
    random = torch.Generator().manual_seed(5)
    rows = [torch.randint(5, 250, (length,), generator=random).tolist() for length in lengths]
    return [{"input_ids": row, "labels": list(row), "row_id": str(number)} for number, row in enumerate(rows)]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen"])
def test_packed_logits_are_those_of_each_document_alone(kind: str, attention: str) -> None:
    model, documents = _model(kind, attention), _documents()
    assert packing.keeps_documents_apart(model)
    batch = Collator(0, packed=True)(documents)
    assert batch["input_ids"].shape[0] < len(documents)
    assert batch["input_ids"].shape[1] == max(LENGTHS)
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    for row, numbers in enumerate(packing.groups(LENGTHS)):
        start = 0
        for number in numbers:
            ids = documents[number]["input_ids"]
            assert batch["input_ids"][row, start : start + len(ids)].tolist() == ids
            with torch.no_grad():
                alone = model(input_ids=torch.tensor([ids])).logits[0]
            assert torch.allclose(logits[row, start : start + len(ids)], alone, atol=1e-5)
            start += len(ids)


def test_a_model_that_mixes_packed_documents_is_detected() -> None:
    """Bloom uses distances instead of positions, and would see the documents as one."""
    bloom = BloomForCausalLM(BloomConfig(vocab_size=90, hidden_size=32, n_layer=1, n_head=2)).train()
    assert not packing.keeps_documents_apart(bloom)
    assert bloom.training
    assert not packing.packs(bloom, _config())
    assert not packing.packs(fakes.make("gpt2", "classification")[0], _config())
    assert not packing.packs(fakes.make("t5")[0], _config())


def test_gradients_of_padding_next_to_packed_documents_are_checked() -> None:
    class Root(torch.autograd.Function):
        """A root whose gradient is NaN at the first token of a text that ends there."""

        @staticmethod
        def forward(ctx: Any, hidden: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(hidden)
            return hidden.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            silent = (gradients[0] == 0).all(dim=-1, keepdim=True)
            return gradients[0].masked_fill(silent & (gradients[0].shape[0] > 1), float("nan"))

    model = _model("llama", "sdpa")
    assert packing.keeps_documents_apart(model)
    model.model.norm.register_forward_hook(lambda module, args, output: Root.apply(output))
    assert not packing.keeps_documents_apart(model)


def test_padding_next_to_packed_documents_is_an_ordinary_token() -> None:
    packed = packing.pack(
        [{"input_ids": [7, 8, 9, 4], "labels": [7, 8, 9, 4]}] + 2 * [{"input_ids": [5], "labels": [5]}]
    )
    assert packed is not None
    assert packed["input_ids"].tolist() == [[7, 8, 9, 4], [5, 5, 7, 7]]


def test_packing_is_off_on_request_or_where_it_would_change_numbers() -> None:
    model, _ = fakes.gpt2()
    assert packing.packs(model, _config())
    assert not packing.packs(model, _config("speed.packing=off"))
    assert not packing.packs(model, _config("trainer.neftune_noise_alpha=5.0"))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12))
def test_every_document_is_packed_once_and_none_is_cut(lengths: list[int]) -> None:
    rows = packing.groups(lengths)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    assert all(sum(lengths[number] for number in row) <= max(lengths) for row in rows)
    # Two rows that are both at most half full would have been one.
    assert sum(2 * sum(lengths[number] for number in row) <= max(lengths) for row in rows) <= 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(2, 30), min_size=2, max_size=10))
def test_packing_keeps_the_number_of_labels_and_tokens(lengths: list[int]) -> None:
    documents = _documents(tuple(lengths))
    plain, packed = Collator(0)(documents), Collator(0, packed=True)(documents)
    assert (packed["labels"][:, 1:] != -100).sum() == (plain["labels"][:, 1:] != -100).sum()
    counted = packing.with_token_mask(packed)["attention_mask"].sum()
    assert counted == sum(lengths)


def test_padding_is_counted() -> None:
    count = packing.PaddingCount()
    assert count.fraction != count.fraction
    count.add(packing.with_token_mask(Collator(0, packed=True)(_documents((4, 2, 1, 2)))))
    assert (count.tokens, count.positions) == (8, 12)
    count.add({"attention_mask": torch.tensor([[1, 1, 0, 0]])})
    assert count.fraction == pytest.approx(1 - 10 / 16)


def test_rows_without_padding_to_save_are_unchanged() -> None:
    batch = Collator(0, packed=True)(_documents((9, 8, 7)))
    assert "attention_mask" in batch
    assert "position_ids" not in batch


def _config(*overrides: str) -> Config:
    given = {
        "model": "fake",
        "task": "causal-lm",
        "data": {"train": "none.jsonl"},
        "train": {"epochs": 2, "batch_size": 4, "learning_rate": 1e-3, "accumulation": 2, "evaluations": 1},
        "trainer": {"train_sampling_strategy": "random"},
    }
    return load_config(given, ["regularize.dropout=0.0", *overrides])


def _trained(folder: Path, *overrides: str, kind: str = "gpt2") -> tuple[dict[str, torch.Tensor], TrainingResult]:
    bundle, config = fakes.bundle(kind), _config(*overrides)
    features = [Features(one["input_ids"], one["labels"], one["row_id"]) for one in _documents(LENGTHS * 2)]
    result = fit(bundle, Full(config), features, features[:5], config, output_dir=folder)
    return {name: value.clone() for name, value in bundle.model.state_dict().items()}, result


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_training_gives_the_same_weights_and_curve_packed_and_unpacked(kind: str, tmp_path: Path) -> None:
    packed, result = _trained(tmp_path / "packed", kind=kind)
    plain, expected = _trained(tmp_path / "plain", "speed.packing=off", kind=kind)
    assert all(torch.allclose(packed[name], plain[name], atol=2e-5) for name in plain)
    assert result.training.packed
    assert not expected.training.packed
    assert result.training.steps == expected.training.steps
    assert result.training.padding < expected.training.padding / 2
    ours, theirs = ([step.eval_loss for step in one.steps if step.eval_loss] for one in (result, expected))
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert len(ours) >= 2


def test_tokens_are_counted_the_same_packed_and_unpacked(tmp_path: Path) -> None:
    _, packed = _trained(tmp_path / "packed")
    _, plain = _trained(tmp_path / "plain", "speed.packing=off")
    alone = sum(1 for length in LENGTHS * 2 if length == 1) * 2
    assert plain.training.tokens - packed.training.tokens <= alone
    assert replace(packed, steps=()).training.rows == len(LENGTHS) * 2


def test_the_end_of_a_packed_document_is_not_taken_for_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers also asks for an attention mask where a row without one ends in the padding token."""
    logger = logging.getLogger("transformers.modeling_utils")
    monkeypatch.setattr(logger, "filters", [])
    monkeypatch.setattr(logger, "warning_once", logger.warning)
    handler = _Messages()
    monkeypatch.setattr(logger, "handlers", [handler])
    model = _model("gpt2", "sdpa")
    model.config.pad_token_id = 7
    model(input_ids=torch.tensor([[5, 6, 7]]))
    assert len(handler.messages) == 1
    assert packing.packs(model, _config())
    model(input_ids=torch.tensor([[5, 6, 7]]))
    assert len(handler.messages) == 1


class _Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
