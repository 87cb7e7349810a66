"""Which products oneDNN makes faster on this machine: measured once, in about a second, and kept.

The choice must not follow the noise of a clock: two trainings of the same config would differ in their last bits. So it
is measured once for a processor, a torch and a number of threads, and written to the user's cache; every later process
reads it there. Where it cannot be kept, nothing is measured and a fixed rule decides
(:func:`~fulltune.runtime.kernels.products.by_rule`). A run keeps its own copy as well, so that it continues with the
products that it began with, even on another machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fulltune.runtime import machine, paths
from fulltune.runtime.kernels.products import FEATURES, NONE, PRODUCTS, ROWS, Choices, Product, ShapeClass, by_rule
from fulltune.runtime.kernels.products import shape_classes as all_classes

#: Names the folder where the choice is kept.

#: Largest relative error (of the Frobenius norm, against float64) that float32 products may have here.
TOLERANCE = 1e-5

_VERSION = 1
_ROUNDS = 3
_BUDGET_SECONDS = 1.5

#: oneDNN must win by this factor, so that a tie goes to the library that everybody knows.
_MARGIN = 1.05

Pair = tuple[Tensor, Tensor]
Key = tuple[Product, ShapeClass]


def machine_choices(folder: Path | None = None) -> Choices:
    """The choice for this machine: from the cache, else measured and kept, else the rule. Never fails.

    Args:
        folder: Where it is kept; default: :func:`fulltune.runtime.paths.cache_folder`.
    """
    if not is_float32_onednn_there():
        return NONE
    path = (folder or paths.cache_folder()) / f"products-{_machine_key()}.json"
    known = read_choices(path)
    if known is not None:
        return known
    if not _is_writable(path.parent):
        return by_rule(machine.cpu_name(), torch.backends.cpu.get_cpu_capability())
    _keep_first(path, measure())
    return read_choices(path) or by_rule(machine.cpu_name(), torch.backends.cpu.get_cpu_capability())


def is_float32_onednn_there() -> bool:
    """Whether oneDNN is part of this torch, is on, and computes float32 as float32."""
    mode = os.environ.get("ONEDNN_DEFAULT_FPMATH_MODE", "STRICT").upper()
    is_exact = mode == "STRICT" and torch.get_float32_matmul_precision() == "highest"
    backend: Any = torch.backends.mkldnn
    is_there = backend.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return is_exact and is_there and bool(torch._C._get_mkldnn_enabled())


def read_choices(path: Path) -> Choices | None:
    """A choice that was written, or None where there is none of this version."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["version"] != _VERSION:
            return None
        onednn = frozenset((product, (rows, inputs, outputs)) for product, rows, inputs, outputs in raw["onednn"])
        return Choices(onednn, raw["source"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def dump_choices(choices: Choices) -> str:
    """What :func:`read_choices` reads."""
    onednn = [[product, *sizes] for product, sizes in sorted(choices.onednn)]
    return json.dumps({"version": _VERSION, "source": choices.source, "onednn": onednn}) + "\n"


def measure(budget_seconds: float = _BUDGET_SECONDS) -> Choices:
    """Time both libraries on every product and shape class, in whole rounds of all of them.

    A stall of the machine hits neighbours in one round; the best time of several rounds does not know it. A machine
    too busy for two rounds gives no measurement, and the rule decides. A class whose result is off by more than
    :data:`TOLERANCE` goes to the BLAS.
    """
    ends, rounds = time.perf_counter() + budget_seconds, list[dict[Key, tuple[float, float]]]()
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        largest = 2 ** (2 * FEATURES[1])
        problems = list(_problems((torch.randn(largest), torch.randn(largest))))
        exact = {key for key, pair in problems if is_exact(pair)}
        while len(rounds) < _ROUNDS and time.perf_counter() < ends:
            rounds.append({key: (_seconds(_blas, pair), _seconds(_onednn, pair)) for key, pair in problems})
    if len(rounds) < 2:
        return by_rule(machine.cpu_name(), torch.backends.cpu.get_cpu_capability())
    best = {key: tuple(min(times) for times in zip(*(one[key] for one in rounds), strict=True)) for key in exact}
    taken = frozenset(key for key, (blas, onednn) in best.items() if blas > _MARGIN * onednn)
    return Choices(taken, "measured")


def is_exact(pair: Pair) -> bool:
    """Whether the first columns of oneDNN's product are those of a float64 product to within :data:`TOLERANCE`."""
    product, columns = _onednn(*pair), min(16, pair[1].shape[0])
    reference = pair[0].double() @ pair[1][:columns].double().t()
    error = product[:, :columns].double().sub_(reference).norm() / reference.norm()
    return bool(error <= TOLERANCE)


def _problems(pool: Pair) -> Iterator[tuple[Key, Pair]]:
    """Every product of every class as the two matrices that are multiplied (the second one transposed)."""
    for sizes in all_classes():
        rows, inputs, outputs = sizes
        x, w, g = _cut(pool[0], rows, inputs), _cut(pool[1], outputs, inputs), _cut(pool[1], rows, outputs)
        operands = {"forward": (x, w), "grad_input": (g, w.t()), "grad_weight": (g.t(), x.t())}
        yield from (((product, sizes), operands[product]) for product in PRODUCTS)


def _cut(pool: Tensor, rows: int, columns: int) -> Tensor:
    return pool[: rows * columns].view(rows, columns)


def _seconds(by: Callable[[Tensor, Tensor], Any], pair: Pair) -> float:
    started = time.perf_counter()
    by(*pair)
    return time.perf_counter() - started


def _blas(a: Tensor, b: Tensor) -> Tensor:
    return a @ b.t()


def _onednn(a: Tensor, b: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    return product


def _machine_key() -> str:
    """What the choice depends on: the processor, what torch makes of it, torch itself, and the number of threads."""
    parts = machine.cpu_name(), torch.backends.cpu.get_cpu_capability(), torch.__version__, torch.get_num_threads()
    return hashlib.sha256(repr((*parts, _VERSION, ROWS, FEATURES)).encode()).hexdigest()[:16]


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _keep_first(path: Path, choices: Choices) -> None:
    """Write the choice, unless another process was first: all of them then read what stands there."""
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, encoding="utf-8", delete=False) as file:
            file.write(dump_choices(choices))
        try:
            if path.exists() and read_choices(path) is None:  # of another version, or damaged
                path.unlink(missing_ok=True)
            os.link(file.name, path)
        finally:
            os.unlink(file.name)
    except OSError:
        return
