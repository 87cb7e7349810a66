"""Deltas: both directions are restored bit for bit, or nothing is."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fulltune.errors import StoreError
from fulltune.store import delta as deltas
from fulltune.store.delta import apply_delta, write_delta
from fulltune.store.objects import checkpoint_sha256
from fulltune.store.tensors import header, tensors

NAMES = {2: "F16", 4: "F32", 8: "I64", 1: "U8"}


def save(folder: Path, weights: dict[str, np.ndarray], dtypes: dict[str, str] | None = None, **files: bytes) -> Path:
    """Write a checkpoint folder by the specification of the format, without the library."""
    folder.mkdir(parents=True, exist_ok=True)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, value in weights.items():
        dtype = (dtypes or {}).get(name, NAMES[value.itemsize])
        header[name] = {
            "dtype": dtype,
            "shape": list(value.shape),
            "data_offsets": [len(body), len(body) + value.nbytes],
        }
        body += value.tobytes()
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    (folder / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + body)
    for name, content in ({"config.json": b"{}"} | files).items():
        (folder / name).write_bytes(content)
    return folder


def moved(base: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return weights after a little training."""
    draw = np.random.default_rng(seed)
    return (base + 1e-4 * draw.standard_normal(base.shape)).astype(np.float32)


def there_and_back(base: Path, tuned: Path, place: Path) -> deltas.DeltaInfo:
    """Apply both directions and compare byte for byte."""
    info = write_delta(base, tuned, place / "d")
    for source, side, wanted in ((base, "tuned", tuned), (tuned, "base", base)):
        found = apply_delta(source, place / "d", place / side)
        assert found.sha256 == checkpoint_sha256(wanted)
        assert found.side == side or info.base_sha256 == info.tuned_sha256
        assert {p.name: p.read_bytes() for p in Path(found.folder).iterdir()} == {
            p.name: p.read_bytes() for p in wanted.iterdir()
        }
    return info


def test_a_little_training_makes_a_smaller_file(tmp_path: Path) -> None:
    base = np.random.default_rng(1).standard_normal((500, 200)).astype(np.float32) * 0.02
    info = there_and_back(
        save(tmp_path / "b", {"w": base}), save(tmp_path / "t", {"w": moved(base)}, **{"vocab.txt": b"new"}), tmp_path
    )
    assert (info.tensors, info.as_difference) == (1, 1)
    assert info.ratio == round((tmp_path / "d").stat().st_size / info.tuned_bytes, 4) < 0.9


@settings(max_examples=25)
@given(
    base=arrays(np.uint32, 64),
    tuned=arrays(np.uint32, 64),
    same=st.booleans(),
    prefix=st.sampled_from(["", "model.", "x."]),
)
def test_any_bits_come_back(
    base: np.ndarray, tuned: np.ndarray, same: bool, prefix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("delta")
    one = save(place / "b", {"w": base.view(np.float32), "only.here": np.arange(3)})
    two = save(
        place / "t", {f"{prefix}w": (base if same else tuned).view(np.float32), "head": np.zeros((2, 2), np.float32)}
    )
    there_and_back(one, two, place)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_a_base_in_half_precision_is_widened_exactly(dtype: str, tmp_path: Path) -> None:
    words = np.random.default_rng(2).integers(0, 1 << 15, 4000).astype(np.uint16) & np.uint16(0xBBFF)
    wide = (
        (words.astype(np.uint32) << 16).view(np.float32)
        if dtype == "BF16"
        else words.view(np.float16).astype(np.float32)
    )
    with np.errstate(all="ignore"):
        tuned = save(tmp_path / "t", {"w": wide * np.float32(1.0001)})
    info = there_and_back(save(tmp_path / "b", {"w": words}, {"w": dtype}), tuned, tmp_path)
    assert info.as_difference == 1
    assert info.ratio < 0.9


def test_equal_checkpoints_cost_nearly_nothing(tmp_path: Path) -> None:
    weights = {"w": np.random.default_rng(3).standard_normal(50_000).astype(np.float32)}
    info = there_and_back(save(tmp_path / "b", weights), save(tmp_path / "t", weights), tmp_path)
    assert info.ratio < 0.02


def test_weights_in_several_files(tmp_path: Path) -> None:
    base = save(tmp_path / "b", {"a": np.arange(8, dtype=np.float32)})
    (base / "model.safetensors").rename(base / "model-1.safetensors")
    extra = save(tmp_path / "x", {"b": np.ones((3, 3), np.float32), "empty": np.zeros(0, np.float32)})
    (extra / "model.safetensors").rename(base / "model-2.safetensors")
    both = {
        "a": np.arange(8, dtype=np.float32) + 1,
        "b": np.zeros((3, 3), np.float32),
        "empty": np.zeros(0, np.float32),
    }
    assert there_and_back(base, save(tmp_path / "t", both), tmp_path).as_difference == 3


def test_the_same_checkpoints_give_the_same_file(tmp_path: Path) -> None:
    base = np.random.default_rng(1).standard_normal(1000).astype(np.float32)
    one, two = save(tmp_path / "b", {"w": base}), save(tmp_path / "t", {"w": moved(base)})
    write_delta(one, two, tmp_path / "1")
    write_delta(one, two, tmp_path / "2")
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Path, Path]:
    base = np.random.default_rng(1).standard_normal(1000).astype(np.float32)
    one, two = save(tmp_path / "b", {"w": base}), save(tmp_path / "t", {"w": moved(base)})
    write_delta(one, two, tmp_path / "d")
    return one, two, tmp_path / "d"


