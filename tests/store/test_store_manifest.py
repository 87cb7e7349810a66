"""Folders with a manifest: complete or absent, and every kind of damage is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError

from fulltune.errors import StoreError
from fulltune.runtime.files import store_errors
from fulltune.store import manifest as manifests
from fulltune.store.manifest import MANIFEST, read_manifest, remove_unfinished, require_space, verify, write_folder

CONTENT = {"weights.bin": b"\x00\x01\x02\x03" * 10, "state.json": b"{}", "inner/part.bin": b"abc"}


def fill(folder: Path) -> None:
    for name, data in CONTENT.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path / "deep" / "whole", fill, properties={"step": 3, "rate": 0.1})
    return tmp_path / "deep" / "whole"


def test_a_folder_is_described_and_verified(folder: Path) -> None:
    found = verify(folder)
    assert set(found.files) == set(CONTENT)
    assert found.properties == {"step": 3, "rate": 0.1}
    assert found.size == sum(map(len, CONTENT.values()))
    assert found == read_manifest(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["whole"]


def test_equal_content_has_an_equal_digest(folder: Path, tmp_path: Path) -> None:
    again = write_folder(tmp_path / "again", fill, properties={"rate": 0.1, "step": 3})
    assert again.sha256 == read_manifest(folder).sha256
    assert write_folder(tmp_path / "other", fill, properties={"step": 4}).sha256 != again.sha256


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [cut, flip, Path.unlink], ids=["cut", "flipped", "missing"])
@pytest.mark.parametrize("name", sorted(CONTENT))
def test_damage_to_a_file_is_named(folder: Path, name: str, harm: Callable[[Path], object]) -> None:
    harm(folder / name)
    with pytest.raises(StoreError) as error:
        verify(folder)
    assert [problem.where for problem in error.value.problems] == [str(folder / name)]


def test_every_flipped_bit_of_the_manifest_is_detected(folder: Path) -> None:
    whole = (folder / MANIFEST).read_bytes()
    noticed = 0
    for place in range(0, len(whole), 7):
        for bit in range(8):
            (folder / MANIFEST).write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            with pytest.raises(StoreError, match="manifest"):
                read_manifest(folder)
            noticed += 1
    assert noticed > 500


def test_a_missing_or_cut_manifest_is_named(folder: Path) -> None:
    cut(folder / MANIFEST)
    cut(folder / MANIFEST)
    with pytest.raises(StoreError, match="the manifest is damaged"):
        verify(folder)
    (folder / MANIFEST).unlink()
    with pytest.raises(StoreError, match=r"the manifest is missing; expected manifest\.json"):
        verify(folder)


def test_a_newer_manifest_is_refused(folder: Path) -> None:
    newer = read_manifest(folder).model_copy(update={"schema_version": manifests.SCHEMA + 1})
    (folder / MANIFEST).write_text(newer.model_copy(update={"sha256": newer.digest()}).to_json(), encoding="utf-8")
    with pytest.raises(StoreError, match="Upgrade fulltune"):
        read_manifest(folder)


def test_an_unlisted_file_is_named(folder: Path) -> None:
    (folder / "optimizer.pt").write_bytes(b"pickle")
    with pytest.raises(StoreError, match=r"optimizer\.pt: the file is not listed in the manifest"):
        verify(folder)


def test_nothing_is_left_when_filling_fails(tmp_path: Path) -> None:
    def half(folder: Path) -> None:
        fill(folder)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_folder(tmp_path / "new", half)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_reported_and_keeps_the_old_folder(folder: Path) -> None:
    def full(folder: Path) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(StoreError, match=r"No space left on device.*Free some space"):
        write_folder(folder, full, replace=True)
    verify(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["whole"]


def test_an_error_without_an_errno_keeps_its_message(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="the header is odd"), store_errors(tmp_path):
        raise SafetensorError("the header is odd")


def test_a_folder_is_replaced_only_when_asked(folder: Path) -> None:
    with pytest.raises(StoreError, match="the folder exists already"):
        write_folder(folder, fill)
    write_folder(folder, lambda place: (place / "one").write_bytes(b"1"), replace=True)
    assert set(verify(folder).files) == {"one"}
    assert [path.name for path in folder.parent.iterdir()] == ["whole"]


def test_leftovers_of_a_killed_writer_are_removed(folder: Path) -> None:
    shutil.copytree(folder, folder.parent / ".next.0a1b2c3d.part")
    remove_unfinished(folder.parent)
    assert [path.name for path in folder.parent.iterdir()] == ["whole"]


def test_free_space_is_checked_before_writing(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    require_space(tmp_path / "not" / "there", free // 2)
    with pytest.raises(StoreError, match=r"are free on this disk; expected .* GB for a checkpoint.*Free some space"):
        require_space(tmp_path / "not" / "there", 2 * free, "a checkpoint")


def test_the_manifest_is_strict_json(folder: Path) -> None:
    found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    assert found["files"]["inner/part.bin"]["size"] == 3
