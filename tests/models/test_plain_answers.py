"""Generated answers and likelihoods of every kind of decoder and encoder-decoder equal a loop over single rows.

Windows and chunks have 16 tokens; prompts share a longer prefix.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
import transformers
from matrix import often
from transformers import PreTrainedModel

from fulltune.config import load_config
from fulltune.models import inference
from fulltune.models.bundle import Bundle, family_of
from fulltune.models.fast_kernels import fast_kernels
from fulltune.models.fast_paths import options
from fulltune.models.save import save_model
from fulltune.models.token_ids import Text, decode
from fulltune.training.batches.packing import packs
from fulltune.training.batches.row_groups import row_groups

LAYERS = ["sliding_attention", "full_attention"]
WINDOW = 16

#: Fields that most configs share.
SIZES: dict[str, Any] = {
    "vocab_size": 90, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 256, "initializer_range": 0.3,
    "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
BART = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 256, "init_std": 0.3, "vocab_size": 90,
    "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip
SSM = {"state_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 90, "initializer_range": 0.3}

DECODERS: dict[str, dict[str, Any]] = {
    "Mistral": SIZES | {"sliding_window": WINDOW},
    "Gemma2": SIZES | {"sliding_window": WINDOW, "layer_types": LAYERS},
    "Gemma3": SIZES | {"sliding_window": WINDOW, "layer_types": LAYERS},
    "Phi3": SIZES | {"sliding_window": WINDOW},
    "GptOss": SIZES | EXPERTS | {"sliding_window": WINDOW, "layer_types": LAYERS},
    "Cohere2": SIZES | {"sliding_window": WINDOW, "layer_types": LAYERS},
    "Qwen2": SIZES | {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": LAYERS},
    "Llama4": SIZES | EXPERTS | {"attention_chunk_size": WINDOW, "intermediate_size_mlp": 48, "moe_layers": [1]},
    "GPTNeo": {
        "vocab_size": 90, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 256,
        "attention_types": [[["global", "local"], 1]], "window_size": WINDOW, "initializer_range": 0.3,
    },
    "ModernBertDecoder": SIZES | {"local_attention": WINDOW, "layer_types": LAYERS},
    "Mpt": {"d_model": 32, "n_heads": 2, "n_layers": 2, "vocab_size": 90, "max_seq_len": 256},
    "Lfm2": SIZES | {"layer_types": ["conv", "full_attention"]},
    "Mamba": SSM,
    "Rwkv": {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2, "context_length": 256},
    "OpenAIGPT": {"vocab_size": 90, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256},
    "Mixtral": SIZES | EXPERTS | {"output_router_logits": True, "sliding_window": WINDOW},
}  # fmt: skip
ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    "Blenderbot": BART,
    "M2M100": BART | {"scale_embedding": False},
    "FSMT": BART | {"langs": ["en", "de"], "src_vocab_size": 90, "tgt_vocab_size": 90, "max_length": 99},
    "ProphetNet": {
        "hidden_size": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_encoder_layers": 1, "vocab_size": 90,
        "num_decoder_layers": 1, "num_encoder_attention_heads": 2, "num_decoder_attention_heads": 2, "init_std": 0.3,
        "max_position_embeddings": 256, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "ngram": 2,
    },
}  # fmt: skip
CLASSES = {"GPTNeo": "GPTNeoForCausalLM", "OpenAIGPT": "OpenAIGPTLMHeadModel", "Gemma3": "Gemma3ForCausalLM"}
CONFIGS = {"Gemma3": "Gemma3TextConfig", "Llama4": "Llama4TextConfig"}


#: One of each kind: a sliding window, chunks and experts, ALiBi, convolutions, a state space, an encoder-decoder.
OFTEN = {"Mistral", "Llama4", "Mpt", "Lfm2", "Mamba", "Blenderbot"}


def small(name: str) -> Bundle:
    """Return a bundle with the same random weights each time."""
    fields = DECODERS.get(name) or ENCODER_DECODERS[name]
    is_decoder = name in DECODERS
    config = getattr(transformers, CONFIGS.get(name, f"{name}Config"))(**fields)
    ending = "ForCausalLM" if is_decoder else "ForConditionalGeneration"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model: PreTrainedModel = getattr(transformers, CLASSES.get(name, name + ending))(config).eval()
        for weight in model.parameters():  # wide enough for distant tokens to matter
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=0.3)
    tokenizer = fakes.bart_tokenizer()
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    return Bundle(model, tokenizer, family_of(config), "lm", 200, fakes.bundle("gpt2").info)


def prompts() -> list[list[int]]:
    """Return prompts that share a prefix longer than a window, and some without it."""
    draw = random.Random(6)
    ids = lambda length: [draw.randrange(5, 90) for _ in range(length)]  # noqa: E731
    shared = ids(37)
    return [shared + ids(draw.randrange(1, 20)) for _ in range(5)] + [ids(4), ids(41)]


@torch.no_grad()
def next_logits(bundle: Bundle, prompt: list[int], new: list[int]) -> torch.Tensor:
    """Return the logits for each of the new tokens, from one pass over one row."""
    model: Any = bundle.model
    if bundle.family == "decoder":
        return model(input_ids=torch.tensor([prompt + new]), **options(model)).logits[0, len(prompt) - 1 :]
    start = model.config.decoder_start_token_id
    read = torch.tensor([[start, *new]])
    return model(input_ids=torch.tensor([prompt]), decoder_input_ids=read, use_cache=False).logits[0]


def greedy(bundle: Bundle, prompt: list[int], count: int) -> str:
    new: list[int] = []
    for _ in range(count):
        token = int(next_logits(bundle, prompt, new)[-1].argmax())
        if token == bundle.tokenizer.eos_token_id:
            break
        new.append(token)
    return decode(bundle, new, skip_special_tokens=True)


@pytest.mark.parametrize("name", often([*DECODERS, *ENCODER_DECODERS], OFTEN.__contains__))
def test_answers_are_those_of_a_loop_over_single_rows(name: str) -> None:
    bundle = small(name)
    expected = [greedy(bundle, prompt, 6) for prompt in prompts()]
    assert len(set(expected)) > 1, "a model that says the same to everything shows nothing"
    assert [one.text for one in inference.generate(bundle, prompts(), 4, 6)] == expected


@pytest.mark.parametrize("name", often([*DECODERS, *ENCODER_DECODERS], OFTEN.__contains__))
def test_likelihoods_are_those_of_single_rows(name: str) -> None:
    bundle, draw = small(name), random.Random(8)
    texts = [Text(prompt, [draw.randrange(5, 90) for _ in range(1 + place)]) for place, prompt in enumerate(prompts())]
    texts += [Text(texts[0].context, texts[place].target) for place in (1, 3)]
    for text, found in zip(texts, inference.likelihoods(bundle, texts, 4), strict=True):
        losses = -next_logits(bundle, text.context, text.target[:-1]).double().log_softmax(-1)
        expected = float(losses.gather(1, torch.tensor(text.target)[:, None]).sum())
        assert found.nll == pytest.approx(expected, abs=1e-4 * found.tokens)


@pytest.mark.parametrize("name", ["Mistral", "Llama4", "Mpt", "Blenderbot"])
def test_answers_are_the_same_with_fast_kernels(name: str) -> None:
    bundle = small(name)
    expected = [greedy(bundle, prompt, 6) for prompt in prompts()]
    with fast_kernels(bundle.model):
        assert [one.text for one in inference.generate(bundle, prompts(), 4, 6)] == expected


def spy(bundle: Bundle) -> list[int]:
    """Record the number of rows of each later forward pass of the model."""
    rows: list[int] = []

    def note(module: Any, args: Any, given: dict[str, Any], output: Any) -> None:
        ids = given.get("input_ids")
        rows.append(1 if ids is None else len(ids))

    bundle.model.register_forward_hook(note, with_kwargs=True)
    return rows


@pytest.mark.parametrize("make", [lambda: small("Mistral"), lambda: fakes.bundle("gpt2")])
def test_rows_are_batched_despite_windows(make: Callable[[], Bundle], caplog: pytest.LogCaptureFixture) -> None:
    bundle = make()
    list(inference.generate(bundle, prompts(), 4, 6))
    rows = spy(bundle)
    list(inference.generate(bundle, prompts(), 4, 6))
    assert max(rows) == 4
    assert caplog.records == []


def test_a_fast_path_that_changes_answers_is_logged_once_and_disabled(caplog: pytest.LogCaptureFixture) -> None:
    bundle = small("Rwkv")
    list(inference.generate(bundle, prompts(), 4, 6))
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == len(set(messages))
    assert any("without padding in generation: it would change the answers" in line for line in messages)
    list(inference.generate(bundle, prompts(), 4, 6))
    assert len(caplog.records) == len(messages)


#: The last length of a row with the original positions.
CHANGE = 64


def long_rope(name: str) -> Bundle:
    """Return a decoder whose positions change in rows longer than :data:`CHANGE`."""
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    rope |= {"original_max_position_embeddings": CHANGE, "factor": 4.0}
    own = {"original_max_position_embeddings": CHANGE} if name == "Phi3" else {}
    DECODERS["long"] = SIZES | {"rope_parameters": rope, **own}
    CLASSES["long"], CONFIGS["long"] = f"{name}ForCausalLM", f"{name}Config"
    return small("long")


def around_the_change() -> list[list[int]]:
    """Return prompts with a common beginning that end before, at and after the change of positions."""
    draw = random.Random(5)
    shared = [draw.randrange(5, 90) for _ in range(50)]
    return [shared + [draw.randrange(5, 90) for _ in range(more)] for more in (2, 6, 10, 14, 15, 17, 3, 30, 20, 80)]


@pytest.mark.parametrize("name", ["Phi3", "Llama"])
@pytest.mark.parametrize("size", [1, 4])
def test_answers_across_a_change_of_positions_are_those_of_single_rows(name: str, size: int) -> None:
    bundle = long_rope(name)
    expected = [greedy(bundle, prompt, 8) for prompt in around_the_change()]
    assert len(set(expected)) > 1
    seen: dict[int, list[list[int]]] = {}
    watch = lambda row, new: seen.setdefault(len(row), []).append(list(new))  # noqa: E731
    found = list(inference.generate(bundle, around_the_change(), size, 8, watch))
    assert [one.text for one in found] == expected
    assert set(seen) == {len(prompt) for prompt in around_the_change()}


@pytest.mark.parametrize("name", ["Phi3", "Llama"])
def test_likelihoods_across_a_change_of_positions_are_those_of_single_rows(name: str) -> None:
    bundle = long_rope(name)
    pairs = [(prompt, target) for prompt in around_the_change() for target in ([7, 8], [9], [11, 12, 13])]
    texts = [Text(context, target) for context, target in pairs]
    for text, found in zip(texts, inference.likelihoods(bundle, texts, 4), strict=True):
        losses = -next_logits(bundle, text.context, text.target).double().log_softmax(-1)[:-1]
        expected = float(losses.gather(1, torch.tensor(text.target)[:, None]).sum())
        assert found.nll == pytest.approx(expected, abs=1e-4 * found.tokens)


def test_training_computes_rows_on_the_same_side_of_a_change_of_positions_together() -> None:
    model = long_rope("Llama").model

    def groups(*lengths: int, width: int) -> list[list[int]] | None:
        mask = torch.tensor([[1] * length + [0] * (width - length) for length in lengths])
        ids = torch.full_like(mask, 7)
        return row_groups(model, {"input_ids": ids, "attention_mask": mask, "labels": ids}, "causal")

    assert groups(70, 60, 20, 66, width=70) == [[0, 3], [1, 2]]
    assert groups(70, 66, width=70) is None
    assert groups(60, 20, width=64) is None
    assert groups(60, 20, width=72) == [[0, 1]], "padding alone would change the positions"


def test_documents_are_not_packed_across_a_change_of_positions() -> None:
    model = long_rope("Llama").model
    for longest in (CHANGE, CHANGE + 1):
        data = {"train": "x.jsonl", "max_length": longest}
        assert packs(model, load_config({"model": "x", "task": "causal-lm", "data": data})) == (longest == CHANGE)


@pytest.mark.parametrize(("layers", "expected"), [(2, True), (3, False)])
def test_a_saved_model_generates_without_a_cache_that_fails(layers: int, expected: bool, tmp_path: Path) -> None:
    """The cache of transformers has the layers of the encoder: a longer decoder fails with it."""
    bundle = fakes.bundle("t5", num_decoder_layers=layers)
    save_model(bundle, tmp_path)
    plain = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert plain.generation_config.use_cache is expected
    ids = bundle.tokenizer("the fox met a king").input_ids
    [answer] = inference.generate(bundle, [ids], 1, 6)
    new = plain.generate(torch.tensor([ids]), max_new_tokens=6)[0]
    assert bundle.tokenizer.decode(new, skip_special_tokens=True) == answer.text
