"""Quantize the matrix products of a classifier to 8 bits; keep those in float32 that would change its answers.

The choice is made on rows that are not scored, so that the evaluation rows judge the exported model only once.
"""

from __future__ import annotations

import ast
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fulltune.errors import ModelError
from fulltune.models.onnx_model import MODEL, onnx_model
from fulltune.pipeline.export.graphs import write_onnx
from fulltune.pipeline.export.scoring import Comparer, logits_of, spread
from fulltune.records.export import KeptLayer, Quantization
from fulltune.runtime.progress import Progress

if TYPE_CHECKING:
    from fulltune.models.bundle import Bundle
    from fulltune.pipeline.export.original import Original

#: Rows that the choice is made on, and those on which each product alone is tried.
_ROWS, _TRIED = 128, 32

#: Fractions of the products that stay in float32, tried in this order.
_FRACTIONS = (0.0, 1 / 16, 1 / 8, 1 / 4, 1 / 2)

#: Operators with a matrix product.
_PRODUCTS = ("MatMul", "Gemm")


@dataclass(frozen=True)
class _Product:
    """A product with constant weights: the name of its node, and that of its layer in the model."""

    node: str
    layer: str


def write_int8(source: Original, folder: Path, margin: float, progress: Progress) -> Quantization:
    """Write a classifier with products of 8-bit integers: weights per output channel, activations as they come.

    Args:
        source: The model, and rows to choose by.
        folder: An empty folder.
        margin: Fraction of rows whose answer may change, and loss of the score, on the rows of the choice.
        progress: Where the stages report.

    Raises:
        ModelError: The model is no classifier, or torch cannot export it.
    """
    if source.bundle.head != "classification":
        raise ModelError(
            f"{source.task.name} has no exporter to onnx-int8",
            expected="a classifier",
            fix="choose the format onnx, or gguf-q8_0 for a decoder",
            field="MODEL",
        )
    write_onnx(source.bundle, folder)
    full = folder / "float.onnx"
    (folder / MODEL).rename(full)
    _drop_shapes_of_weights(full)
    try:
        return _Choice(source, full, folder / MODEL, margin, progress).made()
    finally:
        full.unlink()