def test_another_checkpoint_is_refused(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, _, delta = made
    (base / "config.json").write_bytes(b"{ }")
    with pytest.raises(StoreError, match=r"expected the base .* or the tuned one"):
        apply_delta(base, delta, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_every_flipped_byte_of_the_content_is_detected(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, tuned, delta = made
    whole, noticed = delta.read_bytes(), 0
    places = range(0, len(whole), max(1, len(whole) // 60))
    for place in places:
        delta.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            apply_delta(base, delta, tmp_path / f"again{place}")
        except StoreError:
            noticed += 1
            assert not (tmp_path / f"again{place}").exists()
        else:  # a byte that ZIP stores twice or ignores: the restored checkpoint is correct anyway
            assert checkpoint_sha256(tmp_path / f"again{place}") == checkpoint_sha256(tuned)
    assert len(places) > 50
    assert noticed > 40
    assert list(tmp_path.glob(".*.part")) == []


@pytest.mark.parametrize("cut", [0, 10, 500])
def test_a_truncated_delta_is_refused(made: tuple[Path, Path, Path], cut: int, tmp_path: Path) -> None:
    base, _, delta = made
    delta.write_bytes(delta.read_bytes()[:cut])
    with pytest.raises(StoreError, match="this is not a delta"):
        apply_delta(base, delta, tmp_path / "again")


@pytest.mark.parametrize(
    "change", [{"schema_version": 9}, {"base": [{"name": "../evil", "sha256": "0", "same": False}]}]
)
def test_a_malicious_delta_is_harmless(made: tuple[Path, Path, Path], change: dict[str, Any], tmp_path: Path) -> None:
    _, tuned, delta = made
    with zipfile.ZipFile(delta) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["delta.json"] = json.dumps(json.loads(members["delta.json"]) | change).encode()
    members["base/../evil"] = b"evil"
    with zipfile.ZipFile(delta, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(StoreError, match=r"schema 9|damaged"):
        apply_delta(tuned, delta, tmp_path / "deep" / "again")
    assert not list(tmp_path.rglob("evil"))


def test_existing_targets_and_folders_without_weights_are_refused(
    made: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, tuned, delta = made
    with pytest.raises(StoreError, match="exists already"):
        write_delta(base, tuned, delta)
    with pytest.raises(StoreError, match=r"exists already.*--to"):
        apply_delta(base, delta, tuned)
    (tmp_path / "none").mkdir()
    with pytest.raises(StoreError, match="no safetensors weights"):
        write_delta(tmp_path / "none", tuned, tmp_path / "other")


def test_our_reading_of_the_format_is_that_of_the_library(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    draw = np.random.default_rng(4)
    weights = {
        "a": draw.standard_normal((3, 5)).astype(np.float32),
        "b": draw.integers(0, 9, 7),
        "c": np.zeros((2, 0), "f2"),
    }
    save_file(weights, tmp_path / "x.safetensors")
    found = {t.name: t for t in tensors(tmp_path / "x.safetensors", header(tmp_path / "x.safetensors"))}
    for name, value in load_file(tmp_path / "x.safetensors").items():
        assert found[name].words().tobytes() == value.tobytes()
        assert found[name].shape == value.shape
    assert load_file(save(tmp_path / "y", weights) / "model.safetensors").keys() == weights.keys()


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x05" + b"\0" * 7 + b"[1,2]", b"\x04" + b"\0" * 7 + b"nope"])
def test_an_invalid_safetensors_file_is_reported(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(StoreError, match="the safetensors file is incomplete"):
        tensors(path, header(path))
