"""An unusable checkpoint is refused with a message that gives the reason, before its weights are read."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import fulltune
from fulltune.errors import FulltuneError, MissingDependencyError, ModelError
from fulltune.models.bundle import family_of
from fulltune.models.files import check_config, errors_of
from fulltune.models.load import load
from fulltune.models.sources import check_name
from fulltune.runtime import extras


def changed(folder: Path, **values: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


@pytest.mark.parametrize(
    "method", ["gptq", "awq", "bitsandbytes", "fp8", "compressed-tensors", "mxfp4", "hqq", "some-future-method"]
)
def test_quantized_weights_are_refused(method: str, tmp_path: Path) -> None:
    folder = changed(fakes.save("llama", tmp_path), quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(ModelError, match=rf"is quantized \({method}\).*was quantized from"):
        load(str(folder))


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("code of the checkpoint ran",)


@pytest.mark.parametrize("place", ["../evil.bin", "/etc/evil.safetensors", "evil.bin", "sub/evil.safetensors"])
def test_an_index_names_only_safetensors_of_its_folder(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fakes.save("gpt2", tmp_path / "base")
    (tmp_path / "evil.bin").write_bytes(pickle.dumps(Evil()))
    (folder / "evil.bin").write_bytes(pickle.dumps(Evil()))
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"wte": place}}))
    with pytest.raises(ModelError, match=r"index.json of .* points at .*can run code"):
        load(str(folder))
    assert "code of the checkpoint ran" not in capsys.readouterr().out


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_an_invalid_index_is_refused(text: str, tmp_path: Path) -> None:
    folder = fakes.save("gpt2", tmp_path)
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match="cannot be read"):
        load(str(folder))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = fakes.save("gpt2", tmp_path)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(dict(list(weights.items())[:3]), folder / "model-00001-of-00002.safetensors", {"format": "pt"})
    places = {name: f"model-0000{1 if number < 3 else 2}-of-00002.safetensors" for number, name in enumerate(weights)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(ModelError, match=r"1 of 2 shards .* missing: model-00002-of-00002.safetensors"):
        load(str(folder))


def test_checkpoints_below_the_named_folder_are_named(tmp_path: Path) -> None:
    """Older sentence-transformers folders have the model in ``0_Transformer``, and trainings one folder per epoch."""
    fakes.save("bert", tmp_path / "0_Transformer")
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match=r"has no config\.json.*Name the checkpoint below it: 0_Transformer\.$"):
        load(str(tmp_path))


def test_a_git_lfs_pointer_is_refused(tmp_path: Path) -> None:
    folder = fakes.save("gpt2", tmp_path)
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    with pytest.raises(ModelError, match=r"git-lfs pointer.*Run `git lfs pull`"):
        load(str(folder))


@pytest.mark.parametrize("kind", fakes.FAMILIES)
def test_a_checkpoint_without_a_tokenizer_is_refused(kind: str, tmp_path: Path) -> None:
    folder = fakes.save(kind, tmp_path)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ModelError, match="has no tokenizer"):
        load(str(folder))


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("Loading a GPTQ quantized model requires optimum (`pip install optimum`)", ["optimum", "pip install optimum"]),
        ("gptqmodel is needed. Please install it with `pip install gptqmodel`", ["gptqmodel"]),
        ("the package for FlashAttention2 doesn't seem to be installed", ["flash-attn", "attn_implementation"]),
        ("LlamaTokenizer requires the SentencePiece library", ["sentencepiece", "pip install sentencepiece"]),
        ("requires the protobuf library", ["pip install protobuf"]),
        ("tiktoken is required to read a tiktoken file", ["pip install tiktoken"]),
        ("Please install torch and gguf>=0.10.0 to load a GGUF checkpoint", [extras.install("gguf")]),
        ("No module named 'mamba_ssm'", ["mamba_ssm"]),
    ],
)
def test_a_missing_package_is_named(message: str, words: list[str], tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError) as caught, errors_of("m", tmp_path):
        raise ImportError(message)
    assert all(word.lower() in str(caught.value).lower() for word in words), str(caught.value)
    assert ("[gguf]'" in str(caught.value)) == ("GGUF" in message)


@pytest.mark.parametrize("kind", ["Pegasus", "Marian", "LED", "LongT5", "SwitchTransformers", "Mamba2"])
def test_a_head_that_transformers_lacks(kind: str) -> None:
    config = getattr(transformers, f"{kind}Config")()
    with pytest.raises(ModelError) as caught:
        check_config("m", config, "classification")
    assert f"no classification head for {config.model_type}" in str(caught.value)
    assert ("causal-lm" if kind == "Mamba2" else "seq2seq") in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_missing_head_is_reported_before_the_baselines(tmp_path: Path) -> None:
    tokenizer = fakes.bart_tokenizer()
    config = transformers.PegasusConfig(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64,
        pad_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    transformers.PegasusForConditionalGeneration(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    rows = [{"text": f"the {word} number {row}", "label": word} for row in range(9) for word in ("court", "film")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ModelError, match="no classification head for pegasus"):
        fulltune.run(
            model=str(tmp_path / "base"),
            task="classification",
            data={"train": str(tmp_path / "rows.jsonl"), "eval": str(tmp_path / "rows.jsonl"), "allow_leaks": True},
            out=tmp_path / "runs",
        )
    assert not (tmp_path / "runs").exists()


def test_an_encoder_without_a_masked_lm_head(tmp_path: Path) -> None:
    assert family_of(transformers.CanineConfig()) == "encoder"
    assert family_of(transformers.LlamaConfig()) == "decoder"


@pytest.mark.parametrize("name", ["x" * 5000, "x" * 300, "a/" * 4000, "a\0b", "a\x1b[31m", "", "  "])
def test_an_invalid_model_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        check_name(name)
    with pytest.raises(FulltuneError):
        fulltune.run(model=name, task="causal-lm", data={"train": str(tmp_path / "x.jsonl")}, out=tmp_path / "runs")
    with pytest.raises(FulltuneError):
        fulltune.evaluate(name, out=tmp_path / "runs")


@pytest.mark.parametrize(
    "values",
    [{"n_head": 5}, {"n_embd": "many"}, {"vocab_size": 7}, {"model_type": "llama9"}, {"n_head": 0}],
)
def test_a_config_that_fits_no_model(values: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        load(str(changed(fakes.save("gpt2", tmp_path), **values)))


def test_weights_of_another_shape(tmp_path: Path) -> None:
    folder = fakes.save("gpt2", tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["transformer.wpe.weight"] = torch.zeros(3, 5)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"wpe\.weight is 3 × 5, not 128 × 32"):
        load(str(folder))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"hidden_act": "quux"}, "transformers does not know 'quux', the value of hidden_act in config.json"),
        ({"eos_token_id": "1"}, r"Validation error for field 'eos_token_id': \S+"),
        ({"num_attention_heads": 3}, "Class validation error for validator 'validate_architecture': .*multiple"),
        ({"rope_parameters": {"rope_type": "foo", "rope_theta": 1.0}}, "'foo', the value of rope_parameters.rope_type"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(values: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=words):
        load(str(changed(fakes.save("llama", tmp_path), **values)))


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", ["{", "", "[]", "\ufeff{}", "// comment\n{}"])
def test_a_file_that_is_no_json_object_is_named(file: str, text: str, tmp_path: Path) -> None:
    folder = fakes.save("llama", tmp_path)
    (folder / file).write_text(text, encoding="utf-8")
    with pytest.raises(
        ModelError, match=rf"{file} is not (valid JSON|a JSON object) \(.+\) of .*Download the file again"
    ):
        load(str(folder))


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("weights.safetensors", "but weights.safetensors.*rename the file to model.safetensors"),
        ("model-00001-of-00002.safetensors", "but model-00001-of-00002.safetensors.*Download model.safetensors.index"),
        ("tf_model.h5", "but tf_model.h5.*save_pretrained of transformers"),
        ("onnx/model.onnx", "but model.onnx.*a tool that reads this format"),
        ("adapter_config.json", "merge the adapter into its base"),
        ("notes.txt", r"has no model.safetensors; expected .*Download the checkpoint again"),
    ],
)
def test_a_folder_without_weights_names_those_in_other_files(file: str, words: str, tmp_path: Path) -> None:
    folder = fakes.save("llama", tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text("{}")
    with pytest.raises(ModelError, match=rf"(?i){words}"):
        load(str(folder))