class _Choice:
    """The choice of the products that stay in float32.

    Args:
        source: The model, and rows to choose by.
        full: The graph in float32.
        place: Path of the quantized graph.
        margin: The change that is allowed.
        progress: Where the stages report.
    """

    def __init__(self, source: Original, full: Path, place: Path, margin: float, progress: Progress) -> None:
        self._source = source
        self._full = full
        self._place = place
        self._margin = margin
        self._progress = progress
        self._split, rows = source.other_rows
        self._rows = spread(rows, _ROWS)
        self._comparer = Comparer(source.task, source.config, self._rows, frozenset(), progress)
        self._inputs = list(self._comparer.features(source.bundle))
        self._expected = [self._logits(source.bundle, one) for one in self._inputs]

    def made(self) -> Quantization:
        """Write the graph with as few products in float32 as possible."""
        products = _products(self._full)
        found = Quantization(products=len(products))
        if not self._inputs:
            self._write([])
            return found
        ranked, attempts = list[KeptLayer](), list[tuple[int, float]]()
        nodes = {product.layer: product.node for product in products}
        for count in sorted({round(fraction * len(products)) for fraction in _FRACTIONS}):
            if count and not ranked:
                ranked = self._ranked(products)
            kept = ranked[:count]
            self._write([nodes[layer.layer] for layer in kept])
            error, is_close = self._measured()
            attempts.append((count, error))
            found = found.model_copy(update={"kept": tuple(kept)})
            if is_close:
                break
        chosen_on = f"{len(self._inputs)} rows of {self._split}"
        return found.model_copy(update={"attempts": tuple(attempts), "chosen_on": chosen_on})

    def _measured(self) -> tuple[float, bool]:
        """Return the mean logit error of the written graph, and whether its answers are close to the original's."""
        bundle = self._bundle()
        logits = [self._logits(bundle, one) for one in self._inputs]
        error = float(np.mean([np.abs(a - b).max() for a, b in zip(logits, self._expected, strict=True)]))
        changed = np.mean([self._answer(a) != self._answer(b) for a, b in zip(logits, self._expected, strict=True)])
        return error, bool(changed < self._margin)

    def _answer(self, logits: Any) -> tuple[int, ...]:
        if self._source.task.multi_label:
            return tuple(np.flatnonzero(logits > 0).tolist())
        return (int(logits.argmax()),)

    def _ranked(self, products: Sequence[_Product]) -> list[KeptLayer]:
        """Return all products by the error that each causes alone, the largest first."""
        chosen = spread(range(len(self._inputs)), _TRIED)
        errors = list[KeptLayer]()
        with self._progress.stage("layers", total=len(products)) as bar:
            for product in products:
                self._write([other.node for other in products if other is not product])
                bundle = self._bundle()
                largest = [np.abs(self._logits(bundle, self._inputs[i]) - self._expected[i]).max() for i in chosen]
                errors.append(KeptLayer(layer=product.layer, error=float(max(largest))))
                bar.advance()
        return sorted(errors, key=lambda layer: -layer.error)

    def _write(self, excluded: Sequence[str]) -> None:
        """Write the graph with all products quantized but some."""
        from onnxruntime.quantization import QuantType, quantize_dynamic

        with _silent():
            quantize_dynamic(
                self._full,
                self._place,
                op_types_to_quantize=list(_PRODUCTS),
                per_channel=True,
                # Without VNNI instructions, sums of two products with 8-bit weights overflow: the answers would depend
                # on the machine.
                reduce_range=True,
                weight_type=QuantType.QInt8,
                # onnxruntime splits a Gemm into a MatMul of this name and an Add before it quantizes.
                nodes_to_exclude=[name for node in excluded for name in (node, f"{node}_MatMul")],
                extra_options={"MatMulConstBOnly": True},
            )

    def _bundle(self) -> Bundle:
        model = onnx_model(self._place.parent, self._source.bundle.model.config, alone=True)
        return replace(self._source.bundle, model=model)

    def _logits(self, bundle: Any, one: Any) -> Any:
        return logits_of(bundle, one).numpy()


def _drop_shapes_of_weights(path: Path) -> None:
    """Remove the shapes that a graph notes for its weights beside the weights themselves.

    onnxruntime 1.23, the newest on Python 3.10, transposes weights and then refuses a noted shape that differs.
    """
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    weights = {one.name for one in model.graph.initializer}
    others = [value for value in model.graph.value_info if value.name not in weights]
    del model.graph.value_info[:]
    model.graph.value_info.extend(others)
    onnx.save(model, str(path))


def _products(path: Path) -> list[_Product]:
    """Return the products of a graph whose second factor is a constant."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    constants = {one.name for one in graph.initializer}
    nodes = [node for node in graph.node if node.op_type in _PRODUCTS and node.input[1] in constants]
    layers = [_layer_of(node) for node in nodes]
    # A layer that is used several times has a node for each use.
    names = [
        f"{layer} ({node.name})" if layers.count(layer) > 1 else layer
        for layer, node in zip(layers, nodes, strict=True)
    ]
    return [_Product(node.name, name) for node, name in zip(nodes, names, strict=True)]


def _layer_of(node: Any) -> str:
    """Return the name of the layer that a node comes from, as torch's exporter notes it; else the node's own name."""
    notes = {note.key: note.value for note in node.metadata_props}
    try:
        scopes = ast.literal_eval(notes.get("pkg.torch.onnx.name_scopes", "[]"))
        return str(scopes[-2]).removeprefix("model.")
    except (ValueError, SyntaxError, IndexError):
        return str(node.name)


@contextmanager
def _silent() -> Iterator[None]:
    """Silence onnxruntime, which advises on every graph, within the block."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
