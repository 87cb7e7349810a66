"""A GGUF file becomes plain float32 weights that train and save like any other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from fulltune.errors import ModelError
from fulltune.models import load
from fulltune.models.save import save_model

gguf = pytest.importorskip("gguf", reason="GGUF files need the gguf package")

HIDDEN = 32
HEADS = 2
INNER = 64
LAYERS = 2


def write(
    path: Path,
    settings: Mapping[str, Any] | None = None,
    more: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Write a two-layer Llama in Q8_0 with a byte-level vocabulary; return the matrices before rounding.

    Args:
        path: The file.
        settings: Further keys of its header and their values.
        more: Further tensors, with their whole names.
    """
    random = np.random.default_rng(0)
    vocabulary = fakes.llama_tokenizer().get_vocab()
    tokens = [*sorted(vocabulary, key=lambda token: vocabulary[token]), "he"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges(["h e"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    for key, value in (settings or {}).items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
        add(key, value)
    shapes = {"token_embd": (len(tokens), HIDDEN), "output_norm": (HIDDEN,)}
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        shapes |= {f"{block}.{name}": (HIDDEN,) for name in ("attn_norm", "ffn_norm")}
        shapes |= {f"{block}.attn_{name}": (HIDDEN, HIDDEN) for name in ("q", "k", "v", "output")}
        shapes |= {f"{block}.ffn_gate": (INNER, HIDDEN), f"{block}.ffn_up": (INNER, HIDDEN)}
        shapes |= {f"{block}.ffn_down": (HIDDEN, INNER)}
    tensors = {name: random.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        kind = gguf.GGMLQuantizationType.Q8_0 if tensor.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(tensor, kind), raw_dtype=kind)
    for name, tensor in (more or {}).items():
        writer.add_tensor(name, tensor.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_gguf_file_is_float32_trains_and_saves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = write(tmp_path / "tiny.gguf")
    bundle = load.load(str(tmp_path / "tiny.gguf"))
    assert capsys.readouterr() == ("", ""), "no bars of the library's own"
    assert bundle.family == "decoder"
    assert {parameter.dtype for parameter in bundle.model.parameters()} == {torch.float32}
    value = bundle.model.model.layers[0].self_attn.v_proj.weight.detach().numpy()
    assert np.abs(value - tensors["blk.0.attn_v"]).max() < 0.005  # the error of rounding to 8 bits
    bundle.model.float().train()
    ids = torch.tensor([[0, 5, 6, 7]])
    bundle.model(input_ids=ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in bundle.model.parameters())
    save_model(bundle, tmp_path / "saved")
    again = load.load(str(tmp_path / "saved"))
    assert torch.equal(again.model.model.embed_tokens.weight, bundle.model.model.embed_tokens.weight)


LINEAR = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
YARN = {**LINEAR, "llama.rope.scaling.type": "yarn", "llama.rope.scaling.original_context_length": 32}


def llama3_factors(factor: float, theta: float) -> np.ndarray:
    """Return the tensor that llama.cpp writes for the scaling of positions in Llama 3."""
    config = LlamaConfig(
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": theta,
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    )
    plain = theta ** -(np.arange(0, HIDDEN // HEADS, 2) / (HIDDEN // HEADS))
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    return plain / scaled.numpy().astype(np.float64)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("settings", "more", "kind"),
    [
        (LINEAR, {}, "linear"),
        (YARN, {}, "yarn"),
        ({"llama.rope.freq_base": 500_000.0}, {"rope_freqs.weight": llama3_factors(32.0, 500_000.0)}, "llama3"),
    ],
)
def test_positions_are_scaled_as_the_header_says(
    settings: dict[str, Any], more: dict[str, np.ndarray], kind: str, tmp_path: Path
) -> None:
    write(tmp_path / "tiny.gguf", settings, more)
    model = load.load(str(tmp_path / "tiny.gguf")).model
    assert model.config.rope_parameters["rope_type"] == kind
    rotary = model.model.rotary_emb
    theta = settings.get("llama.rope.freq_base", 10_000.0)
    plain = theta ** -(np.arange(0, HIDDEN // HEADS, 2) / (HIDDEN // HEADS))
    found = plain / rotary.inv_freq.numpy()
    if kind == "yarn":
        assert found.max() == pytest.approx(4.0, rel=1e-4)
        assert found.min() < 4.0, "the highest frequencies are kept"
    else:
        assert found == pytest.approx(more.get("rope_freqs.weight", np.full(len(plain), 4.0)), rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "more", "message"),
    [
        ({"split.count": 2}, {}, "one of 2 parts of a split GGUF file.*llama-gguf-split --merge"),
        ({**LINEAR, "llama.rope.scaling.type": "longrope"}, {}, "positions scaled by 'longrope'"),
        ({}, {"rope_freqs.weight": np.array([1.0, 1.0, 2.0, 9.0, 9.0, 9.0, 9.0, 9.0])}, "factors of positions"),
        ({}, {"blk.0.attn_q.bias": np.ones(HIDDEN)}, r"biases \(blk.0.attn_q.bias\)"),
    ],
)
def test_what_transformers_ignores_is_refused(
    settings: dict[str, Any], more: dict[str, np.ndarray], message: str, tmp_path: Path
) -> None:
    write(tmp_path / "tiny.gguf", settings, more)
    with pytest.raises(ModelError, match=message):
        load.load(str(tmp_path / "tiny.gguf"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_heads_may_have_another_size_than_their_share_of_the_width(tmp_path: Path) -> None:
    size = HIDDEN // HEADS
    write(tmp_path / "tiny.gguf", {"llama.attention.key_length": size, "llama.attention.value_length": size})
    assert load.load(str(tmp_path / "tiny.gguf")).model.config.head_dim == size


def test_a_folder_of_gguf_files_is_no_checkpoint_but_they_are_named(tmp_path: Path) -> None:
    (tmp_path / "model-Q8_0.gguf").touch()
    with pytest.raises(ModelError, match=r"Name the GGUF file in it: model-Q8_0\.gguf"):
        load.load(str(tmp_path))
