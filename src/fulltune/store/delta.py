"""A tuned checkpoint as its difference from the base, bit for bit, and back in both directions.

    write_delta(Path("base"), Path("tuned"), Path("tuned.delta"))
    apply_delta(Path("base"), Path("tuned.delta"), Path("again"))   # the tuned one
    apply_delta(Path("tuned"), Path("tuned.delta"), Path("before"))  # the base

Words of equal tensors are joined by exclusive or; where training moved a weight a little, its sign, its exponent and
the upper bits of its mantissa become zeros. The bytes of the words are then sorted by significance, as HDF5's shuffle
filter does, and each of those planes is deflated unless it is noise. The result is a ZIP file. What is restored has the
SHA-256 that it had, or nothing is restored.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import ValidationError

from fulltune.errors import StoreError
from fulltune.records.run import Model
from fulltune.runtime.files import file_sha256, remove_abandoned, storing, sync_folder, unfinished_path
from fulltune.runtime.validation import explained
from fulltune.store.objects import checkpoint_files, checkpoint_sha256
from fulltune.store.tensors import Tensor, Words, header, tensors

SCHEMA = 1

Side = Literal["base", "tuned"]

_MANIFEST = "delta.json"

#: Bytes of a plane that tell whether deflating it is worth the time, and what it must save.
_SAMPLE, _WORTH = 1 << 16, 0.9

#: Types that can be widened to float32 and back without loss.
_WIDENED = {"BF16", "F16"}


class File(Model):
    """A file of a checkpoint. ``same`` tells that the other side has it too, byte for byte."""

    name: str
    sha256: str
    same: bool


class Contents(Model):
    """What a delta holds: the files of both sides, and which tensors (by name) are stored as a difference."""

    schema_version: int = SCHEMA
    base_sha256: str
    tuned_sha256: str
    base: tuple[File, ...]
    tuned: tuple[File, ...]
    pairs: dict[str, str]


class DeltaInfo(Model):
    """A delta and what it saves: ``ratio`` is its size by that of the tuned checkpoint."""

    path: str
    base_sha256: str
    tuned_sha256: str
    tensors: int
    as_difference: int
    tuned_bytes: int
    delta_bytes: int
    ratio: float


class Restored(Model):
    """What came out of a delta, and where it lies."""

    side: Side
    sha256: str
    folder: str


@dataclass(frozen=True)
class _Checkpoint:
    """The files of a folder, and the tensors in them."""

    folder: Path
    sha256: str

    @classmethod
    def of(cls, folder: Path) -> _Checkpoint:
        return cls(folder, checkpoint_sha256(folder))

    @property
    def files(self) -> list[Path]:
        return checkpoint_files(self.folder)

    def tensors(self) -> dict[str, Tensor]:
        weights = [path for path in self.files if path.suffix == ".safetensors"]
        return {tensor.name: tensor for path in weights for tensor in tensors(path, header(path))}


def write_delta(base: Path, tuned: Path, goal: Path) -> DeltaInfo:
    """Write the difference of two checkpoint folders, and check that each comes out of the other again.

    Raises:
        StoreError: A folder has no safetensors weights, the place is taken, or the disk is full or read-only.
    """
    if goal.exists():
        raise StoreError("this place is taken", where=str(goal), fix="name another file")
    sides: dict[Side, _Checkpoint] = {"base": _Checkpoint.of(base), "tuned": _Checkpoint.of(tuned)}
    found = {side: checkpoint.tensors() for side, checkpoint in sides.items()}
    for side, checkpoint in sides.items():
        if not found[side]:
            raise StoreError(
                "there are no safetensors weights", where=str(checkpoint.folder), fix=f"name a {side} of such"
            )
    contents = _contents(sides, _pairs(found["base"], found["tuned"]))
    with _unfinished(goal) as new, storing(goal):
        with zipfile.ZipFile(new, "w", allowZip64=True) as archive:
            _write(archive, contents, sides, found)
        for side in sides:
            _check(_open(new), sides[_other(side)], side)
    size = sum(path.stat().st_size for path in sides["tuned"].files)
    return DeltaInfo(
        path=str(goal),
        base_sha256=contents.base_sha256,
        tuned_sha256=contents.tuned_sha256,
        tensors=len(found["tuned"]),
        as_difference=len(contents.pairs),
        tuned_bytes=size,
        delta_bytes=goal.stat().st_size,
        ratio=round(goal.stat().st_size / size, 4),
    )


def apply_delta(source: Path, delta: Path, goal: Path) -> Restored:
    """Restore the tuned checkpoint from its base, or the base from the tuned one, whichever ``source`` is.

    Raises:
        StoreError: ``source`` is neither, the delta is damaged or of a newer fulltune, or the place is taken.
    """
    if goal.exists():
        raise StoreError("this place is taken", where=str(goal), fix="name another folder with --to")
    given = _Checkpoint.of(source)
    with _open(delta) as archive:
        contents = _read_contents(archive, delta)
        if given.sha256 not in (contents.base_sha256, contents.tuned_sha256):
            raise StoreError(
                f"this checkpoint has the SHA-256 {given.sha256[:12]}…",
                expected=f"the base ({contents.base_sha256[:12]}…) or the tuned one ({contents.tuned_sha256[:12]}…)",
                where=str(source),
                fix="name the very files that the delta was made with",
            )
        side: Side = "tuned" if given.sha256 == contents.base_sha256 else "base"
        sha256 = contents.tuned_sha256 if side == "tuned" else contents.base_sha256
        with _damage(delta), _unfinished(goal) as new, storing(goal):
            new.mkdir()
            for name, pieces in _restored(archive, contents, given, side):
                with (new / name).open("wb") as file:
                    file.writelines(pieces)
                    file.flush()
                    os.fsync(file.fileno())
            _expect(checkpoint_sha256(new), sha256, delta)
    return Restored(side=side, sha256=sha256, folder=str(goal))


def _contents(sides: Mapping[Side, _Checkpoint], pairs: dict[str, str]) -> Contents:
    hashes = {side: {path.name: file_sha256(path) for path in sides[side].files} for side in sides}

    def files(side: Side) -> tuple[File, ...]:
        other = hashes[_other(side)]
        return tuple(File(name=n, sha256=h, same=other.get(n) == h) for n, h in hashes[side].items())

    return Contents(
        base_sha256=sides["base"].sha256,
        tuned_sha256=sides["tuned"].sha256,
        base=files("base"),
        tuned=files("tuned"),
        pairs=pairs,
    )


def _pairs(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor]) -> dict[str, str]:
    """For each tuned tensor the base's that is the same but for the values; a head may have moved the names by one."""
    known = {name.partition(".")[2]: name for name in reversed(list(base))} | {name: name for name in base}
    found, taken = dict[str, str](), set[str]()
    for name, tensor in tuned.items():
        other = known.get(name) or known.get(name.partition(".")[2])
        if other and other not in taken and _fits(base[other], tensor):
            found[name] = other
            taken.add(other)
    return found


