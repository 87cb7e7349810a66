"""Each method that trains few tensors: what it trains, that nothing else changes, and that its numbers are correct."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import peft
import pytest
import torch
from matrix import often
from transformers import Trainer as PlainTrainer

from fulltune import Config, ConfigError, ModelError
from fulltune.errors import MissingDependencyError
from fulltune.models.adapters import nf4, soft_prompt
from fulltune.models.bundle import Bundle
from fulltune.models.load import load
from fulltune.records.run import Parameters
from fulltune.runtime import plugins
from fulltune.tasks.base import Features
from fulltune.training.advice import advice
from fulltune.training.defaults import ModelKind, with_defaults
from fulltune.training.fit import TrainingResult, fit
from fulltune.training.guards.overfitting import BestState
from fulltune.training.methods.adapters import head_modules
from fulltune.training.methods.lora import targets
from fulltune.training.methods.proof import fingerprints

METHODS = ("lora", "qlora", "prompt-tuning", "linear-probe", "bitfit")
TEXTS = ("the fox", "a king", "law", "the court of the state")


def config(method: str, *, regularize: Any = None, trainer: Any = None, adapter: Any = None, **train: Any) -> Config:
    options = {"epochs": 3, "batch_size": 2, "learning_rate": 1e-2, "evaluations": 0, "weight_decay": 0.0} | train
    return Config(
        model="m",
        task="causal-lm",
        method=method,
        data={"train": "x"},
        train=options,
        regularize=regularize or {},
        trainer=trainer or {},
        adapter=adapter or {},
    )


def made(method: str, **options: Any) -> Any:
    return plugins.load("method", method)(config(method, **options))


def features_of(bundle: Bundle) -> list[Features]:
    rows = [list(bundle.tokenizer(text).input_ids) for text in TEXTS]
    is_class = bundle.head == "classification"
    return [Features(ids, number % 2 if is_class else list(ids), str(number)) for number, ids in enumerate(rows)]


def trained(bundle: Bundle, method: Any, folder: Path) -> TrainingResult:
    return fit(bundle, method, features_of(bundle), None, method.config, output_dir=folder)


@torch.no_grad()
def answer(bundle: Bundle, texts: Sequence[str] = TEXTS[:1], prompt: bool = True) -> torch.Tensor:
    """Return the logits of one text, without those of a soft prompt."""
    before = bundle.prompt_ids if prompt else []
    ids = torch.tensor([before + list(bundle.tokenizer(texts[0]).input_ids)])
    own = {"decoder_input_ids": torch.tensor([[0, 5, 6]])} if bundle.family == "encoder-decoder" else {}
    if bundle.head == "classification":
        return bundle.model(input_ids=ids).logits
    logits = bundle.model(input_ids=ids, **own).logits
    return logits[:, len(before) :] if bundle.family == "decoder" else logits


FITTING = [
    ("lora", "gpt2", "lm"),
    ("lora", "llama", "classification"),
    ("lora", "bert", "classification"),
    ("lora", "t5", "lm"),
    ("lora", "bart", "classification"),
    ("qlora", "gpt2", "classification"),
    ("qlora", "llama", "lm"),
    ("qlora", "bert", "classification"),
    ("qlora", "t5", "lm"),
    ("prompt-tuning", "gpt2", "lm"),
    ("prompt-tuning", "gpt2", "classification"),
    ("prompt-tuning", "bert", "classification"),
    ("prompt-tuning", "t5", "lm"),
    ("prompt-tuning", "t5", "classification"),
    ("prompt-tuning", "bart", "lm"),
    ("linear-probe", "bert", "classification"),
    ("linear-probe", "t5", "classification"),
    ("linear-probe", "llama", "lm"),
    ("bitfit", "gpt2", "lm"),
    ("bitfit", "bert", "classification"),
    ("bitfit", "bart", "lm"),
]

#: One of each method; three families, both heads.
OFTEN = [FITTING[place] for place in (3, 6, 9, 15, 18)]


@pytest.mark.parametrize(("name", "kind", "head"), often(FITTING, lambda case: case in OFTEN))
def test_only_the_trainable_parameters_change(name: str, kind: str, head: str, tmp_path: Path) -> None:
    bundle, method = fakes.bundle(kind, head), made(name)
    before = bundle.model.num_parameters()
    found = trained(bundle, method, tmp_path).parameters
    learned = [key for key, value in bundle.model.named_parameters() if value.requires_grad]
    assert 0 < found.trainable < found.total / 2
    assert found.frozen == found.total - found.trainable
    assert found.moved > 0.9
    assert all(_is_part(name, key, head_modules(bundle)) for key in learned)
    if head == "classification":
        assert any(key.startswith(part) for part in head_modules(bundle) for key in learned)
    if name in ("linear-probe", "bitfit"):
        assert found.total == before
    assert "frozen tensors are unchanged, byte for byte" in "\n".join(found.evidence)


def _is_part(method: str, key: str, heads: Sequence[str]) -> bool:
    parts = {
        "lora": "lora_",
        "qlora": "lora_",
        "prompt-tuning": "soft_prompt",
        "linear-probe": "lm_head",
        "bitfit": "bias",
    }
    return parts[method] in key or any(key.startswith(f"{head}.") for head in heads)


def test_every_method_is_in_that_table() -> None:
    assert {name for name, _, _ in FITTING} == set(METHODS)
    assert set(plugins.names("method")) == {"full", *METHODS}


def test_a_frozen_tensor_that_changed_is_named() -> None:
    bundle, method = fakes.bundle("gpt2"), made("bitfit")
    method.prepare(bundle)
    with torch.no_grad():
        bundle.model.transformer.wpe.weight.add_(1)
    with pytest.raises(ModelError, match=r"1 tensors are frozen, but changed: transformer\.wpe\.weight"):
        method.proof(bundle)


# ---- LoRA ----

MERGED = [("gpt2", "lm"), ("t5", "lm"), ("bart", "classification")]


@pytest.mark.parametrize(("kind", "head"), [("gpt2", "lm"), ("t5", "lm"), ("bert", "classification")])
def test_lora_starts_as_the_base(kind: str, head: str) -> None:
    bundle = fakes.bundle(kind, head)
    base = answer(bundle)
    made("lora").prepare(bundle)
    torch.testing.assert_close(answer(bundle), base, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "kind", "head"),
    often(
        [(name, *model) for name in ("lora", "qlora") for model in MERGED],
        lambda case: case[:2] in [("lora", "gpt2"), ("lora", "t5"), ("qlora", "gpt2"), ("lora", "bart")],
    ),
)
def test_a_merged_model_is_plain_and_gives_the_same_answers(name: str, kind: str, head: str, tmp_path: Path) -> None:
    bundle, method = fakes.bundle(kind, head), made(name)
    base, layers = answer(bundle), [type(layer) for layer in bundle.model.modules()]
    trained(bundle, method, tmp_path)
    before = answer(bundle)
    method.merge(bundle)
    torch.testing.assert_close(answer(bundle), before, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before, base, atol=1e-4)
    assert [type(layer) for layer in bundle.model.modules()] == layers
    assert {value.dtype for value in bundle.model.parameters()} == {torch.float32}


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_lora_trains_like_peft_with_a_plain_trainer(tmp_path: Path) -> None:
    """Start from the same factors with the same batches: the losses equal those of an independent loop."""
    options = {"max_steps": 6, "scheduler": "constant", "warmup": 0, "learning_rate": 1e-2, "batch_size": 4}
    ours = fakes.bundle("gpt2", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    method = made("lora", trainer={"logging_steps": 1}, **options)
    theirs, _ = fakes.gpt2(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    wrapped = peft.get_peft_model(
        theirs,
        peft.LoraConfig(
            r=16, lora_alpha=32, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True, task_type="CAUSAL_LM"
        ),
    )
    text = "the fox met a king"
    ids = list(ours.tokenizer(text).input_ids)
    # transformers counts the first token, which is not predicted, in the denominator unless it has no label.
    features = [Features(ids, [-100, *ids[1:]], "0")] * 4
    begun: dict[str, torch.Tensor] = {}

    def keep(bundle: Bundle) -> Sequence[Any]:
        begun.update({key: value.detach().clone() for key, value in bundle.model.named_parameters() if "lora_" in key})
        return ()

    result = fit(ours, method, features, None, method.config, output_dir=tmp_path, regularize=keep)
    own = dict(wrapped.get_base_model().named_parameters())
    assert len(begun) == 16
    for key, value in begun.items():
        own[key].data.copy_(value)
    row = {"input_ids": features[0].input_ids, "labels": features[0].labels}
    arguments = fakes.arguments(
        tmp_path, max_steps=6, learning_rate=1e-2, lr_scheduler_type="constant", per_device_train_batch_size=4
    )
    plain = PlainTrainer(
        model=wrapped,
        args=arguments,
        train_dataset=[row] * 4,
        data_collator=lambda rows: {key: torch.tensor([one[key] for one in rows]) for key in rows[0]},
    )
    plain.train()
    losses = [step["loss"] for step in plain.state.log_history if "loss" in step]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    np.testing.assert_allclose([step.loss for step in result.steps], losses, rtol=1e-3)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("targets", [["query"], ["bert.encoder.layer.0.attention.self.query"], r".*\.query"])
def test_an_adapter_of_peft_fits_its_base_with_any_head(targets: Any, tmp_path: Path) -> None:
    """A checkpoint with a classification head is loaded without it, as a body whose layers have shorter names."""
    base = fakes.save("bert", tmp_path / "base", "classification")
    classifier = load(str(base), "classification")
    config = peft.LoraConfig(r=2, target_modules=targets, task_type="SEQ_CLS", init_lora_weights=False)
    wrapped = peft.get_peft_model(classifier.model, config)
    wrapped.peft_config["default"].base_model_name_or_path = str(base)
    wrapped.save_pretrained(tmp_path / "adapter")
    row = classifier.tokenizer("the fox met a king", return_tensors="pt")
    with torch.no_grad():
        states = wrapped.merge_and_unload().bert(**row).last_hidden_state
    for head in ("lm", "classification"):
        bundle = load(str(tmp_path / "adapter"), head, labels=["a", "b"] if head == "classification" else ())
        body = bundle.model if head == "lm" else bundle.model.bert
        with torch.no_grad():
            torch.testing.assert_close(body(**row).last_hidden_state, states, rtol=1e-5, atol=1e-5)
        assert "its classes have no names" in bundle.info.reconciled[-1]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}),
        ("llama", {"target_modules": ["q_proj"], "trainable_token_indices": [5, 6]}),
        ("gpt2", {"target_modules": ["c_attn"], "bias": "all", "fan_in_fan_out": True}),
    ],
)
def test_what_an_adapter_of_peft_trains_beside_its_factors_is_applied(
    kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    base = fakes.save(kind, tmp_path / "base", **({"tie_word_embeddings": False} if kind == "llama" else {}))
    wrapped: Any = peft.get_peft_model(load(str(base)).model, peft.LoraConfig(r=2, task_type="CAUSAL_LM", **options))
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    wrapped.peft_config["default"].base_model_name_or_path = str(base)
    wrapped.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[4, 5, 6, 7]])
    expected = wrapped.eval()(input_ids=ids).logits
    found = load(str(tmp_path / "adapter")).model.eval()(input_ids=ids).logits
    assert torch.allclose(found, expected, atol=1e-4)
    body = load(str(tmp_path / "adapter"), "classification", labels=["a", "b"]).model.base_model
    expected = wrapped.base_model.model.base_model(input_ids=ids)[0]
    assert torch.allclose(body.eval()(input_ids=ids)[0], expected, atol=1e-4), "with a new head"


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_weights_of_an_adapter_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    base = fakes.save("llama", tmp_path / "base")
    model: Any = load(str(base)).model
    model.resize_token_embeddings(model.config.vocab_size + 3)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    wrapped.peft_config["default"].base_model_name_or_path = str(base)
    wrapped.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    with pytest.raises(ModelError, match=r"do not fit its base.*merge_and_unload"):
        load(str(tmp_path / "adapter"))


def test_lora_targets_are_names_or_all_linear() -> None:
    bundle = fakes.bundle("llama")
    every = targets(bundle, "all-linear")
    assert len(every) == 14
    assert not any("lm_head" in name for name in every)
    assert targets(bundle, ["q_proj", "self_attn.v_proj"]) == [
        f"model.layers.{layer}.self_attn.{name}_proj" for layer in (0, 1) for name in "qv"
    ]
    with pytest.raises(
        ModelError, match=r"no linear layer of LlamaForCausalLM is named 'q_pro'.*Did you mean 'q_proj'"
    ):
        targets(bundle, "q_pro")


def test_rank_alpha_and_seed_are_those_of_the_config() -> None:
    bundle = fakes.bundle("llama")
    made("lora", adapter={"rank": 4, "alpha": 6, "targets": "q_proj"}).prepare(bundle)
    layer = bundle.model.model.layers[0].self_attn.q_proj
    assert layer.lora_A["default"].weight.shape == (4, fakes.HIDDEN)
    assert layer.scaling["default"] == 6 / 4
    again = fakes.bundle("llama")
    torch.rand(3)
    made("lora", adapter={"rank": 4, "alpha": 6, "targets": "q_proj"}).prepare(again)
    assert fingerprints(again.model) == fingerprints(bundle.model)


@pytest.mark.parametrize(
    ("name", "kind"),
    often(product(["lora", "qlora"], ["gpt2", "t5"]), lambda case: case == ("lora", "gpt2")),
)
def test_new_tokens_get_trainable_embeddings(name: str, kind: str, tmp_path: Path) -> None:
    bundle = load(str(fakes.save_with_tokens(kind, tmp_path / "base", ["<one>"])))
    rows = bundle.model.get_input_embeddings().weight.shape[0] - 1
    old = bundle.model.get_input_embeddings().weight[:rows].detach().clone()
    method = made(name)
    ids = [*bundle.tokenizer("the fox").input_ids, rows]
    fit(bundle, method, [Features(ids, list(ids), "0")] * 4, None, method.config, output_dir=tmp_path)
    fresh = bundle.model.get_input_embeddings()
    method.merge(bundle)
    after = bundle.model.get_input_embeddings().weight
    assert fresh is not bundle.model.get_input_embeddings()
    assert after.shape[0] == rows + 1
    assert torch.equal(after[:rows], old)
    assert bundle.model.get_output_embeddings().weight is after


@pytest.mark.parametrize("name", ["prompt-tuning", "linear-probe", "bitfit"])
def test_new_tokens_that_nothing_would_train_are_refused(name: str, tmp_path: Path) -> None:
    bundle = load(str(fakes.save_with_tokens("gpt2", tmp_path, ["<one>"])))
    with pytest.raises(ModelError, match=f"{name} trains none.*Use full or lora"):
        made(name).prepare(bundle)


def test_a_pooler_that_the_checkpoint_lacks_is_trained_with_the_head(tmp_path: Path) -> None:
    from fulltune.models import load as models

    fakes.save("bert", tmp_path / "base")
    bundle = models.load(str(tmp_path / "base"), "classification", labels=("no", "yes"))
    assert head_modules(bundle) == ["classifier", "bert.pooler.dense"]
    fakes.save("bert", tmp_path / "tuned", "classification")
    again = models.load(str(tmp_path / "tuned"), "classification", labels=("no", "yes"))
    assert head_modules(again) == ["classifier"]


# ---- QLoRA ----


@pytest.mark.parametrize(("kind", "layers"), [("gpt2", 8), ("t5", 28), ("bert", 12)])
def test_qlora_holds_the_body_in_4_bits(kind: str, layers: int) -> None:
    import bitsandbytes

    plain, bundle = fakes.bundle(kind), fakes.bundle(kind)
    made("qlora").prepare(bundle)
    quantized = {
        name.removesuffix(".base_layer"): layer
        for name, layer in bundle.model.named_modules()
        if nf4.is_quantized(layer)
    }
    assert len(quantized) == layers
    for name, layer in quantized.items():
        weight = plain.model.get_submodule(name).weight.detach()
        weight = weight.T.contiguous() if kind == "gpt2" else weight
        octets, state = bitsandbytes.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
        assert torch.equal(layer.weight.data.view(-1), octets.view(-1))
        assert layer.weight.dtype == torch.uint8
        assert layer.weight.numel() == weight.numel() / 2
        assert torch.equal(nf4.dequantized(layer), bitsandbytes.functional.dequantize_4bit(octets, state))


def test_qlora_still_trains_after_an_evaluation(tmp_path: Path) -> None:
    bundle, method = fakes.bundle("llama"), made("qlora")
    method.prepare(bundle)
    before = fingerprints(bundle.model)
    bundle.model.eval()
    answer(bundle)
    bundle.model.train()
    bundle.model(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss.backward()
    first = bundle.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight
    assert first.grad is not None
    assert float(first.grad.abs().sum()) > 0
    assert fingerprints(bundle.model) == before


def test_qlora_reports_what_4_bits_save(tmp_path: Path) -> None:
    found = trained(fakes.bundle("llama"), made("qlora"), tmp_path).parameters
    line = next(line for line in found.evidence if "4 bits" in line)
    weights, octets = (
        int(word.replace(",", "")) for word in line.split() if word.replace(",", "").isdigit() and "," in word
    )
    assert 0.5 < octets / weights < 1.5
    assert found.dtype == "float32, frozen linear layers NF4"


# ---- Prompt tuning ----


def test_a_prompt_starts_as_its_text() -> None:
    bundle = fakes.bundle("gpt2")
    ids = bundle.tokenizer("law of the state", add_special_tokens=False).input_ids
    made("prompt-tuning", adapter={"prompt_text": "law of the state", "prompt_tokens": len(ids)}).prepare(bundle)
    assert torch.equal(bundle.model.soft_prompt, bundle.model.get_input_embeddings().weight[ids])
    text = "the fox"
    whole = torch.tensor([ids + bundle.tokenizer(text).input_ids])
    with torch.no_grad():
        read = bundle.model(input_ids=whole).logits[:, len(ids) :]
    torch.testing.assert_close(answer(bundle, [text]), read)


def test_a_text_is_repeated_or_cut_to_the_length_of_the_prompt() -> None:
    bundle = fakes.bundle("gpt2")
    ids = bundle.tokenizer("law", add_special_tokens=False).input_ids
    table = bundle.model.get_input_embeddings().weight
    assert torch.equal(soft_prompt.vectors_of(bundle.model, ids, 7), table[(ids * 7)[:7]])
    assert torch.equal(soft_prompt.vectors_of(bundle.model, ids, 1), table[ids[:1]])


def test_a_prompt_without_a_text_starts_as_random_tokens() -> None:
    prompts = []
    for _ in range(2):
        bundle = fakes.bundle("t5")
        made("prompt-tuning", adapter={"prompt_tokens": 5}).prepare(bundle)
        prompts.append(bundle.model.soft_prompt.detach())
        torch.rand(1)
    assert torch.equal(*prompts)
    table = fakes.bundle("t5").model.get_input_embeddings().weight
    assert all(bool((table == row).all(dim=1).any()) for row in prompts[0])


def test_a_prompt_of_no_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"field 'adapter.prompt_text': '' has no tokens"):
        made("prompt-tuning", adapter={"prompt_text": ""}).prepare(fakes.bundle("gpt2"))


@pytest.mark.parametrize(("kind", "head"), [("gpt2", "classification"), ("llama", "classification")])
def test_padding_is_not_mistaken_for_the_last_token(kind: str, head: str) -> None:
    """A decoder that classifies would do that if it got embeddings without ids."""
    bundle = fakes.bundle(kind, head)
    made("prompt-tuning").prepare(bundle)
    ids = bundle.prompt_ids + list(bundle.tokenizer("the fox").input_ids)
    pad = int(bundle.tokenizer.pad_token_id or 0)
    mask = torch.tensor([[1] * len(ids) + [0] * 3])
    with torch.no_grad():
        alone = bundle.model(input_ids=torch.tensor([ids])).logits
        padded = bundle.model(input_ids=torch.tensor([ids + [pad] * 3]), attention_mask=mask).logits
    torch.testing.assert_close(alone, padded, rtol=1e-4, atol=1e-5)


# ---- The others ----


def test_bitfit_needs_biases() -> None:
    with pytest.raises(ModelError, match=r"LlamaForCausalLM has no biases.*Use lora"):
        made("bitfit").prepare(fakes.bundle("llama"))


@pytest.mark.parametrize("kind", ["gpt2", "t5", "bart"])
def test_a_tied_output_layer_cannot_be_probed(kind: str) -> None:
    with pytest.raises(ModelError, match=r"has no separate output layer: its weight is that of the input embeddings"):
        made("linear-probe").prepare(fakes.bundle(kind))


# ---- All methods ----


@pytest.mark.parametrize(
    ("method", "key", "value"),
    [("full", "rank", 4), ("lora", "prompt_tokens", 4), ("prompt-tuning", "rank", 4), ("bitfit", "targets", ["q"])],
)
def test_a_key_that_the_method_does_not_read_is_refused(method: str, key: str, value: Any) -> None:
    with pytest.raises(
        ConfigError, match=rf"field 'adapter.{key}': .* for the method {method}; expected keys that it reads"
    ):
        made(method, adapter={key: value})


@pytest.mark.parametrize(
    ("method", "key"),
    [("lora", "l2_sp"), ("qlora", "distill"), ("prompt-tuning", "ewc"), ("linear-probe", "layer_decay")],
)
def test_a_regularizer_without_any_effect_is_refused(method: str, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"field 'regularize.{key}': 0.5 for the method {method}"):
        made(method, regularize={key: 0.5})


def test_l2_sp_acts_only_on_what_bitfit_trains(tmp_path: Path) -> None:
    from fulltune.training.regularization.penalties import shared_parameters

    base, tuned = fakes.bundle("gpt2"), fakes.bundle("gpt2")
    made("bitfit").prepare(tuned)
    names = [shared.name for shared in shared_parameters(base, tuned)]
    assert names
    assert all(name.endswith("bias") for name in names)


@pytest.mark.parametrize("name", METHODS)
def test_reduced_precision_is_refused_by_all(name: str) -> None:
    with pytest.raises(ConfigError, match=f"field 'trainer.bf16': reduced precision; expected float32.*`{name}`"):
        made(name, trainer={"bf16": True})


@pytest.mark.parametrize(("name", "package"), [("lora", "peft"), ("qlora", "bitsandbytes")])
def test_a_missing_package_is_reported_with_its_extra(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: None if asked == package else find(asked))
    with pytest.raises(MissingDependencyError, match=rf"needs {package}.*\[adapters\]"):
        made(name)


@pytest.mark.parametrize("name", ["lora", "prompt-tuning"])
def test_gradient_checkpointing_changes_no_number(name: str, tmp_path: Path) -> None:
    found = []
    for recompute in (False, True):
        bundle, method = fakes.bundle("llama"), made(name, gradient_checkpointing=recompute)
        trained(bundle, method, tmp_path)
        found.append({key: value for key, value in bundle.model.named_parameters() if value.requires_grad})
    assert len(found[0]) > 0
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value)


@pytest.mark.parametrize("name", ["lora", "qlora", "prompt-tuning", "bitfit"])
def test_the_best_state_holds_the_trainable_parameters_and_is_restored(name: str, tmp_path: Path) -> None:
    bundle, method = fakes.bundle("gpt2"), made(name)
    method.prepare(bundle)
    state, before = BestState(tmp_path / "best.safetensors"), fingerprints(bundle.model)
    state.keep(bundle.model, 3, 0.5)
    size = sum(value.nbytes for value in bundle.model.parameters() if value.requires_grad)
    assert (tmp_path / "best.safetensors").stat().st_size < size + 20_000
    with torch.no_grad():
        for value in bundle.model.parameters():
            if value.requires_grad:
                value.add_(1)
    assert fingerprints(bundle.model) != before
    state.restore(bundle.model)
    assert fingerprints(bundle.model) == before


@pytest.mark.parametrize("method", sorted({"full", *METHODS}))
@pytest.mark.parametrize("parameters", [5_000_000, 22_000_000, 10**9])
@pytest.mark.parametrize("family", ["encoder", "decoder", "encoder-decoder"])
def test_the_default_rate_of_a_method_needs_no_advice(method: str, parameters: int, family: str) -> None:
    asked = Config(model="m", task="causal-lm", method=method, data={"train": "x"})
    chosen = with_defaults(asked, ModelKind(family, parameters), sequences=1000)
    given = advice(chosen, 1000, parameters, is_encoder_decoder=family == "encoder-decoder")
    assert [line for line in given if "learning_rate" in line] == []
    far = Config(model="m", task="causal-lm", method=method, data={"train": "x"}, train={"learning_rate": 5.0})
    assert len([line for line in advice(far, 1000, 10**9) if "learning_rate" in line]) == 1


def test_the_parameters_of_a_record_add_up(tmp_path: Path) -> None:
    bundle = fakes.bundle("bert", "classification")
    base = bundle.model.num_parameters()
    found: Parameters = trained(bundle, made("lora", adapter={"rank": 2}), tmp_path).parameters
    factors = sum(value.numel() for key, value in bundle.model.named_parameters() if "lora_" in key)
    assert found.total == base + factors
    assert found.trainable == factors + sum(
        value.numel() for value in bundle.model.classifier.modules_to_save.parameters()
    )
