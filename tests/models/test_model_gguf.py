"""A GGUF file becomes plain float32 weights that train and save like any other."""

from __future__ import annotations

from pathlib import Path

import fakes
import numpy as np
import pytest
import torch

from fulltune.models import load
from fulltune.models.save import save_model

gguf = pytest.importorskip("gguf", reason="GGUF files need the gguf package")

HIDDEN = 32
HEADS = 2
INNER = 64
LAYERS = 2


def write(path: Path) -> dict[str, np.ndarray]:
    """Write a two-layer Llama in Q8_0 with a byte-level vocabulary; return the matrices before rounding."""
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