def _fits(base: Tensor, tuned: Tensor) -> bool:
    same = base.dtype == tuned.dtype or (base.dtype in _WIDENED and tuned.dtype == "F32")
    return same and base.shape == tuned.shape


def _write(
    archive: zipfile.ZipFile,
    contents: Contents,
    sides: Mapping[Side, _Checkpoint],
    found: Mapping[Side, Mapping[str, Tensor]],
) -> None:
    _put(archive, _MANIFEST, contents.to_json().encode())
    for side, checkpoint in sides.items():
        files = contents.base if side == "base" else contents.tuned
        for file in files:
            if not file.same:
                path = checkpoint.folder / file.name
                kept = header(path) if path.suffix == ".safetensors" else path.read_bytes()
                _put(archive, f"{side}/{file.name}", kept)
        paired = set(contents.pairs if side == "tuned" else contents.pairs.values())
        for name, tensor in found[side].items():
            if name not in paired and not _is_same(files, tensor):
                _put_words(archive, f"{side}:{name}", tensor.words())
    for name, other in contents.pairs.items():
        tensor = found["tuned"][name]
        if not _is_same(contents.tuned, tensor):
            words = tensor.words()
            _put_words(
                archive, f"xor:{name}", words ^ _as_type(found["base"][other].words(), found["base"][other], tensor)
            )


def _is_same(files: Sequence[File], tensor: Tensor) -> bool:
    return any(file.same and file.name == tensor.path.name for file in files)


def _as_type(words: Words, have: Tensor, want: Tensor) -> Words:
    """Words of one type as those of another: bfloat16 and float16 to float32 and back, exactly."""
    if have.dtype == want.dtype:
        return words
    if have.dtype == "BF16":
        found: Words = words.astype("<u4") << np.uint32(16)
    elif want.dtype == "BF16":
        found = (words >> np.uint32(16)).astype("<u2")
    else:
        there, here = ("<f2", "<f4") if have.dtype == "F16" else ("<f4", "<f2")
        found = words.view(there).astype(here).view(f"<u{want.item_bytes}")
    return found


def _put_words(archive: zipfile.ZipFile, name: str, words: Words) -> None:
    for plane in range(words.itemsize):
        _put(archive, f"{name}:{plane}", np.ascontiguousarray(words.view(np.uint8)[plane :: words.itemsize]).tobytes())


