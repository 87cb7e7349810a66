"""GGUF files: read back by transformers, by fulltune's commands and, where it is installed, by llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
from answering import Run, sentence
from transformers import AutoModelForCausalLM

import fulltune
from fulltune.errors import ModelError
from fulltune.records.export import Export

gguf: Any = pytest.importorskip("gguf", reason="needs fulltune[export]")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Export a Llama without a run, compared on rows that are named."""
    place = tmp_path_factory.mktemp("llama")
    fakes.save("llama", place / "model")
    rows = [{"text": f"{index}: {sentence(index)}. " * 3} for index in range(12)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"evaluation": {"max_new_tokens": 4, "continuations": 2, "resamples": 100}}
    return fulltune.export(
        place / "model", place / "q8", format="gguf-q8_0", data=place / "rows.jsonl", out=place, **options
    )


def kinds(export: Export) -> dict[str, str]:
    """Return the number type of each tensor of a file."""
    reader = gguf.GGUFReader(Path(export.artifact) / "model.gguf")
    return {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}


def test_a_llama_in_8_bits_is_close_and_small(llama: Export) -> None:
    assert llama.task == "causal-lm"
    assert (llama.rows, llama.verdict) == (12, "not worse")
    assert 0 < llama.logits.relative < 0.03
    assert llama.bytes < 0.5 * llama.parent.bytes
    found = kinds(llama)
    assert found["blk.0.attn_q.weight"] == found["token_embd.weight"] == "Q8_0"
    assert found["blk.0.attn_norm.weight"] == "F32"


def test_transformers_reads_the_file_alone(llama: Export, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes((Path(llama.artifact) / "model.gguf").read_bytes())
    alone = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    ids = torch.arange(20)[None] + 30
    with torch.no_grad():
        torch.testing.assert_close(alone(ids).logits, fulltune.load(llama.artifact).model(ids).logits)


def test_a_gpt2_in_16_bits_gives_the_same_answers(tales: Run, tmp_path: Path) -> None:
    export = fulltune.export(tales.record, tmp_path / "f16", format="gguf")
    assert export.format == "gguf-f16"
    assert export.logits.relative < 2e-3
    assert export.equal_answers == export.rows == len(tales.rows)
    assert {kinds(export)[name] for name in ("blk.1.attn_qkv.weight", "blk.1.ffn_down.weight")} == {"F16"}
    prompts = ["Once there", "the king"]
    assert fulltune.load(export.artifact)(prompts) == fulltune.load(tales.record)(prompts)
    fields = gguf.GGUFReader(Path(export.artifact) / "model.gguf").fields
    assert fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    assert fields["tokenizer.ggml.tokens"].contents()[0] == "<|endoftext|>"


def test_models_that_the_format_has_no_place_for_are_refused(classes: Run, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"BertForSequenceClassification has no exporter to GGUF.*format onnx"):
        fulltune.export(classes.record, tmp_path / "gguf", format="gguf-q8_0")
    assert list(tmp_path.iterdir()) == []


def test_llama_cpp_generates_the_same_text(llama: Export) -> None:
    llama_cpp: Any = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    model = fulltune.load(llama.artifact)
    engine = llama_cpp.Llama(f"{llama.artifact}/model.gguf", n_ctx=fakes.WINDOW, verbose=False)
    text = "1: court state"
    ids = engine.tokenize(text.encode())
    assert ids == model.tokenizer(text).input_ids
    engine.eval(ids)
    with torch.no_grad():
        expected = model.model(torch.tensor([ids])).logits[0, -1]
    found = torch.tensor(engine.scores[len(ids) - 1])
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()
