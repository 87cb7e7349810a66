"""Measure once, in about a second, which matrix products oneDNN computes faster on this machine, and cache the result.

The choice must not depend on timing noise: otherwise two trainings with the same config would differ in their last
bits. So it is measured once per processor, torch version and number of threads, and written to the user's cache, where
every later process reads it. If the cache is not writable, nothing is measured and a fixed rule decides
(:func:`~fulltune.runtime.kernels.products.choose_by_rule`). A run also stores its own copy, so that it resumes with the
same kernels, even on another machine.
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
from fulltune.runtime.kernels.products import (
    FEATURES,
    NONE,
    PRODUCTS,
    ROWS,
    Choices,
    Product,
    ShapeClass,
    choose_by_rule,
)
from fulltune.runtime.kernels.products import shape_classes as all_classes

#: Largest accepted relative error of a float32 product (Frobenius norm, against float64).
TOLERANCE = 1e-5

_VERSION = 1
_ROUNDS = 3
_BUDGET_SECONDS = 1.5

#: oneDNN must be faster by this factor: at equal speed, torch's default library is used.
_MARGIN = 1.05

Pair = tuple[Tensor, Tensor]
Key = tuple[Product, ShapeClass]


def machine_choices(folder: Path | None = None) -> Choices:
    """Return the choices for this machine: cached, else measured and cached, else by rule. Never raises.

    Args:
        folder: Folder of the cached file; default: :func:`fulltune.runtime.paths.cache_folder`.
    """
    if not has_exact_onednn():
        return NONE
    path = (folder or paths.cache_folder()) / f"products-{_machine_key()}.json"
    cached = read_choices(path)
    if cached is not None:
        return cached
    if not _is_writable(path.parent):
        return choose_by_rule(machine.cpu_name(), torch.backends.cpu.get_cpu_capability())
    _write_unless_present(path, measure())
    return read_choices(path) or choose_by_rule(machine.cpu_name(), torch.backends.cpu.get_cpu_capability())


def has_exact_onednn() -> bool:
    """Return whether oneDNN is built into torch, is enabled, and computes float32 products in full float32."""
    mode = os.environ.get("ONEDNN_DEFAULT_FPMATH_MODE", "STRICT").upper()
    is_exact = mode == "STRICT" and torch.get_float32_matmul_precision() == "highest"
    backend: Any = torch.backends.mkldnn
    is_built_in = backend.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return is_exact and is_built_in and bool(torch._C._get_mkldnn_enabled())


def read_choices(path: Path) -> Choices | None:
    """Return the choices stored in a file; None if it is missing, damaged, or of another format version."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["version"] != _VERSION:
            return None
        onednn = frozenset((product, (rows, inputs, outputs)) for product, rows, inputs, outputs in raw["onednn"])
        return Choices(onednn, raw["source"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def dump_choices(choices: Choices) -> str:
    """Serialize choices to the JSON text that :func:`read_choices` reads."""
    onednn = [[product, *sizes] for product, sizes in sorted(choices.onednn)]
    return json.dumps({"version": _VERSION, "source": choices.source, "onednn": onednn}) + "\n"


def measure(budget_seconds: float = _BUDGET_SECONDS) -> Choices:
    """Time both libraries on every product and shape class, and return the choices.

    All products are timed in rounds, and the best time counts: a stall of the machine slows consecutive products of one
    round only. If fewer than two rounds fit into the budget, the rule decides. A product whose error exceeds
    :data:`TOLERANCE` is left to the BLAS.

    Args:
        budget_seconds: Seconds after which no further round starts.
    """
    deadline = time.perf_counter() + budget_seconds
    rounds = list[dict[Key, tuple[float, float]]]()
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        largest = 2 ** (2 * FEATURES[1])
        operands = list(_operands((torch.randn(largest), torch.randn(largest))))
        exact = [key for key, pair in operands if is_exact(pair)]
        while len(rounds) < _ROUNDS and time.perf_counter() < deadline:
            rounds.append({key: (_seconds(_blas, pair), _seconds(_onednn, pair)) for key, pair in operands})
    if len(rounds) < 2:
        return choose_by_rule(machine.cpu_name(), torch.backends.cpu.get_cpu_capability())
    return Choices(frozenset(key for key in exact if _is_onednn_faster(key, rounds)), "measured")


def _is_onednn_faster(key: Key, rounds: list[dict[Key, tuple[float, float]]]) -> bool:
    """Return whether oneDNN's best time beats the BLAS's by :data:`_MARGIN`."""
    blas = min(times[key][0] for times in rounds)
    onednn = min(times[key][1] for times in rounds)
    return blas > _MARGIN * onednn


def is_exact(pair: Pair) -> bool:
    """Check the first columns of oneDNN's product against a float64 product, to within :data:`TOLERANCE`."""
    product = _onednn(*pair)
    columns = min(16, pair[1].shape[0])
    reference = pair[0].double() @ pair[1][:columns].double().t()
    error = product[:, :columns].double().sub_(reference).norm() / reference.norm()
    return bool(error <= TOLERANCE)


def _operands(pool: Pair) -> Iterator[tuple[Key, Pair]]:
    """Yield the operands of every product of every shape class; the second operand is multiplied transposed.

    Args:
        pool: Two flat tensors of random numbers that the matrices are views of.
    """
    for sizes in all_classes():
        rows, inputs, outputs = sizes
        x = _matrix(pool[0], rows, inputs)
        w = _matrix(pool[1], outputs, inputs)
        g = _matrix(pool[1], rows, outputs)
        operands = {"forward": (x, w), "grad_input": (g, w.t()), "grad_weight": (g.t(), x.t())}
        for product in PRODUCTS:
            yield (product, sizes), operands[product]


def _matrix(pool: Tensor, rows: int, columns: int) -> Tensor:
    """Return the first numbers of the pool as a ``(rows, columns)`` view."""
    return pool[: rows * columns].view(rows, columns)


def _seconds(multiply: Callable[[Tensor, Tensor], Any], pair: Pair) -> float:
    """Return the wall time of one product in seconds."""
    started = time.perf_counter()
    multiply(*pair)
    return time.perf_counter() - started


def _blas(a: Tensor, b: Tensor) -> Tensor:
    return a @ b.t()


def _onednn(a: Tensor, b: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    return product


def _machine_key() -> str:
    """Return a hash of everything that the choice depends on: processor, its capability in torch, torch, threads."""
    parts = machine.cpu_name(), torch.backends.cpu.get_cpu_capability(), torch.__version__, torch.get_num_threads()
    return hashlib.sha256(repr((*parts, _VERSION, ROWS, FEATURES)).encode()).hexdigest()[:16]


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _write_unless_present(path: Path, choices: Choices) -> None:
    """Write the choices, unless another process has written them first: then all processes read the same file."""
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, encoding="utf-8", delete=False) as file:
            file.write(dump_choices(choices))
        try:
            if path.exists() and read_choices(path) is None:  # another format version, or damaged
                path.unlink(missing_ok=True)
            os.link(file.name, path)
        finally:
            os.unlink(file.name)
    except OSError:
        return
