"""Batched likelihoods, greedy generation, logits and vectors against unbatched loops."""

from __future__ import annotations

import fakes
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fulltune.models import inference, likelihoods, padding
from fulltune.models.inference import Text

DECODERS = ("gpt2", "llama")
ENCODER_DECODERS = ("t5", "bart")
TEXTS = [Text([0, 5, 9], [11, 12]), Text([0], [40, 41, 42, 43, 44, 45]), Text([0, 7], [8]), Text([0, 30, 31, 32], [33])]


def alone(bundle, text: Text) -> float:
    """Return Σ −ln p of one text by an unbatched forward pass, without padding or mask."""
    model, target = bundle.model, torch.tensor(text.target)
    with torch.no_grad():
        if bundle.family == "encoder-decoder":
            logits = model(input_ids=torch.tensor([text.context]), labels=target[None]).logits[0]
        else:
            logits = model(input_ids=torch.tensor([text.context + text.target])).logits[0]
            logits = logits[len(text.context) - 1 : -1]
    return float(torch.nn.functional.cross_entropy(logits.double(), target, reduction="sum"))


@pytest.mark.parametrize("kind", DECODERS + ENCODER_DECODERS)
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_likelihoods_equal_an_unbatched_loop_in_the_order_given(kind: str, batch_size: int) -> None:
    bundle = fakes.bundle(kind)
    results = list(inference.likelihoods(bundle, iter(TEXTS), batch_size))
    assert [result.tokens for result in results] == [len(text.target) for text in TEXTS]
    for result, text in zip(results, TEXTS, strict=True):
        assert result.nll == pytest.approx(alone(bundle, text), rel=1e-4)


def test_a_narrow_budget_for_logits_changes_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = fakes.bundle("gpt2")
    whole = list(inference.likelihoods(bundle, TEXTS, 4))
    monkeypatch.setattr(likelihoods, "LOGITS_BYTES", 1)
    monkeypatch.setattr(likelihoods, "takes_loss_at_head", lambda *asked: False)
    cut = list(inference.likelihoods(bundle, TEXTS, 4))
    assert [part.nll for part in cut] == pytest.approx([part.nll for part in whole], rel=1e-5)


@pytest.mark.parametrize("kind", DECODERS + ENCODER_DECODERS)
def test_generation_is_greedy_and_the_same_alone_and_in_a_batch(kind: str) -> None:
    bundle = fakes.bundle(kind)
    prompts = [text.context + text.target for text in TEXTS]
    together = list(inference.generate(bundle, prompts, 4, 6))
    single = [next(inference.generate(bundle, [prompt], 1, 6)) for prompt in prompts]
    assert together == single
    assert all(item.tokens <= 6 for item in together)


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_a_checkpoint_that_samples_answers_greedily_and_keeps_its_settings(kind: str) -> None:
    bundle = fakes.bundle(kind)
    prompts = [text.context + text.target for text in TEXTS]
    greedy = list(inference.generate(bundle, prompts, 2, 8))
    own = bundle.model.generation_config
    own.do_sample = True
    own.temperature = 5.0
    own.repetition_penalty = 3.0
    own.no_repeat_ngram_size = 1
    for _ in range(3):
        assert list(inference.generate(bundle, prompts, 2, 8)) == greedy
    assert bundle.model.generation_config is own
    assert own.do_sample


def test_generation_stops_at_the_end_token_and_reports_truncation() -> None:
    bundle = fakes.bundle("gpt2")
    free = next(inference.generate(bundle, [[0, 5, 9]], 1, 6))
    assert free.capped
    assert free.tokens == 6
    with torch.no_grad():  # make the end-of-text token (tied to its embedding) win everywhere
        bundle.model.lm_head.weight[0] = 100 * bundle.model.transformer.ln_f.bias.sign().add(1)
        bundle.model.transformer.ln_f.bias.fill_(1.0)
    stopped = next(inference.generate(bundle, [[0, 5, 9]], 1, 6))
    assert not stopped.capped
    assert stopped.tokens == 0
    assert stopped.text == ""


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5", "bart"])
def test_class_logits_do_not_depend_on_the_batch(kind: str) -> None:
    bundle = fakes.bundle(kind, "classification", labels=("a", "b", "c"))
    end = [bundle.tokenizer.eos_token_id] if bundle.family == "encoder-decoder" else []
    inputs = [[6, 7, 8, 9, *end], [10, *end], [11, 12, *end]]
    together = list(inference.class_logits(bundle, inputs, 3))
    for logits, ids in zip(together, inputs, strict=True):
        with torch.no_grad():
            expected = bundle.model(input_ids=torch.tensor([ids])).logits[0].tolist()
        assert logits == pytest.approx(expected, abs=1e-5)


def test_sentence_vectors_are_means_over_tokens_without_padding() -> None:
    bundle = fakes.bundle("bert")
    inputs = [[2, 7, 8, 9, 3], [2, 10, 3]]
    for vector, ids in zip(inference.sentence_vectors(bundle, inputs, 2), inputs, strict=True):
        with torch.no_grad():
            mean = bundle.model.bert(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(0)
        assert torch.allclose(vector, mean / mean.norm(), atol=1e-5)


def test_mask_log_probabilities_have_one_row_per_mask() -> None:
    bundle = fakes.bundle("bert")
    mask = bundle.tokenizer.mask_token_id
    one, two = inference.mask_log_probabilities(bundle, [[2, 9, mask, 3], [2, mask, mask, 3]], 2)
    assert one.shape == (1, len(bundle.tokenizer))
    assert two.shape == (2, len(bundle.tokenizer))
    assert torch.allclose(one.exp().sum(), torch.tensor(1.0), atol=1e-5)


def test_the_output_layer_computes_the_masks_only_and_the_same() -> None:
    bundle = fakes.bundle("bert")
    mask = bundle.tokenizer.mask_token_id
    texts = [[2, 9, mask, 8, 7, 3], [2, mask, mask, 3], [2, 9, 8, 3]]
    rows = list[int]()
    layer = bundle.model.get_output_embeddings()
    layer.register_forward_hook(lambda _, inputs, output: rows.append(output.shape[:-1].numel()))
    found = list(inference.mask_log_probabilities(bundle, texts, 3))
    assert 3 in rows  # the first batch was also computed at all positions, as a check
    assert [len(one) for one in found] == [1, 2, 0]
    for ids, one in zip(texts, found, strict=True):
        logits = bundle.model(input_ids=torch.tensor([ids])).logits[0]
        expected = logits.detach().log_softmax(-1)[torch.tensor(ids) == mask]
        torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-5)
    rows.clear()
    list(inference.mask_log_probabilities(bundle, texts, 3))
    assert rows == [3]


def test_a_head_that_must_see_all_positions_gets_them() -> None:
    bundle = fakes.bundle("bert")
    mask = bundle.tokenizer.mask_token_id
    expected = list(inference.mask_log_probabilities(bundle, [[2, 9, mask, 3]], 1))

    def refuse(_: object, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs[0].dim() != 3:
            raise ValueError("rows of texts, please")

    other = fakes.bundle("bert")
    other.model.get_output_embeddings().register_forward_pre_hook(refuse)
    found = list(inference.mask_log_probabilities(other, [[2, 9, mask, 3]], 1))
    torch.testing.assert_close(found, expected)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=80), st.integers(1, 5))
def test_any_lengths_come_back_in_order(lengths: list[int], batch_size: int) -> None:
    results = padding.sorted_batches(
        [[n] * n for n in lengths], lambda batch: [row[0] for row in batch], len, batch_size
    )
    assert list(results) == lengths
