"""Store a tuned checkpoint as its difference from the base, bit for bit, and restore either from the other.

    write_delta(Path("base"), Path("tuned"), Path("tuned.delta"))
    apply_delta(Path("base"), Path("tuned.delta"), Path("again"))   # restores the tuned checkpoint
    apply_delta(Path("tuned"), Path("tuned.delta"), Path("before"))  # restores the base

Words of matching tensors are combined by exclusive or. Training moves most weights only a little, so the sign, the
exponent and the upper bits of the mantissa become zeros. The bytes of the words are then sorted by significance, as in
HDF5's shuffle filter, and each of these planes is deflated unless it is noise. The result is a ZIP file. A restored
checkpoint has its original SHA-256; otherwise nothing is restored.
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

from fulltune.errors import StoreError, check_schema
from fulltune.records.run import Model
from fulltune.runtime.files import advising, file_sha256, remove_abandoned, store_errors, sync_folder, unfinished_path
from fulltune.runtime.validation import first_problem
from fulltune.store.objects import checkpoint_files, checkpoint_sha256
from fulltune.store.tensors import Tensor, Words, header, tensors

SCHEMA = 1

Side = Literal["base", "tuned"]

_MANIFEST = "delta.json"

#: Number of bytes of a plane that are compressed as a test.
_SAMPLE = 1 << 16

#: Compression ratio of the test below which the plane is deflated.
_WORTH = 0.9

#: Types that convert to float32 and back without loss.
_WIDENED = {"BF16", "F16"}


class File(Model):
    """A file of a checkpoint; ``same`` is True if the other side has an identical file."""

    name: str
    sha256: str
    same: bool


class Contents(Model):
    """Contents of a delta: the files of both sides, and the tensors (by name) that are stored as a difference."""

    schema_version: int = SCHEMA
    base_sha256: str
    tuned_sha256: str
    base: tuple[File, ...]
    tuned: tuple[File, ...]
    pairs: dict[str, str]


class DeltaInfo(Model):
    """Description of a delta; ``ratio`` is its size divided by that of the tuned checkpoint."""

    path: str
    base_sha256: str
    tuned_sha256: str
    tensors: int
    as_difference: int
    tuned_bytes: int
    delta_bytes: int
    ratio: float


class Restored(Model):
    """The checkpoint that was restored from a delta, and its folder."""

    side: Side
    sha256: str
    folder: str


@dataclass(frozen=True)
class _Checkpoint:
    """The files of a checkpoint folder and their tensors."""

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


@advising("name another file")
def write_delta(base: Path, tuned: Path, goal: Path) -> DeltaInfo:
    """Write the difference of two checkpoint folders, and check that each can be restored from the other.

    Raises:
        StoreError: A folder has no safetensors weights, ``goal`` exists, or the disk is full or read-only.
    """
    if goal.exists():
        raise StoreError("the file exists already", where=str(goal), fix="name another file")
    sides: dict[Side, _Checkpoint] = {"base": _Checkpoint.of(base), "tuned": _Checkpoint.of(tuned)}
    stored = {side: checkpoint.tensors() for side, checkpoint in sides.items()}
    for side, checkpoint in sides.items():
        if not stored[side]:
            raise StoreError(
                "there are no safetensors weights",
                where=str(checkpoint.folder),
                fix=f"name a {side} folder that has some",
            )
    contents = _contents(sides, _pairs(stored["base"], stored["tuned"]))
    with _unfinished(goal) as new, store_errors(goal):
        with zipfile.ZipFile(new, "w", allowZip64=True) as archive:
            _write(archive, contents, sides, stored)
        for side in sides:
            _check(_open(new), sides[_other(side)], side)
    size = sum(path.stat().st_size for path in sides["tuned"].files)
    return DeltaInfo(
        path=str(goal),
        base_sha256=contents.base_sha256,
        tuned_sha256=contents.tuned_sha256,
        tensors=len(stored["tuned"]),
        as_difference=len(contents.pairs),
        tuned_bytes=size,
        delta_bytes=goal.stat().st_size,
        ratio=round(goal.stat().st_size / size, 4),
    )


@advising("choose another folder with --to")
def apply_delta(source: Path, delta: Path, goal: Path) -> Restored:
    """Restore the tuned checkpoint from the base, or the base from the tuned one, depending on ``source``.

    Raises:
        StoreError: ``source`` is neither of them, the delta is damaged or newer than fulltune, or ``goal`` exists.
    """
    if goal.exists():
        raise StoreError("the folder exists already", where=str(goal), fix="name another folder with --to")
    given = _Checkpoint.of(source)
    with _open(delta) as archive:
        contents = _read_contents(archive, delta)
        if given.sha256 not in (contents.base_sha256, contents.tuned_sha256):
            raise StoreError(
                f"this checkpoint has the SHA-256 {given.sha256[:12]}…",
                expected=f"the base ({contents.base_sha256[:12]}…) or the tuned one ({contents.tuned_sha256[:12]}…)",
                where=str(source),
                fix="name the exact files that the delta was created from",
            )
        side: Side = "tuned" if given.sha256 == contents.base_sha256 else "base"
        sha256 = contents.tuned_sha256 if side == "tuned" else contents.base_sha256
        with _damage(delta), _unfinished(goal) as new, store_errors(goal):
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
    """Map each tuned tensor to the base tensor of the same shape; a head may add or remove one prefix of the name."""
    known = {name.partition(".")[2]: name for name in reversed(list(base))} | {name: name for name in base}
    pairs = dict[str, str]()
    used = set[str]()
    for name, tensor in tuned.items():
        other = known.get(name) or known.get(name.partition(".")[2])
        if other and other not in used and _fits(base[other], tensor):
            pairs[name] = other
            used.add(other)
    return pairs


def _fits(base: Tensor, tuned: Tensor) -> bool:
    same = base.dtype == tuned.dtype or (base.dtype in _WIDENED and tuned.dtype == "F32")
    return same and base.shape == tuned.shape


def _write(
    archive: zipfile.ZipFile,
    contents: Contents,
    sides: Mapping[Side, _Checkpoint],
    stored: Mapping[Side, Mapping[str, Tensor]],
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
        for name, tensor in stored[side].items():
            if name not in paired and not _is_same(files, tensor):
                _put_words(archive, f"{side}:{name}", tensor.words())
    for name, other in contents.pairs.items():
        tensor = stored["tuned"][name]
        if not _is_same(contents.tuned, tensor):
            partner = stored["base"][other]
            _put_words(archive, f"xor:{name}", tensor.words() ^ _as_type(partner.words(), partner, tensor))


def _is_same(files: Sequence[File], tensor: Tensor) -> bool:
    return any(file.same and file.name == tensor.path.name for file in files)


def _as_type(words: Words, have: Tensor, want: Tensor) -> Words:
    """Convert words of one type to another without loss: bfloat16 and float16 to float32 and back."""
    if have.dtype == want.dtype:
        return words
    if have.dtype == "BF16":
        converted: Words = words.astype("<u4") << np.uint32(16)
    elif want.dtype == "BF16":
        converted = (words >> np.uint32(16)).astype("<u2")
    else:
        source, target = ("<f2", "<f4") if have.dtype == "F16" else ("<f4", "<f2")
        converted = words.view(source).astype(target).view(f"<u{want.item_bytes}")
    return converted


def _put_words(archive: zipfile.ZipFile, name: str, words: Words) -> None:
    for plane in range(words.itemsize):
        _put(archive, f"{name}:{plane}", np.ascontiguousarray(words.view(np.uint8)[plane :: words.itemsize]).tobytes())


def _put(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    sample = data[:_SAMPLE]
    worth = len(zlib.compress(sample, 1)) < _WORTH * len(sample)
    # A new ZipInfo has no modification time: equal checkpoints give equal files.
    entry = zipfile.ZipInfo(name)
    archive.writestr(entry, data, zipfile.ZIP_DEFLATED if worth else zipfile.ZIP_STORED, compresslevel=6)


def _restored(
    archive: zipfile.ZipFile, contents: Contents, source: _Checkpoint, side: Side
) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield the name of each file of a side and an iterator over its bytes."""
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
        # The difference has the type of the tuned tensor.
        tuned, name = (tensor, tensor.name) if side == "tuned" else (other, other.name)
        mixed = _words(archive, f"xor:{name}", tuned) ^ _as_type(other.words(), other, tuned)
        yield _as_type(mixed, tuned, tensor).tobytes()


