"""Write nested state as JSON and safetensors, and read it, without pickles.

Tensors are stored in ``NAME.safetensors``, everything else in ``NAME.json`` with a reference in place of each tensor.
Values that JSON does not have (tuples, keys that are not strings, numbers that are not finite) are objects with one key
that starts with ``$``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fulltune.errors import StoreError

_TENSOR = "$tensor"
_TUPLE = "$tuple"
_ITEMS = "$items"
_FLOAT = "$float"


@dataclass(frozen=True)
class Part:
    """A part of a state that can be written.

    Attributes:
        value: JSON data.
        tensors: The tensors that ``value`` refers to, by name.
    """

    value: Any
    tensors: dict[str, Tensor]

    @property
    def size(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def copied(self) -> Part:
        """Return a part with copies of the tensors on the CPU, which training does not change."""
        return Part(self.value, copies(self.tensors))

    def write(self, folder: Path, name: str) -> None:
        """Write ``name.json``, and ``name.safetensors`` if there are tensors.

        Raises:
            OSError: A file cannot be written.
            SafetensorError: The tensors cannot be written.
        """
        (folder / f"{name}.json").write_text(json.dumps(self.value), encoding="utf-8")
        if self.tensors:
            save_file({key: value.contiguous() for key, value in self.tensors.items()}, folder / f"{name}.safetensors")


def encode(state: Any) -> Part:
    """Return a state as a part, without a copy of its tensors; a tensor that occurs several times is written once.

    Raises:
        StoreError: A value is neither plain data nor a tensor; the message has its path.
    """
    encoder = _Encoder()
    return Part(encoder.plain(state, ""), encoder.tensors)


def read(folder: Path, name: str) -> Any:
    """Return the state ``name`` of a folder.

    Raises:
        StoreError: The folder has no such state.
    """
    try:
        value = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(
            f"there is no state {name!r} here ({error})", where=str(folder), fix="resume from another checkpoint"
        ) from error
    file = folder / f"{name}.safetensors"
    return _decoded(value, load_file(file) if file.exists() else {})


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of the tensors on the CPU."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}


class _Encoder:
    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[Any, str] = {}

    def plain(self, value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            return {_TENSOR: self._named(value.detach(), path)}
        if isinstance(value, np.ndarray):
            return {_TENSOR: self._named(torch.from_numpy(value.copy()), path)}
        if isinstance(value, float) and not math.isfinite(value):
            return {_FLOAT: repr(float(value))}
        if isinstance(value, np.generic):
            return self.plain(value.item(), path)
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, (list, tuple)):
            inner = [self.plain(item, f"{path}.{index}") for index, item in enumerate(value)]
            return inner if isinstance(value, list) else {_TUPLE: inner}
        if isinstance(value, Mapping):
            return self._mapping(value, path)
        raise StoreError(
            f"the state holds a {type(value).__module__}.{type(value).__name__}",
            expected="numbers, strings, lists, mappings and tensors; nothing else can be read safely",
            fix="turn checkpoints off (checkpoints: null, save_strategy: no), or use another optimizer or scheduler",
            field=path.lstrip("."),
        )

    def _mapping(self, value: Mapping[Any, Any], path: str) -> Any:
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: self.plain(item, f"{path}.{key}") for key, item in value.items()}
        return {_ITEMS: [[self.plain(key, path), self.plain(item, f"{path}.{key}")] for key, item in value.items()]}

    def _named(self, tensor: Tensor, path: str) -> str:
        known = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else path
        name = self._names.setdefault(known, path.lstrip(".") or "value")
        self.tensors[name] = tensor
        return name


def _decoded(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decoded(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1 or not next(iter(value)).startswith("$"):
        return {key: _decoded(item, tensors) for key, item in value.items()}
    tag, inner = next(iter(value.items()))
    if tag == _TENSOR:
        return tensors[inner]
    if tag == _FLOAT:
        return float(inner)
    if tag == _TUPLE:
        return tuple(_decoded(item, tensors) for item in inner)
    return {_decoded(key, tensors): _decoded(item, tensors) for key, item in inner}
