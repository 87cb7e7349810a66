"""Which library multiplies which matrices.

A linear layer is three products: ``forward`` (X Wᵀ), ``grad_input`` (G W) and ``grad_weight`` (Gᵀ X), with X of shape
(rows, in), W (out, in) and G (rows, out). Two libraries can take each of them in float32: the BLAS that torch was built
with, and oneDNN. Which is faster depends on the processor and on the size, not on the model, so products are told apart
by a shape class: rows, in and out, each rounded to a power of two between bounds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

Product = Literal["forward", "grad_input", "grad_weight"]
ShapeClass = tuple[int, int, int]

PRODUCTS: tuple[Product, ...] = get_args(Product)

#: Bounds of a shape class, as exponents of two. Beyond the upper ones the ratio of the two libraries stays as it is.
ROWS = (4, 9)
FEATURES = (5, 10)

#: Fewer multiplications and additions than this, and oneDNN's cost of a call is the larger part.
_WORTHWHILE = 4_000_000


def shape_class(rows: int, inputs: int, outputs: int) -> ShapeClass:
    """Rows, in and out, each the nearest power of two (in ratio) within bounds."""
    return _rounded(rows, ROWS), _rounded(inputs, FEATURES), _rounded(outputs, FEATURES)


def _rounded(size: int, bounds: tuple[int, int]) -> int:
    # 181 of 256 is half way between 128 and 256 in ratio: a square has its bits doubled, so this needs no float.
    exponent = (max(1, size) ** 2).bit_length() // 2
    return int(2 ** min(max(exponent, bounds[0]), bounds[1]))


def shape_classes() -> list[ShapeClass]:
    """All of them, from small to large."""
    rows, features = ([2**n for n in range(low, high + 1)] for low, high in (ROWS, FEATURES))
    classes = [(r, i, o) for r in rows for i in features for o in features]
    return sorted(classes, key=lambda sizes: sizes[0] * sizes[1] * sizes[2])


@dataclass(frozen=True)
class Choices:
    """The products that oneDNN takes; the BLAS takes all others.

    Attributes:
        onednn: Product and shape class of each.
        source: ``measured`` on this machine, ``rule`` where nothing could be measured or kept, or ``none``.
    """

    onednn: frozenset[tuple[Product, ShapeClass]]
    source: Literal["measured", "rule", "none"] = "none"

    def takes(self, product: Product, rows: int, inputs: int, outputs: int) -> bool:
        """Whether oneDNN takes a product of this size."""
        return (product, shape_class(rows, inputs, outputs)) in self.onednn

    @property
    def share(self) -> float:
        """Share of all shape classes and products that oneDNN takes."""
        return len(self.onednn) / (len(PRODUCTS) * len(shape_classes()))

    @property
    def digest(self) -> str:
        """The same for the same products: two trainings with another digest may differ in the last bits."""
        return hashlib.sha256(repr(sorted(self.onednn)).encode()).hexdigest()[:16]


#: Everything to the BLAS.
NONE = Choices(frozenset())


def by_rule(cpu: str, capability: str) -> Choices:
    """What is known without measuring: MKL keeps to AVX2 on processors that are not Intel's, oneDNN does not.

    Args:
        cpu: The processor's name.
        capability: ``torch.backends.cpu.get_cpu_capability()``.
    """
    if capability != "AVX512" or "intel" in cpu.lower():
        return Choices(frozenset(), "rule")
    return Choices(frozenset(_large(shape_classes())), "rule")


def _large(classes: Iterable[ShapeClass]) -> Iterable[tuple[Product, ShapeClass]]:
    for rows, inputs, outputs in classes:
        if 2 * rows * inputs * outputs >= _WORTHWHILE:
            yield from ((product, (rows, inputs, outputs)) for product in PRODUCTS)
