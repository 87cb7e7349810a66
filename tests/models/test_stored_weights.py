"""A checkpoint whose weights are not those that its config.json describes is refused, or its record says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from fulltune.errors import ModelError
from fulltune.models.load import load
from fulltune.models.save import save_model

Weights = dict[str, torch.Tensor]


def changed(folder: Path, change: Callable[[Weights], Weights]) -> str:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    return str(folder)


def configured(folder: Path, **fields: Any) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return str(folder)


# ---- Shapes ----


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"vocab_size": 100}, r"lm_head.weight is 258 × 32, not 100 × 32, model.embed_tokens.weight is 258 × 32"),
        ({"num_key_value_heads": 2}, r"k_proj.weight is 16 × 32, not 32 × 32, .* and \d more"),
    ],
)
def test_other_shapes_than_config_json_states_are_named(fields: dict[str, int], words: str, tmp_path: Path) -> None:
    name = configured(fakes.save("llama", tmp_path), **fields)
    with pytest.raises(ModelError, match=words) as caught:
        load(name)
    assert "expected the config.json of these weights. Correct config.json" in str(caught.value)


def test_the_body_of_a_classifier_is_never_replaced(tmp_path: Path) -> None:
    name = configured(fakes.save("bert", tmp_path), vocab_size=200)
    with pytest.raises(ModelError, match=r"word_embeddings.weight is \d+ × 32, not 200 × 32"):
        load(name, "classification", labels=("no", "yes"))


# ---- Missing and unused weights ----


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model."])
def test_the_names_of_a_saved_wrapper_are_recognized(prefix: str, tmp_path: Path) -> None:
    name = changed(fakes.save("llama", tmp_path), lambda old: {prefix + key: value for key, value in old.items()})
    with pytest.raises(ModelError, match=f"names in its files begin with '{prefix}'") as caught:
        load(name)
    assert f"Remove '{prefix}' from the names" in str(caught.value)


def test_missing_input_embeddings_are_refused(tmp_path: Path) -> None:
    def without(old: Weights) -> Weights:
        return {key: value for key, value in old.items() if "embed" not in key}

    with pytest.raises(
        ModelError, match=r"1 of \d+ body weights .* \(model.embed_tokens.weight\): they would be random"
    ):
        load(changed(fakes.save("llama", tmp_path), without))


def test_a_random_output_layer_is_recorded(tmp_path: Path) -> None:
    folder = fakes.save("llama", tmp_path, "classification")
    facts = load(str(folder)).info.reconciled
    assert facts == ("1 weight is not in the checkpoint and got random values: lm_head.weight",)
    assert load(str(folder), "classification", labels=("no", "yes")).info.reconciled == ()


@pytest.mark.parametrize("head", ["lm", "classification"])
def test_layers_that_the_model_lacks_are_recorded(head: Any, tmp_path: Path) -> None:
    name = configured(fakes.save("llama", tmp_path), num_hidden_layers=1)
    [fact] = load(name, head, labels=("a", "b") if head == "classification" else ()).info.reconciled
    assert fact.startswith("9 weights are in the checkpoint, but not in the model, and not used: model.layers.1.input")


def test_an_adapters_weights_among_those_of_the_model_are_recorded(tmp_path: Path) -> None:
    key = "model.layers.0.mlp.up_proj.lora_A.weight"
    name = changed(fakes.save("llama", tmp_path), lambda old: old | {key: torch.ones(2, 32)})
    assert load(name).info.reconciled == (f"1 weight is in the checkpoint, but not in the model, and not used: {key}",)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("kind", "head"), [("llama", "lm"), ("bert", "lm"), ("bert", "classification")])
def test_weights_that_are_not_finite_are_named(kind: str, head: Any, value: float, tmp_path: Path) -> None:
    def damaged(old: Weights) -> Weights:
        old[next(key for key in sorted(old) if "embed" in key and key.endswith("weight"))][0] = value
        return old

    name = changed(fakes.save(kind, tmp_path), damaged)
    with pytest.raises(ModelError, match=r"has NaN or infinite values in \S*embed\S*; expected finite weights"):
        load(name, head, labels=("a", "b") if head == "classification" else ())


# ---- Settings that change the answers or prevent saving ----


def test_requested_outputs_do_not_prevent_saving(tmp_path: Path) -> None:
    name = configured(fakes.save("llama", tmp_path / "base"), output_attentions=True, output_hidden_states=True)
    bundle = load(name)
    assert [fact.partition(" of ")[0] for fact in bundle.info.reconciled] == [
        "output_attentions",
        "output_hidden_states",
    ]
    save_model(bundle, tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert not again.config.output_attentions


@pytest.mark.parametrize(("limit", "used"), [("64", 64), ("very long", None)])
def test_a_length_limit_that_is_no_number(limit: str, used: int | None, tmp_path: Path) -> None:
    folder = fakes.save("llama", tmp_path)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": limit}))
    bundle = load(str(folder))
    [fact] = bundle.info.reconciled
    assert repr(limit) in fact
    assert bundle.tokenizer.model_max_length == used or used is None
    assert bundle.tokenizer("the law").input_ids


@pytest.mark.parametrize("kind", ["gpt2", "bart"])
def test_token_types_never_change_the_answers_of_the_saved_model(kind: str, tmp_path: Path) -> None:
    folder = fakes.save(kind, tmp_path / "base")
    path = folder / "tokenizer_config.json"
    names = ["input_ids", "token_type_ids", "attention_mask"]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_input_names": names}))
    bundle = load(str(folder), "classification", labels=("a", "b"))
    save_model(bundle, tmp_path / "saved")
    assert set(AutoTokenizer.from_pretrained(tmp_path / "saved")("law")) == {"input_ids", "attention_mask"}
    assert "token_type_ids" in bundle.info.reconciled[0]
