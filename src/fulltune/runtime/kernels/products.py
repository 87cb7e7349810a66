"""Describe which library computes which matrix products.

A linear layer has three products: ``forward`` (X Wᵀ), ``grad_input`` (G W) and ``grad_weight`` (Gᵀ X), with X of shape
(rows, in), W (out, in) and G (rows, out). Each can be computed in float32 by the BLAS that torch was built with, or by
oneDNN. Which one is faster depends on the processor and on the sizes, not on the model. So products are grouped into
shape classes: rows, in and out, each rounded to a power of two within bounds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

Product = Literal["forward", "grad_input", "grad_weight"]
ShapeClass = tuple[int, int, int]

PRODUCTS: tuple[Product, ...] = get_args(Product)

#: Bounds of a shape class, as exponents of two. Above them, the ratio of both libraries' speeds is constant.
ROWS = (4, 9)
FEATURES = (5, 10)

#: Floating-point operations below which the overhead of a oneDNN call dominates.
_MIN_OPERATIONS = 4_000_000


def shape_class(rows: int, inputs: int, outputs: int) -> ShapeClass:
    """Return rows, in and out, each rounded to the nearest power of two (in ratio) within bounds."""
    return _rounded(rows, ROWS), _rounded(inputs, FEATURES), _rounded(outputs, FEATURES)


def _rounded(size: int, bounds: tuple[int, int]) -> int:
    # round(log2(size)) without floats: squaring doubles the number of bits, so 181 (just below 128 × √2) rounds down.
    exponent = (max(1, size) ** 2).bit_length() // 2
    return int(2 ** min(max(exponent, bounds[0]), bounds[1]))


def shape_classes() -> list[ShapeClass]:
    """Return all shape classes, from small to large."""
    rows = _powers_of_two(ROWS)
    features = _powers_of_two(FEATURES)
    classes = [(r, i, o) for r in rows for i in features for o in features]
    return sorted(classes, key=lambda sizes: sizes[0] * sizes[1] * sizes[2])


def _powers_of_two(bounds: tuple[int, int]) -> list[int]:
    return [2**exponent for exponent in range(bounds[0], bounds[1] + 1)]


@dataclass(frozen=True)
class Choices:
    """The products that oneDNN computes; the BLAS computes all others.

    Attributes:
        onednn: Product and shape class of each.
        source: ``measured`` on this machine, ``rule`` if nothing could be measured or cached, or ``none``.
    """

    onednn: frozenset[tuple[Product, ShapeClass]]
    source: Literal["measured", "rule", "none"] = "none"

    def uses_onednn(self, product: Product, rows: int, inputs: int, outputs: int) -> bool:
        """Return whether oneDNN computes a product of this size."""
        return (product, shape_class(rows, inputs, outputs)) in self.onednn

    @property
    def fraction(self) -> float:
        """Fraction of all products and shape classes that oneDNN computes."""
        return len(self.onednn) / (len(PRODUCTS) * len(shape_classes()))

    @property
    def digest(self) -> str:
        """Hash of the choices. Trainings with different digests may differ in their last bits."""
        return hashlib.sha256(repr(sorted(self.onednn)).encode()).hexdigest()[:16]


#: The BLAS computes everything.
NONE = Choices(frozenset())


def choose_by_rule(cpu: str, capability: str) -> Choices:
    """Return choices without measuring: on non-Intel processors MKL is limited to AVX2, oneDNN is not.

    Args:
        cpu: Name of the processor.
        capability: ``torch.backends.cpu.get_cpu_capability()``.
    """
    if capability != "AVX512" or "intel" in cpu.lower():
        return Choices(frozenset(), "rule")
    return Choices(frozenset(_large(shape_classes())), "rule")


def _large(classes: Iterable[ShapeClass]) -> Iterable[tuple[Product, ShapeClass]]:
    for rows, inputs, outputs in classes:
        if 2 * rows * inputs * outputs >= _MIN_OPERATIONS:
            for product in PRODUCTS:
                yield product, (rows, inputs, outputs)
