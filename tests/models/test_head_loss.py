"""The loss computed at the head: the same numbers as with logits, and no tensor of the size of the logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Gemma2Config, Gemma2ForCausalLM

from fulltune import Trainer
from fulltune.models import head_loss
from fulltune.models.head_loss import LossAtHead, loss_at, takes_loss_at_head
from fulltune.models.losses import shift, token_cross_entropy

KINDS = ("gpt2", "llama", "bert", "t5")
LENGTH = 24


class Largest(TorchDispatchMode):
    """Record the size of the largest tensor that any operation creates."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return made


@pytest.fixture
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use several stretches per batch, however small the batch is."""
    monkeypatch.setattr(head_loss, "CHUNK_BYTES", 4 * 5 * 270)
    monkeypatch.setattr(head_loss, "MIN_BYTES", 0)


def _batch(kind: str, rows: int = 3, unlabeled: float = 0.4, **options: Any) -> tuple[Any, dict[str, Tensor], Tensor]:
    """Return a model, its inputs, and labels aligned with its logits."""
    model, _ = fakes.make(kind, **options)
    random = torch.Generator().manual_seed(3)
    ids = torch.randint(5, 80, (rows, LENGTH), generator=random)
    labels = ids.masked_fill(torch.rand(ids.shape, generator=random) < unlabeled, -100)
    inputs = {"input_ids": ids}
    if kind in ("t5", "bart"):
        inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels)
    return model, inputs, shift(labels) if kind in ("gpt2", "llama") else labels


def _gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.usefixtures("short_stretches")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("unlabeled", [0.0, 0.4, 0.95, 1.0])
def test_loss_and_gradients_are_those_of_the_logits(kind: str, smoothing: float, unlabeled: float) -> None:
    model, inputs, labels = _batch(kind, unlabeled=unlabeled)
    sums, counts = token_cross_entropy(model(**inputs).logits, labels, smoothing)
    total = max(1, int(counts.sum()))
    expected = _gradients(model, sums.sum() / total)
    with loss_at(model.get_output_embeddings(), labels, smoothing) as found:
        model(**inputs)
    assert torch.allclose(found.losses.sum(dim=1), sums, atol=1e-5)
    assert found.total.item() == pytest.approx(sums.sum().item(), rel=1e-6, abs=1e-6)
    gradients = _gradients(model, found.total / total)
    assert gradients.keys() == expected.keys()
    assert len(expected) > 10
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, expected[name], rtol=1e-5, atol=1e-6), name


@pytest.mark.usefixtures("short_stretches")
def test_heads_with_a_bias_and_frozen_heads() -> None:
    model, inputs, labels = _batch("llama")
    head = model.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.randn(head.out_features))
    head.weight.requires_grad_(False)
    sums, _ = token_cross_entropy(model(**inputs).logits, labels)
    expected = _gradients(model, sums.sum())
    with loss_at(head, labels) as found:
        model(**inputs)
    gradients = _gradients(model, found.total)
    assert gradients.keys() == expected.keys()
    assert "lm_head.bias" in expected
    assert "lm_head.weight" not in expected
    assert all(torch.allclose(gradients[name], expected[name], rtol=1e-4, atol=1e-5) for name in expected)


@pytest.mark.usefixtures("short_stretches")
def test_the_loss_in_mixed_precision_is_that_of_the_logits() -> None:
    model, inputs, labels = _batch("gpt2")
    with torch.autocast("cpu", torch.bfloat16):
        sums, _ = token_cross_entropy(model(**inputs).logits, labels)
        with loss_at(model.get_output_embeddings(), labels) as found:
            model(**inputs)
    assert found.total.item() == pytest.approx(sums.sum().item(), rel=1e-5)
    assert found.total.dtype == torch.float32
    assert all(gradient.isfinite().all() for gradient in _gradients(model, found.total).values())


def test_the_forward_of_the_head_is_restored_even_after_an_error() -> None:
    model, inputs, labels = _batch("gpt2")
    head = model.get_output_embeddings()
    calls: list[int] = []
    plain = head.forward
    head.forward = lambda hidden: (calls.append(len(hidden)), plain(hidden))[1]
    patched = head.forward
    with pytest.raises(IndexError), loss_at(head, labels):
        model(input_ids=inputs["input_ids"] + 10_000)
    assert head.forward is patched
    with loss_at(head, labels):
        model(**inputs)
    assert calls, "what another has put in place of the head's forward is still called"


def test_models_that_change_their_logits_keep_them() -> None:
    """BART adds a bias to the output of its head, and Gemma 2 caps it."""
    bart, inputs, labels = _batch("bart")
    assert not takes_loss_at_head(bart, bart.get_output_embeddings(), inputs, labels)
    config = Gemma2Config(
        vocab_size=90, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, pad_token_id=0,
    )  # fmt: skip
    gemma = Gemma2ForCausalLM(config).train()
    assert not takes_loss_at_head(gemma, gemma.get_output_embeddings(), {"input_ids": labels.clamp(min=1)}, labels)
    assert gemma.training
    model, inputs, labels = _batch("gpt2")
    assert takes_loss_at_head(model, model.get_output_embeddings(), inputs, labels)
    assert not takes_loss_at_head(model, None, inputs, labels)


def test_small_batches_are_left_alone() -> None:
    model, inputs, labels = _batch("gpt2")
    assert LossAtHead(model.get_output_embeddings()).run(model, inputs, labels, 0.0) is None


def _trainer(kind: str, folder: Path, **options: Any) -> Trainer:
    model, tokenizer = fakes.make(kind)
    texts = ("the court shall", "a", "a fox and a dog and a cat", "law is law", "no", "the king of the tale is old")
    rows = [{"input_ids": ids, "labels": list(ids)} for text in texts for ids in [tokenizer(text).input_ids]]
    arguments = fakes.arguments(folder, num_train_epochs=2, per_device_train_batch_size=4, seed=3, **options)
    return Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)


@pytest.mark.parametrize("kind", [*KINDS, "bart"])
def test_training_and_evaluation_give_the_same_numbers_either_way(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"label_smoothing_factor": 0.1, "gradient_accumulation_steps": 2}
    plain = _trainer(kind, tmp_path / "plain", **options)
    plain.train()
    expected = plain.evaluate()["eval_loss"]
    monkeypatch.setattr(head_loss, "CHUNK_BYTES", 4 * 5 * 270)
    monkeypatch.setattr(head_loss, "MIN_BYTES", 0)
    trainer = _trainer(kind, tmp_path / "head", **options)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    for one, other in zip(trainer.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    assert trainer._fulltune.loss.at_head is not None
    assert trainer._fulltune.loss.at_head.fits is (kind != "bart")


def test_logits_are_available_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_loss, "MIN_BYTES", 0)
    trainer = _trainer("gpt2", tmp_path)
    trainer.evaluate()
    predicted = trainer.predict(trainer.eval_dataset)
    assert predicted.predictions.ndim == 3
    assert predicted.metrics["test_loss"] == pytest.approx(trainer.evaluate()["eval_loss"], rel=1e-5)


@pytest.mark.parametrize("is_training", [True, False])
def test_no_tensor_is_as_large_as_the_logits(is_training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = 8
    monkeypatch.setattr(head_loss, "CHUNK_BYTES", 4 * 16 * 270)
    model, inputs, labels = _batch("gpt2", rows=rows, unlabeled=0.0)
    vocabulary = model.config.vocab_size
    logits = rows * LENGTH * vocabulary
    with torch.set_grad_enabled(is_training):
        with Largest() as plain:
            sums, _ = token_cross_entropy(model(**inputs).logits, labels)
            if is_training:
                _gradients(model, sums.sum())
        with Largest() as lean, loss_at(model.get_output_embeddings(), labels) as found:
            model(**inputs)
            if is_training:
                _gradients(model, found.total)
    assert plain.numel >= logits
    assert lean.numel < logits / 2
