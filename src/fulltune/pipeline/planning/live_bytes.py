"""Record the bytes that torch allocates and frees, in order.

Every tensor that an operator returns is seen where operators are dispatched, in the backward pass too, and its storage
is tracked until it is freed. Requested sizes are counted: no rounding of an allocator, and no memory that a kernel
allocates and frees internally. On the CPU the peak agrees with that of torch's profiler.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Record allocations in a context; :attr:`events` has sizes of new storages and, negative, of freed ones."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.events: list[int] = []
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(_owner(value)) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
        results = function(*args, **(kwargs or {}))
        for value in tree_leaves(results):
            if isinstance(value, Tensor) and id(_owner(value)) not in given | self._known:
                self._watch(_owner(value))
        return results

    def _watch(self, owner: Any) -> None:
        size = int(owner.nbytes() if isinstance(owner, torch.UntypedStorage) else owner.nbytes)
        self._known.add(id(owner))
        self.events.append(size)
        weakref.finalize(owner, self._gone, id(owner), size).atexit = False

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.events.append(-size)


def _owner(tensor: Tensor) -> Any:
    """Return the storage of a tensor, or the tensor itself if its layout has none (oneDNN's blocked weights)."""
    return tensor.untyped_storage() if tensor.layout == torch.strided else tensor
