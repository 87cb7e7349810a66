"""Models that lack a part of what a head needs: correct answers, or a message that names the missing part."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
from matrix import often
from safetensors.torch import load_file, save_file
from transformers import (
    BartConfig,
    BartForCausalLM,
    Emu3ForCausalLM,
    Emu3TextConfig,
    FNetConfig,
    FNetForMaskedLM,
    GitConfig,
    GitForCausalLM,
    NllbMoeConfig,
    NllbMoeForConditionalGeneration,
    PerceiverConfig,
    PerceiverForMaskedLM,
    PreTrainedModel,
    ReformerConfig,
    ReformerForMaskedLM,
    ReformerForSequenceClassification,
    TrainingArguments,
)

import fulltune
from fulltune.errors import DataError, ModelError
from fulltune.models import fast_paths, inference
from fulltune.models.load import load
from fulltune.training.trainer import Trainer

FNET = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "pad_token_id": 0}


def drawn(make: type[PreTrainedModel], config: Any) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return make(config).eval()


def saved(model: PreTrainedModel, folder: Path) -> str:
    model.save_pretrained(folder)
    fakes.bert_tokenizer().save_pretrained(folder)
    return str(folder)


def reformer(make: type[PreTrainedModel] = ReformerForMaskedLM) -> PreTrainedModel:
    config = ReformerConfig(
        vocab_size=100, hidden_size=32, attention_head_size=16, num_attention_heads=2, feed_forward_size=32,
        attn_layers=["local", "lsh"], axial_pos_shape=[8, 8], axial_pos_embds_dim=[16, 16], num_buckets=4, hash_seed=0,
        local_attn_chunk_length=16, lsh_attn_chunk_length=16, max_position_embeddings=64, is_decoder=False,
    )  # fmt: skip
    return drawn(make, config)


# ---- Bodies with other argument names and other hidden states ----


@pytest.mark.parametrize("length", [5, 8])
def test_a_vector_of_a_body_with_latents_is_the_mean_of_all_of_them(length: int, tmp_path: Path) -> None:
    config = PerceiverConfig(
        num_latents=8, d_latents=32, d_model=32, num_self_attends_per_block=1, num_self_attention_heads=2,
        num_cross_attention_heads=2, vocab_size=100, max_position_embeddings=64,
    )  # fmt: skip
    bundle = load(saved(drawn(PerceiverForMaskedLM, config), tmp_path))
    texts = [list(range(7, 7 + length)), [9, 11, 13]]
    vectors = list(inference.sentence_vectors(bundle, texts, 2))
    for text, vector in zip(texts, vectors, strict=True):
        with torch.no_grad():
            states = bundle.model.base_model(inputs=torch.tensor([text])).last_hidden_state[0]
        assert states.shape == (8, 32)
        expected = torch.nn.functional.normalize(states.mean(dim=0), dim=-1)
        assert torch.allclose(vector, expected, atol=1e-5)


# ---- Checkpoints that lack a body ----


def test_a_decoder_cut_from_an_encoder_decoder_cannot_be_a_classifier(tmp_path: Path) -> None:
    config = BartConfig(
        vocab_size=100, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, is_decoder=True, is_encoder_decoder=False,
    )  # fmt: skip
    folder = saved(drawn(BartForCausalLM, config), tmp_path)
    assert load(folder).fresh == ()
    with pytest.raises(ModelError, match=r"\d+ of \d+ body weights of BartForSequenceClassification are not") as caught:
        load(folder, "classification", labels=("no", "yes"))
    assert "model.encoder" in str(caught.value)
    assert "only a head may be new" in str(caught.value)


@pytest.mark.parametrize("kind", often(["gpt2", "llama", "bert", "t5", "bart"], {"gpt2", "bert", "t5"}.__contains__))
@pytest.mark.parametrize("head", ["lm", "classification"])
def test_a_checkpoint_that_lacks_a_layer_is_refused_and_a_new_head_is_not(kind: str, head: Any, tmp_path: Path) -> None:
    folder = fakes.save(kind, tmp_path)
    labels = ("no", "yes") if head == "classification" else ()
    assert load(str(folder), head, labels=labels)
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not set(name.split(".")) & {"1"}}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"\d+ of \d+ body weights of \w+ are not in the checkpoint"):
        load(str(folder), head, labels=labels)


def test_a_partial_model_names_the_complete_one(tmp_path: Path) -> None:
    config = Emu3TextConfig(
        vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    folder = saved(drawn(Emu3ForCausalLM, config), tmp_path)
    with pytest.raises(ModelError, match="'emu3_text_model', which transformers cannot load on its own") as caught:
        load(folder)
    assert "the complete model, of the type 'emu3' (transformers has these heads: causal-lm)" in str(caught.value)
    assert "Unrecognized" not in str(caught.value)


# ---- Rows that cannot be trained on ----


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert", "t5", "bart"])
def test_common_models_are_trained_on_any_length(kind: str) -> None:
    model, _ = fakes.make(kind, "classification")
    state = torch.get_rng_state()
    fast_paths.require_trainable(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training


def test_routers_whose_capacity_changes_with_the_last_evaluation_are_refused() -> None:
    config = NllbMoeConfig(
        vocab_size=60, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, encoder_sparse_step=2,
        decoder_sparse_step=2, num_experts=2,
    )  # fmt: skip
    model = drawn(NllbMoeForConditionalGeneration, config)
    with pytest.raises(ModelError, match="overwrites the capacity that its experts have in training"):
        fast_paths.require_trainable(model)


def test_a_model_whose_loss_expects_an_image_is_refused() -> None:
    """GIT removes as many positions from the logits as an image has, but not from the labels of a text alone."""
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = GitConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64, vision_config=vision | {"image_size": 32, "patch_size": 16},
    )  # fmt: skip
    with pytest.raises(ModelError, match="GitForCausalLM cannot compute its loss on a text alone"):
        fast_paths.require_trainable(drawn(GitForCausalLM, config))


def test_a_model_with_restricted_lengths_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"text": f"the court {n}", "label": "yes" if n % 2 else "no"}) + "\n" for n in range(8))
    )
    with pytest.raises(ModelError, match="ReformerForSequenceClassification cannot be trained on a text of 11 tokens"):
        fulltune.run(
            model=saved(reformer(), tmp_path / "base"),
            task="classification",
            data={"train": str(tmp_path / "rows.jsonl"), "eval": str(tmp_path / "rows.jsonl"), "allow_leaks": True},
            train={"max_steps": 1},
            guards={"forgetting": None},
            out=tmp_path / "runs",
        )


def test_the_trainer_reports_the_lengths_that_a_reformer_accepts(tmp_path: Path) -> None:
    model = reformer(ReformerForSequenceClassification)
    trainer = Trainer(model=model, args=fakes.arguments(tmp_path))
    ids = torch.full((1, 64), 7)
    model.train()
    assert torch.isfinite(trainer.compute_loss(model, classes(ids)))
    with pytest.raises(ModelError, match=r"cannot be trained on a text of 58 tokens .*multiple of") as caught:
        trainer.compute_loss(model, classes(ids[:, :58]))
    assert "pad every row to a length that its config allows" in str(caught.value)


def classes(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    labels = torch.zeros(len(ids), dtype=torch.long)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


@pytest.mark.parametrize("kind", ["bart", "t5"])
@pytest.mark.parametrize("mode", [True, False])
def test_a_classifier_that_reads_the_end_token_names_rows_without_one(kind: str, mode: bool, tmp_path: Path) -> None:
    model, tokenizer = fakes.make(kind, "classification")
    trainer, end = Trainer(model=model, args=fakes.arguments(tmp_path)), int(tokenizer.eos_token_id)
    model.train(mode)
    assert torch.isfinite(trainer.compute_loss(model, classes(torch.tensor([[9, 8, end], [end, 8, end]]))))
    with pytest.raises(DataError, match=r"1 of the 3 rows of a batch have no end token \(row\w* 1 of it\)") as caught:
        trainer.compute_loss(model, classes(torch.tensor([[9, 8, end], [9, 8, 7], [7, 8, end]])))
    assert f"reads each text at its end token (id {end})" in str(caught.value)
    assert "expected one end token in every row" in str(caught.value)


# ---- Several processes ----


def test_padding_over_several_processes_is_logged_once_for_models_that_read_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "fulltune")
    monkeypatch.setattr(TrainingArguments, "world_size", property(lambda arguments: 2))
    for model in (drawn(FNetForMaskedLM, FNetConfig(**FNET)), fakes.make("bert")[0]):
        trainer, ids = Trainer(model=model, args=fakes.arguments(tmp_path)), torch.tensor([[7, 8, 9], [7, 8, 0]])
        batch = {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": ids.masked_fill(ids == 0, -100)}
        for _ in range(2):
            trainer.compute_loss(model, dict(batch))
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith(
        "padding changes the outputs of FNetForMaskedLM, and with several processes rows of different"
    )