def _words(archive: zipfile.ZipFile, name: str, like: Tensor) -> Words:
    """Return the words whose byte planes are stored under a name."""
    count = like.size // like.item_bytes
    width = like.item_bytes
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
    """Check that a side can be restored from the other, by hash."""
    with archive:
        contents = _read_contents(archive, Path(str(archive.filename)))
        checkpoint = hashlib.sha256()
        for name, pieces in _restored(archive, contents, source, side):
            digest = hashlib.sha256()
            for piece in pieces:
                digest.update(piece)
            checkpoint.update(f"{name} {digest.hexdigest()}\n".encode())
    wanted = contents.tuned_sha256 if side == "tuned" else contents.base_sha256
    _expect(checkpoint.hexdigest(), wanted, Path(str(archive.filename)))


def _expect(actual: str, wanted: str, delta: Path) -> None:
    if actual != wanted:
        raise StoreError(
            f"the restored checkpoint has the SHA-256 {actual[:12]}…",
            expected=f"{wanted[:12]}…",
            where=str(delta),
            fix="export the delta again",
        )


def _open(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        fix = "name a file that `export --delta` wrote"
        raise StoreError(f"this is not a delta ({error})", where=str(path), fix=fix) from error


def _read_contents(archive: zipfile.ZipFile, path: Path) -> Contents:
    raw = _read(archive, _MANIFEST)
    try:
        contents = Contents.model_validate_json(raw)
    except ValidationError as error:
        fix = "name a file that `export --delta` wrote, or upgrade fulltune"
        raise StoreError(f"this is not a delta ({first_problem(error)})", where=str(path), fix=fix) from error
    check_schema("the delta", contents.schema_version, SCHEMA, path)
    return contents


@contextmanager
def _damage(delta: Path) -> Iterator[None]:
    """Turn the exceptions from reading a truncated or inconsistent ZIP file into one message."""
    try:
        yield
    except (OSError, KeyError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        fix = "export or download it again"
        raise StoreError(f"the delta is damaged ({error})", where=str(delta), fix=fix) from error


@contextmanager
def _unfinished(goal: Path) -> Iterator[Path]:
    """Give a temporary path next to the goal; rename it to the goal on success, remove it on failure."""
    new = unfinished_path(goal)
    with store_errors(goal):
        goal.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(goal)
    try:
        yield new
        with store_errors(goal):
            os.replace(new, goal)
            sync_folder(goal.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        new.unlink(missing_ok=True)


def _other(side: Side) -> Side:
    return "base" if side == "tuned" else "tuned"
