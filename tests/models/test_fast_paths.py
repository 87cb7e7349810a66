"""Padding and batching are used only where they do not change a model's answers, as checked on the model itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
from transformers import (
    BigBirdConfig,
    BigBirdForMaskedLM,
    ConvBertConfig,
    ConvBertForMaskedLM,
    ElectraConfig,
    ElectraForPreTraining,
    FNetConfig,
    FNetForMaskedLM,
    FSMTConfig,
    FSMTForConditionalGeneration,
    NystromformerConfig,
    NystromformerForSequenceClassification,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from fulltune.errors import ModelError
from fulltune.models import fast_paths, inference
from fulltune.models.bundle import Bundle
from fulltune.models.load import load
from fulltune.models.teacher_forcing import decoder_input_ids

SMALL = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "pad_token_id": 0}


def drawn(make: type[PreTrainedModel], config: Any) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return make(config).eval()


def convbert() -> PreTrainedModel:
    return drawn(ConvBertForMaskedLM, ConvBertConfig(num_attention_heads=2, embedding_size=32, **SMALL))


def fnet() -> PreTrainedModel:
    return drawn(FNetForMaskedLM, FNetConfig(**SMALL))


def nystromformer() -> PreTrainedModel:
    config = NystromformerConfig(num_attention_heads=2, num_landmarks=8, segment_means_seq_len=64, **SMALL)
    return drawn(NystromformerForSequenceClassification, config)


def xlnet() -> PreTrainedModel:
    config = XLNetConfig(vocab_size=100, d_model=32, n_layer=2, n_head=2, d_inner=64, pad_token_id=0)
    return drawn(XLNetForSequenceClassification, config)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert", "t5", "bart"])
@pytest.mark.parametrize("head", ["lm", "classification"])
def test_common_models_accept_padding(kind: str, head: str) -> None:
    model, _ = fakes.make(kind, head)
    assert fast_paths.padding_is_neutral(model, 20)
    assert fast_paths.batching_is_neutral(model, 20)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_rounding_to_16_bits_does_not_count_as_an_effect_of_padding(kind: str, dtype: torch.dtype) -> None:
    model, _ = fakes.make(kind)
    assert fast_paths.padding_is_neutral(model.to(dtype), 20)
    other = xlnet()
    assert not fast_paths.padding_is_neutral(other.to(dtype), 20)


def test_a_padding_id_of_another_tokenizer_is_no_effect_of_padding(caplog: pytest.LogCaptureFixture) -> None:
    model, _ = fakes.bert()
    model.config.pad_token_id = 30_000
    assert fast_paths.padding_is_neutral(model, 20)
    assert caplog.messages == []


@pytest.mark.parametrize("make", [convbert, fnet, xlnet])
def test_padding_that_changes_answers_is_detected_and_logged_once(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    model = make()
    for length in (20, 25, 32):
        assert not fast_paths.padding_is_neutral(model, length)
        assert fast_paths.batching_is_neutral(model, length)
    assert [record.getMessage() for record in caplog.records] == [
        f"{type(model).__name__} computes rows of 32 tokens without padding: it would change the answers"
    ]


def test_copies_of_a_model_and_other_lengths_log_nothing_new(caplog: pytest.LogCaptureFixture) -> None:
    for model in (fnet(), fnet(), convbert()):
        assert not any(fast_paths.padding_is_neutral(model, length) for length in (20, 40, 70))
    assert [record.getMessage() for record in caplog.records] == [
        f"{name} computes rows of 32 tokens without padding: it would change the answers"
        for name in ("FNetForMaskedLM", "ConvBertForMaskedLM")
    ]


def test_a_model_that_accepts_one_length_only_is_refused() -> None:
    bundle = Bundle(nystromformer(), fakes.bert_tokenizer(), "encoder", "classification", 64, fakes.bundle("bert").info)
    with pytest.raises(ModelError, match=r"cannot compute a text of 11 tokens .*RuntimeError: shape") as caught:
        list(inference.class_logits(bundle, [[5, 6, 7]], 4))
    assert "num_landmarks equal to segment_means_seq_len" in str(caught.value)


def test_a_bigbird_answers_the_same_before_and_after_a_short_text(tmp_path: Path) -> None:
    config = BigBirdConfig(num_attention_heads=2, block_size=4, num_random_blocks=1, **SMALL)
    fakes.bert_tokenizer().save_pretrained(tmp_path)
    drawn(BigBirdForMaskedLM, config).save_pretrained(tmp_path)
    bundle = load(str(tmp_path))
    mask = bundle.tokenizer.mask_token_id
    texts = [[2, *range(5, 50), mask, 3], [2, 9, mask, 3]]
    long, short, again = (
        next(inference.mask_log_probabilities(bundle, [text], 1)) for text in (texts[0], texts[1], texts[0])
    )
    assert torch.equal(long, again)
    for together, alone in zip(inference.mask_log_probabilities(bundle, texts, 2), (long, short), strict=True):
        assert torch.allclose(together, alone, atol=1e-5)


def test_a_discriminator_has_no_masked_lm_head(tmp_path: Path) -> None:
    config = ElectraConfig(num_attention_heads=2, embedding_size=32, **SMALL)
    drawn(ElectraForPreTraining, config).save_pretrained(tmp_path)
    fakes.bert_tokenizer().save_pretrained(tmp_path)
    bundle = load(str(tmp_path))
    assert not bundle.has_lm_head
    assert [vector.shape for vector in inference.sentence_vectors(bundle, [[2, 7, 3], [2, 7, 8, 3]], 2)] == [(32,)] * 2


def test_a_batch_is_cut_where_lengths_change() -> None:
    rows = [[5] * 9, [6] * 9, [7] * 4, [8] * 4, [9] * 3]
    assert [len(part) for part in fast_paths.batches(fnet(), rows, lambda row: (len(row),))] == [2, 2, 1]
    model, _ = fakes.gpt2()
    assert list(fast_paths.batches(model, rows, lambda row: (len(row),))) == [rows]


def test_a_check_runs_once_and_leaves_no_trace() -> None:
    model, _ = fakes.gpt2(resid_pdrop=0.5)
    model.train()
    calls: list[int] = []
    embeddings: Any = model.get_input_embeddings()
    handle = embeddings.register_forward_hook(lambda module, args, output: calls.append(1))
    state, weights = torch.get_rng_state(), {name: value.clone() for name, value in model.state_dict().items()}
    assert fast_paths.padding_is_neutral(model, 20)
    first = len(calls)
    assert fast_paths.padding_is_neutral(model, 30)
    assert len(calls) == first > 0
    assert fast_paths.padding_is_neutral(model, 100)
    assert len(calls) > first, "longer rows are checked again"
    handle.remove()
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert model(input_ids=torch.tensor([[5, 6]])).logits.shape[-1] > 1, "the head is as it was"


def test_checks_stay_within_the_positions_of_a_model() -> None:
    model, _ = fakes.gpt2()
    assert fast_paths.probe_length(model, 70) == fakes.WINDOW - 8
    assert fast_paths.padding_is_neutral(model, fakes.WINDOW)


def test_fsmt_begins_with_its_start_token_and_leaves_the_labels_alone() -> None:
    config = FSMTConfig(
        langs=["en", "de"], src_vocab_size=100, tgt_vocab_size=100, d_model=32, encoder_layers=1, decoder_layers=1,
        encoder_ffn_dim=64, decoder_ffn_dim=64, encoder_attention_heads=2, decoder_attention_heads=2,
    )  # fmt: skip
    labels = torch.tensor([[7, 8, 9], [5, -100, -100]])
    inputs = decoder_input_ids(drawn(FSMTForConditionalGeneration, config), labels)
    start, pad = config.decoder_start_token_id, config.pad_token_id
    assert inputs.tolist() == [[start, 7, 8], [start, 5, pad]]
    assert labels.tolist() == [[7, 8, 9], [5, -100, -100]]


def test_inputs_of_a_decoder_are_those_of_its_own_function() -> None:
    config = T5Config(vocab_size=100, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, decoder_start_token_id=0)
    labels = torch.tensor([[7, 8, 9], [5, -100, -100]])
    assert decoder_input_ids(drawn(T5ForConditionalGeneration, config), labels).tolist() == [[0, 7, 8], [0, 5, 0]]


def test_a_check_restores_the_mode_of_each_module_and_the_kind_of_attention() -> None:
    config = BigBirdConfig(num_attention_heads=2, block_size=4, num_random_blocks=1, **SMALL)
    model = drawn(BigBirdForMaskedLM, config).train()
    model.bert.embeddings.eval()  # frozen by a user
    with fast_paths.checking(model):
        model(input_ids=torch.full((1, 8), 7))
        assert model.bert.attention_type == "original_full"
    assert model.bert.attention_type == "block_sparse"
    assert not model.bert.embeddings.training
    assert all(layer.training for layer in model.bert.encoder.modules())