def _put(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    sample = data[:_SAMPLE]
    worth = len(zlib.compress(sample, 1)) < _WORTH * len(sample)
    # A ZipInfo of our own carries no time: the same checkpoints give the same file.
    entry = zipfile.ZipInfo(name)
    archive.writestr(entry, data, zipfile.ZIP_DEFLATED if worth else zipfile.ZIP_STORED, compresslevel=6)


def _restored(
    archive: zipfile.ZipFile, contents: Contents, source: _Checkpoint, side: Side
) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Each file of a side and its bytes, piece by piece."""
    known = source.tensors()
    pairs = contents.pairs if side == "tuned" else {base: tuned for tuned, base in contents.pairs.items()}
    for file in contents.tuned if side == "tuned" else contents.base:
        if Path(file.name).name != file.name:
            raise KeyError(file.name)
        if file.same:
            yield file.name, iter([(source.folder / file.name).read_bytes()])
        elif file.name.endswith(".safetensors"):
            yield file.name, _weights(archive, side, file, known, pairs)
        else:
            yield file.name, iter([_read(archive, f"{side}/{file.name}")])


def _weights(
    archive: zipfile.ZipFile, side: Side, file: File, known: Mapping[str, Tensor], pairs: Mapping[str, str]
) -> Iterator[bytes]:
    head = _read(archive, f"{side}/{file.name}")
    yield head
    for tensor in tensors(Path(file.name), head):
        if tensor.name not in pairs:
            yield _words(archive, f"{side}:{tensor.name}", tensor).tobytes()
            continue
        other = known[pairs[tensor.name]]
        # The difference has the tuned side's type.
        tuned, name = (tensor, tensor.name) if side == "tuned" else (other, other.name)
        mixed = _words(archive, f"xor:{name}", tuned) ^ _as_type(other.words(), other, tuned)
        yield _as_type(mixed, tuned, tensor).tobytes()


def _words(archive: zipfile.ZipFile, name: str, like: Tensor) -> Words:
    """The words whose planes are stored under a name."""
    count, width = like.size // like.item_bytes, like.item_bytes
    planes = np.empty((count, width), np.uint8)
    for plane in range(width):
        planes[:, plane] = np.frombuffer(_read(archive, f"{name}:{plane}", count), np.uint8)
    return planes.reshape(-1).view(f"<u{width}")


def _read(archive: zipfile.ZipFile, name: str, size: int | None = None) -> bytes:
    with _damage(Path(str(archive.filename))):
        entry = archive.getinfo(name)
        if size not in (None, entry.file_size):
            raise ValueError(f"{name} has {entry.file_size} bytes, not {size}")
        return archive.read(entry)


def _check(archive: zipfile.ZipFile, source: _Checkpoint, side: Side) -> None:
    """That a side comes out of the other as it is."""
    with archive:
        contents = _read_contents(archive, Path(str(archive.filename)))
        whole = hashlib.sha256()
        for name, pieces in _restored(archive, contents, source, side):
            digest = hashlib.sha256()
            for piece in pieces:
                digest.update(piece)
            whole.update(f"{name} {digest.hexdigest()}\n".encode())
    wanted = contents.tuned_sha256 if side == "tuned" else contents.base_sha256
    _expect(whole.hexdigest(), wanted, Path(str(archive.filename)))


def _expect(found: str, wanted: str, delta: Path) -> None:
    if found != wanted:
        raise StoreError(
            f"what comes out has the SHA-256 {found[:12]}…",
            expected=f"{wanted[:12]}…",
            where=str(delta),
            fix="export the delta again",
        )


def _open(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise StoreError(f"this is no delta ({error})", where=str(path), fix="name a file of export --delta") from error


def _read_contents(archive: zipfile.ZipFile, path: Path) -> Contents:
    raw = _read(archive, _MANIFEST)
    try:
        contents = Contents.model_validate_json(raw)
    except ValidationError as error:
        fix = "name a file of export --delta, or upgrade fulltune"
        raise StoreError(f"this is no delta ({explained(error)})", where=str(path), fix=fix) from error
    if contents.schema_version > SCHEMA:
        found = f"the delta has schema {contents.schema_version}"
        raise StoreError(found, expected=f"at most {SCHEMA}", where=str(path), fix="upgrade fulltune")
    return contents


@contextmanager
def _damage(delta: Path) -> Iterator[None]:
    """What reading a ZIP file that is not whole raises, or one with entries that make no sense, as one message."""
    try:
        yield
    except (OSError, KeyError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        fix = "export it again, or fetch it again"
        raise StoreError(f"the delta is damaged ({error})", where=str(delta), fix=fix) from error


@contextmanager
def _unfinished(goal: Path) -> Iterator[Path]:
    """A place beside the goal that takes its name if the block ends well, and goes if not."""
    new = unfinished_path(goal)
    with storing(goal):
        goal.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(goal)
    try:
        yield new
        with storing(goal):
            os.replace(new, goal)
            sync_folder(goal.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        new.unlink(missing_ok=True)


def _other(side: Side) -> Side:
    return "base" if side == "tuned" else "tuned"
