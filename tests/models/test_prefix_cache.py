"""A prefix shared by several texts is read once, without a change of any score or answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import fakes
import pytest
import torch
from matrix import often
from transformers import BloomConfig, BloomForCausalLM

from fulltune.models import head_loss, inference, prefix_cache
from fulltune.models.bundle import Bundle
from fulltune.models.inference import Text

SHOTS = [(7 * place) % 90 + 5 for place in range(30)]


def _ids(length: int, start: int) -> list[int]:
    return [(start + 3 * place) % 90 + 5 for place in range(length)]


def _rows() -> list[Text]:
    """Return rows with a common prefix and endings of unequal lengths."""
    return [Text(SHOTS + _ids(2 + number % 5, number), _ids(3 + number % 4, 40 + number)) for number in range(9)]


def _labels(context: int = 24) -> list[Text]:
    """Return the labels of some rows, one of them a single token."""
    targets = [_ids(length, length) for length in (1, 3, 2, 4, 5)]
    return [Text(_ids(context + row, row), target) for row in range(4) for target in targets]


def _alone(bundle: Bundle, text: Text) -> float:
    model: Any = bundle.model
    labels = torch.tensor([text.target])
    with torch.no_grad():
        if bundle.family == "encoder-decoder":
            logits = model(input_ids=torch.tensor([text.context]), labels=labels).logits
        else:
            logits = model(input_ids=torch.tensor([text.context + text.target])).logits
            logits = logits[:, len(text.context) - 1 : -1]
    return float(-logits[0].double().log_softmax(-1).gather(1, labels[0].unsqueeze(1)).sum())


@contextmanager
def _read(bundle: Bundle) -> Iterator[list[int]]:
    """Count the positions that the model's embeddings see."""
    positions: list[int] = []
    embedding: Any = bundle.model.get_input_embeddings()
    handle = embedding.register_forward_hook(lambda module, args, output: positions.append(args[0].numel()))
    try:
        yield positions
    finally:
        handle.remove()


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5", "bart"])
@pytest.mark.parametrize("batch_size", often([1, 3, 16], lambda size: size == 3))
@pytest.mark.parametrize("asked", [_rows, _labels])
def test_likelihoods_are_those_of_each_text_alone(kind: str, batch_size: int, asked: Callable[[], list[Text]]) -> None:
    bundle, texts = fakes.bundle(kind), asked()
    found = list(inference.likelihoods(bundle, iter(texts), batch_size))
    assert [one.tokens for one in found] == [len(text.target) for text in texts]
    for one, text in zip(found, texts, strict=True):
        assert one.nll == pytest.approx(_alone(bundle, text), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_likelihoods_at_the_head_are_those_of_each_text_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_loss, "MIN_BYTES", 0)
    bundle = fakes.bundle(kind)
    for text, one in zip(_rows(), inference.likelihoods(bundle, _rows(), 4), strict=True):
        assert one.nll == pytest.approx(_alone(bundle, text), rel=1e-5)


def test_shots_are_read_once() -> None:
    bundle = fakes.bundle("gpt2")
    list(inference.likelihoods(bundle, _rows(), 3))  # the model is checked once
    with _read(bundle) as positions:
        list(inference.likelihoods(bundle, _rows(), 3))
    assert sum(positions) < 0.5 * sum(map(len, _rows()))


def test_a_context_is_read_once_for_all_labels() -> None:
    bundle = fakes.bundle("gpt2")
    list(inference.likelihoods(bundle, _labels(), 5))  # the model is checked once
    with _read(bundle) as positions:
        list(inference.likelihoods(bundle, _labels(), 5))
    assert sum(positions) < 0.5 * sum(map(len, _labels()))


def test_an_encoder_reads_a_context_once_for_all_labels() -> None:
    bundle: Bundle = fakes.bundle("t5")
    list(inference.likelihoods(bundle, _labels(), 5))  # the model is checked once
    seen: list[int] = []
    encoder: Any = bundle.model.get_encoder()
    handle = encoder.register_forward_hook(lambda module, args, output: seen.append(1))
    list(inference.likelihoods(bundle, _labels(), 5))
    handle.remove()
    assert len(seen) == 4 + 1, "once a row, and once to try the head"


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("batch_size", often([1, 4], lambda size: size == 4))
def test_answers_are_the_same_with_and_without_a_shared_prefix(
    kind: str, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, prompts = fakes.bundle(kind), [text.context for text in _rows()]
    list(inference.generate(bundle, prompts, batch_size, 12))  # the model is checked once
    with _read(bundle) as few:
        shared = list(inference.generate(bundle, prompts, batch_size, 12))
    monkeypatch.setattr(prefix_cache, "SHORTEST", 10_000)
    with _read(bundle) as many:
        plain = list(inference.generate(bundle, prompts, batch_size, 12))
    assert shared == plain
    assert sum(few) < sum(many) or batch_size == 1


def test_a_model_without_a_standard_cache_is_run_without_sharing(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = fakes.bundle("gpt2")
    monkeypatch.setattr(prefix_cache, "DynamicLayer", dict)
    for text, one in zip(_labels() + _rows(), inference.likelihoods(bundle, _labels() + _rows(), 4), strict=True):
        assert one.nll == pytest.approx(_alone(bundle, text), rel=1e-5)
    assert len(list(inference.generate(bundle, [text.context for text in _rows()], 4, 3))) == 9


def test_a_model_with_relative_positions_shares_too() -> None:
    config = BloomConfig(vocab_size=100, hidden_size=32, n_layer=2, n_head=2)
    torch.manual_seed(1)
    bundle = fakes.bundle("gpt2")
    bloom = Bundle(BloomForCausalLM(config).eval(), bundle.tokenizer, "decoder", "lm", 128, bundle.info)
    for text, one in zip(_rows() + _labels(), inference.likelihoods(bloom, _rows() + _labels(), 4), strict=True):
        assert one.nll == pytest.approx(_alone(bloom, text), rel=1e-5)


def test_generation_ends_when_every_row_has_ended() -> None:
    bundle = fakes.bundle("gpt2")
    list(inference.generate(bundle, [[7, 8, 9], [7, 8]], 2, 50))  # the model is checked once
    head: Any = bundle.model.get_output_embeddings()
    end = bundle.tokenizer.eos_token_id
    steps: list[int] = []

    def stop(module: Any, args: Any, logits: torch.Tensor) -> torch.Tensor:
        steps.append(1)
        logits[..., end] = 1e4 if len(steps) > 2 else -1e4
        return logits

    handle = head.register_forward_hook(stop)
    answers = list(inference.generate(bundle, [[7, 8, 9], [7, 8]], 2, 50))
    handle.remove()
    assert [answer.tokens for answer in answers] == [2, 2]
    assert len(steps) == 3


@pytest.mark.parametrize(
    ("rows", "shared"),
    [([[1, 2, 3], [1, 2, 4]], 2), ([[1, 2], [1, 2]], 1), ([[1], [1]], 0), ([[5, 1], [6, 1]], 0), ([[1, 2, 3]], 2)],
)
def test_each_row_keeps_a_remainder(rows: list[list[int]], shared: int) -> None:
    assert prefix_cache.shared_length(rows) == shared
