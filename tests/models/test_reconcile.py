"""Contradictions and gaps in the files of a checkpoint are resolved when it is loaded, and reported."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
import transformers
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

import fulltune
from fulltune.errors import ModelError
from fulltune.models import inference, reconcile, token_ids
from fulltune.models.bundle import Bundle
from fulltune.models.load import load


def edit(folder: Path, name: str, **values: Any) -> Path:
    """Change fields of a JSON file of a checkpoint; None removes one."""
    path = folder / name
    known = json.loads(path.read_text()) if path.exists() else {}
    known = {key: value for key, value in (known | values).items() if value is not None}
    path.write_text(json.dumps(known))
    return folder


def bare_tokenizer() -> PreTrainedTokenizerFast:
    return fakes.byte_tokenizer([])


# ---- Embeddings ----


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert", "t5", "bart"])
def test_embeddings_grow_for_tokens_of_the_tokenizer(kind: str, tmp_path: Path) -> None:
    folder = fakes.save_with_tokens(kind, tmp_path, ["<one>", "<two>"])
    before, _ = fakes.make(kind)
    bundle = load(str(folder))
    old, new = before.get_input_embeddings().weight, bundle.model.get_input_embeddings().weight
    assert (len(new), bundle.grown) == (len(old) + 2, 2)
    assert torch.equal(new[: len(old)], old)
    assert any("2 rows were added" in change for change in bundle.info.reconciled)
    assert torch.equal(load(str(folder), seed=3).model.get_input_embeddings().weight, new)


def with_far_token(folder: Path, token: int) -> Path:
    """Add one more token to the tokenizer, with an id that leaves a gap."""
    stored = json.loads((folder / "tokenizer.json").read_text())
    stored["model"]["vocab"]["<far>"] = token
    stored["added_tokens"].append({**stored["added_tokens"][0], "id": token, "content": "<far>"})
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    return folder


def test_one_id_far_beyond_the_embeddings(tmp_path: Path) -> None:
    bundle = load(str(with_far_token(fakes.save("gpt2", tmp_path), 299)))
    assert bundle.tokenizer("<far>").input_ids == [299]
    assert len(bundle.model.get_input_embeddings().weight) == 300
    [answer] = inference.generate(bundle, [bundle.tokenizer("a <far>").input_ids], 1, 3)
    assert answer.tokens == 3 or not answer.capped


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"ids up to 9,999,999.*own tokenizer files"):
        load(str(with_far_token(fakes.save("gpt2", tmp_path), 9_999_999)))


# ---- Special tokens ----


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert", "t5", "bart"])
def test_a_padding_id_outside_the_vocabulary(kind: str, tmp_path: Path) -> None:
    bundle = load(str(edit(fakes.save(kind, tmp_path), "config.json", pad_token_id=99_999)))
    assert bundle.model.config.pad_token_id == bundle.tokenizer.pad_token_id
    assert any("99999 of config.json is outside the vocabulary" in change for change in bundle.info.reconciled)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_no_special_token_at_all(kind: str, tmp_path: Path) -> None:
    options = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    model, tokenizer = fakes.make(kind, tokenizer=bare_tokenizer())
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    edit(edit(tmp_path, "config.json", **options), "generation_config.json", **options)
    bundle = load(str(tmp_path))
    assert (bundle.tokenizer.pad_token, bundle.grown) == (None, 0)
    assert any("have an end token" in change for change in bundle.info.reconciled)
    answers = list(inference.generate(bundle, [bundle.tokenizer(text).input_ids for text in ("ab", "c")], 2, 4))
    assert [answer.tokens for answer in answers] == [4, 4]
    tuned = load(str(tmp_path), "classification", labels=("no", "yes"))
    assert tuned.tokenizer.pad_token_id == tuned.model.config.pad_token_id == len(tokenizer)
    rows = [tuned.tokenizer(text).input_ids for text in ("the fox", "a")]
    alone = [next(iter(inference.class_logits(tuned, [row], 1))) for row in rows]
    assert torch.allclose(torch.tensor(list(inference.class_logits(tuned, rows, 2))), torch.tensor(alone), atol=1e-5)


def test_an_ordinary_token_never_ends_an_answer(tmp_path: Path) -> None:
    """Configs of transformers have default ids, whatever the tokenizer is."""
    model, tokenizer = fakes.make("llama", tokenizer=bare_tokenizer())
    model.config.eos_token_id = model.generation_config.eos_token_id = 2
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    bundle = load(str(tmp_path))
    assert bundle.model.generation_config.eos_token_id is None
    assert any("ordinary token" in change for change in bundle.info.reconciled)


def test_an_end_token_named_only_by_the_generation_settings(tmp_path: Path) -> None:
    folder = edit(fakes.save("llama", tmp_path), "tokenizer_config.json", eos_token=None, pad_token=None)
    bundle = load(str(folder))
    assert bundle.tokenizer.eos_token == "</s>"
    assert token_ids.end_ids(bundle) == [bundle.tokenizer.convert_tokens_to_ids("</s>")]


def test_two_end_ids_both_stop(tmp_path: Path) -> None:
    tokenizer = fakes.byte_tokenizer(
        ["<s>", "</s>", "<turn>"], "<s> $A", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    folder = fakes.save("llama", tmp_path, tokenizer=tokenizer)
    edit(folder, "generation_config.json", eos_token_id=2)
    bundle = load(str(folder))
    assert bundle.model.generation_config.eos_token_id == [2, 1]
    assert any("all are used" in change for change in bundle.info.reconciled)


# ---- Generation settings ----


@pytest.mark.parametrize(
    "invalid",
    [
        {"do_sample": False, "temperature": 0.6, "top_p": 0.9},
        {"num_beams": 1, "early_stopping": True, "length_penalty": 2.0},
    ],
)
def test_generation_settings_that_cannot_be_saved(invalid: dict[str, Any], tmp_path: Path) -> None:
    folder = edit(fakes.save("llama", tmp_path / "base"), "generation_config.json", **invalid)
    bundle = load(str(folder))
    bundle.model.generation_config.max_new_tokens = 5
    bundle.model.save_pretrained(tmp_path / "saved")
    assert GenerationConfig.from_pretrained(tmp_path / "saved").do_sample is False
    [change] = [change for change in bundle.info.reconciled if "replaced by greedy" in change]
    assert all(name in change for name in invalid if name not in ("do_sample", "num_beams"))


@pytest.mark.parametrize("text", ['{"num_return_sequences": 4, "eos_token_id": 0}', "[]", "{", '{"eos_token_id": "x"}'])
def test_generation_settings_that_cannot_be_read(text: str, tmp_path: Path) -> None:
    folder = fakes.save("llama", tmp_path / "base")
    (folder / "generation_config.json").write_text(text)
    bundle = load(str(folder))
    assert 1 in inference_stops(bundle)
    bundle.model.save_pretrained(tmp_path / "saved")
    bundle.tokenizer.save_pretrained(tmp_path / "saved")
    assert inference_stops(load(str(tmp_path / "saved"))) == inference_stops(bundle)


def inference_stops(bundle: Bundle) -> list[int]:
    stops = bundle.model.generation_config.eos_token_id
    return stops if isinstance(stops, list) else [stops]


def test_settings_for_a_pipelines_task_are_not_kept(tmp_path: Path) -> None:
    settings = {"text-generation": {"do_sample": True, "max_length": 50}}
    folder = edit(fakes.save("gpt2", tmp_path), "config.json", task_specific_params=settings)
    assert getattr(load(str(folder)).model.config, "task_specific_params", None) is None


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_an_encoder_decoder_without_a_start_token(kind: str, tmp_path: Path) -> None:
    folder = fakes.save(kind, tmp_path)
    expected = json.loads((folder / "config.json").read_text())["decoder_start_token_id"]
    edit(
        edit(folder, "config.json", decoder_start_token_id=None), "generation_config.json", decoder_start_token_id=None
    )
    bundle = load(str(folder))
    used = bundle.model.config.decoder_start_token_id
    assert used == bundle.model.generation_config.decoder_start_token_id == expected
    [answer] = inference.generate(bundle, [bundle.tokenizer("the fox").input_ids], 1, 3)
    assert answer.tokens <= 3


def test_training_and_generation_start_an_answer_alike(tmp_path: Path) -> None:
    folder = edit(fakes.save("t5", tmp_path), "generation_config.json", decoder_start_token_id=2)
    bundle = load(str(folder))
    assert bundle.model.config.decoder_start_token_id == bundle.model.generation_config.decoder_start_token_id == 2
    assert any("decoder_start_token_id is 0 in config.json and 2" in change for change in bundle.info.reconciled)


def test_a_consistent_checkpoint_is_unchanged(tmp_path: Path) -> None:
    for kind in fakes.FAMILIES:
        assert load(str(fakes.save(kind, tmp_path / kind))).info.reconciled == (), kind


def test_each_change_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = edit(fakes.save("llama", tmp_path), "generation_config.json", temperature=0.6)
    with caplog.at_level(logging.INFO, "fulltune.models"):
        bundle = load(str(folder))
    assert len(bundle.info.reconciled) == 1
    assert bundle.info.reconciled[0] in caplog.text


# ---- Tokens that a tokenizer adds around a text ----


def closed_tokenizer() -> PreTrainedTokenizerFast:
    return fakes.byte_tokenizer(
        ["<s>", "</s>"], "<s> $A </s>", bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="</s>"
    )


def test_no_end_token_is_added_to_a_text_that_a_decoder_continues(tmp_path: Path) -> None:
    bundle = load(str(fakes.save("llama", tmp_path / "base", tokenizer=closed_tokenizer())))
    assert token_ids.frame(closed_tokenizer()) == ([0], [1])
    assert token_ids.frame(bundle.tokenizer) == ([0], [])
    bundle.tokenizer.save_pretrained(tmp_path / "saved")
    assert token_ids.frame(AutoTokenizer.from_pretrained(tmp_path / "saved")) == ([0], [])
    classifier = load(str(tmp_path / "base"), "classification", labels=("a", "b"))
    assert token_ids.frame(classifier.tokenizer) == ([0], [1])


# ---- Positions ----

_SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize("name", ["Roberta", "XLMRoberta", "Camembert", "Longformer", "Data2VecText", "MPNet", "Esm"])
def test_positions_that_begin_after_the_padding_id(name: str, tmp_path: Path) -> None:
    tokenizer = fakes.bart_tokenizer()
    tokenizer.model_max_length = int(1e30)
    more = {"attention_window": 8} if name == "Longformer" else {}
    more |= {"position_embedding_type": "absolute", "mask_token_id": 4, "token_dropout": False} if name == "Esm" else {}
    config = getattr(transformers, f"{name}Config")(
        vocab_size=len(tokenizer), max_position_embeddings=40, pad_token_id=1, **_SIZES, **more
    )
    getattr(transformers, f"{name}ForMaskedLM")(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    bundle = load(str(tmp_path))
    assert bundle.window == 38
    with torch.no_grad():
        bundle.model(input_ids=torch.full((1, 38), 7), attention_mask=torch.ones(1, 38, dtype=torch.long))
    if name not in ("Longformer",):  # it pads to its window, and would fail otherwise
        with pytest.raises((IndexError, RuntimeError), match="out of"):
            bundle.model(input_ids=torch.full((1, 39), 7), attention_mask=torch.ones(1, 39, dtype=torch.long))


@pytest.mark.parametrize("name", ["OPT", "BioGpt"])
def test_positions_of_decoders_with_an_offset(name: str, tmp_path: Path) -> None:
    tokenizer = fakes.gpt2_tokenizer()
    tokenizer.model_max_length = int(1e30)
    more = {"ffn_dim": 64, "word_embed_proj_dim": 32} if name == "OPT" else {"intermediate_size": 64}
    config = getattr(transformers, f"{name}Config")(
        vocab_size=len(tokenizer), max_position_embeddings=40, hidden_size=32, num_hidden_layers=1,
        num_attention_heads=2, pad_token_id=0, bos_token_id=0, eos_token_id=0, **more,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    bundle = load(str(tmp_path))
    assert bundle.window == 40
    bundle.model(input_ids=torch.full((1, 40), 7), attention_mask=torch.ones(1, 40, dtype=torch.long))


def test_a_sequence_of_processors_loses_only_its_end_token(tmp_path: Path) -> None:
    tokenizer = closed_tokenizer()
    backend = tokenizer.backend_tokenizer
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), backend.post_processor])
    bundle = load(str(fakes.save("llama", tmp_path, tokenizer=tokenizer)))
    assert token_ids.frame(bundle.tokenizer) == ([0], [])


# ---- The record ----


def test_the_record_and_the_report_list_the_changes(tmp_path: Path) -> None:
    folder = edit(fakes.save_with_tokens("bert", tmp_path / "base", ["<name>"]), "config.json", pad_token_id=9_999)
    rows = [{"text": f"<name> has a {word} film {row}", "label": word} for row in range(12) for word in ("good", "bad")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = fulltune.run(
        model=str(folder),
        task="classification",
        data={"train": str(tmp_path / "rows.jsonl"), "eval": str(tmp_path / "rows.jsonl"), "allow_leaks": True},
        train={"max_steps": 1},
        guards={"forgetting": None},
        evaluation={"resamples": 100},
        out=tmp_path / "runs",
    )
    [grown] = [fact for fact in record.model.reconciled if "1 row was added" in fact]
    [page] = (tmp_path / "runs").glob("*/report.html")
    assert grown in page.read_text()


def test_truncation_padding_and_dropout_of_a_tokenizer_json_are_disabled(tmp_path: Path) -> None:
    fakes.save("gpt2", tmp_path)
    path = tmp_path / "tokenizer.json"
    stated = json.loads(path.read_text())
    stated["truncation"] = {"direction": "Left", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    stated["padding"] = {"strategy": {"Fixed": 9}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0}
    stated["padding"] |= {"pad_type_id": 0, "pad_token": "<|endoftext|>"}
    stated["model"]["dropout"] = 0.5
    path.write_text(json.dumps(stated))
    bundle = load(str(tmp_path))
    backend = bundle.tokenizer.backend_tokenizer
    assert (backend.truncation, backend.padding, backend.model.dropout) == (None, None, None)
    assert len(bundle.tokenizer("abcdefgh").input_ids) == 8
    changes = " ".join(bundle.info.reconciled)
    assert "truncates texts to 4 tokens" in changes
    assert "splits words at random (dropout 0.5)" in changes


# ---- Lengths of both sides ----

SMALL: dict[str, Any] = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def two_roberta() -> transformers.EncoderDecoderModel:
    config = transformers.RobertaConfig(**SMALL, intermediate_size=16, max_position_embeddings=64, pad_token_id=1)
    decoder = transformers.RobertaConfig(
        **SMALL, intermediate_size=16, max_position_embeddings=34, pad_token_id=1, is_decoder=True,
        add_cross_attention=True,
    )  # fmt: skip
    both = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(config, decoder)
    return transformers.EncoderDecoderModel(config=both)


def led() -> transformers.LEDForConditionalGeneration:
    config = transformers.LEDConfig(
        vocab_size=60, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, attention_window=8,
        max_encoder_position_embeddings=64, max_decoder_position_embeddings=24,
    )  # fmt: skip
    return transformers.LEDForConditionalGeneration(config)


def prophetnet() -> transformers.ProphetNetForConditionalGeneration:
    config = transformers.ProphetNetConfig(
        vocab_size=60, hidden_size=16, num_encoder_layers=1, num_decoder_layers=1, num_encoder_attention_heads=2,
        num_decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=64,
        pad_token_id=1,
    )  # fmt: skip
    return transformers.ProphetNetForConditionalGeneration(config)


def mpt() -> transformers.MptForCausalLM:
    return transformers.MptForCausalLM(
        transformers.MptConfig(vocab_size=60, d_model=16, n_heads=2, n_layers=1, max_seq_len=48)
    )


@pytest.mark.parametrize(
    ("make", "inputs", "answers"), [(two_roberta, 62, 32), (led, 64, 24), (prophetnet, 62, 61), (mpt, 48, None)]
)
def test_inputs_are_limited_by_the_encoder_and_answers_by_the_decoder(
    make: Callable[[], Any], inputs: int, answers: int | None
) -> None:
    model = make()
    assert (reconcile.own_limit(model), reconcile.answer_limit(model)) == (inputs, answers)
