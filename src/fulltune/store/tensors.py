"""Read safetensors files as plain bytes: positions of tensors, without torch and without reading all data.

The format: eight bytes with the length of a JSON header (little-endian), the header, then the tensors without gaps
(https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fulltune.errors import StoreError

Words = NDArray[np.unsignedinteger[Any]]

#: Bytes of one element.
ITEM_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}

#: Longest accepted header in bytes; the safetensors library has the same limit.
_LONGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class Tensor:
    """Position of a tensor: ``start`` and ``size`` in bytes of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int
    size: int

    @property
    def item_bytes(self) -> int:
        return ITEM_BYTES.get(self.dtype, 1)

    def words(self) -> Words:
        """Return the elements as unsigned integers of the same width, memory-mapped from the file."""
        if not self.size:
            return np.empty(0, f"<u{self.item_bytes}")
        shape = (self.size // self.item_bytes,)
        return np.memmap(self.path, f"<u{self.item_bytes}", "r", offset=self.start, shape=shape)


def header(path: Path) -> bytes:
    """Return the bytes of a file before its first tensor.

    Raises:
        StoreError: The file is not in the safetensors format.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(_LONGEST_HEADER, path.stat().st_size - 8):
            raise _broken(path, "its header has an impossible length")
        return length.to_bytes(8, "little") + file.read(length)


def tensors(path: Path, head: bytes) -> list[Tensor]:
    """Return the tensors that a header names, in the order of their positions.

    Raises:
        StoreError: The header does not match the format.
    """
    try:
        parsed = list(_parsed(path, head))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _broken(path, str(error)) from error
    return sorted(parsed, key=lambda tensor: tensor.start)


def _parsed(path: Path, head: bytes) -> Iterator[Tensor]:
    for name, entry in json.loads(head[8:]).items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            tensor = Tensor(name, entry["dtype"], tuple(entry["shape"]), path, len(head) + first, last - first)
            if tensor.size < 0 or tensor.size % tensor.item_bytes:
                raise ValueError(f"{name} has {tensor.size} bytes of {tensor.dtype}")
            yield tensor


def _broken(path: Path, reason: str) -> StoreError:
    return StoreError(f"the safetensors file is incomplete ({reason})", where=str(path), fix="restore the file")
