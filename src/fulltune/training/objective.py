"""Define the losses by kind of labels, and the kind of each class of transformers with a usual head.

That a model really computes the loss of its kind is checked by :mod:`fulltune.training.loss_check`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.models.auto import modeling_auto

from fulltune.errors import ArgumentError
from fulltune.models import losses
from fulltune.models.token_ids import IGNORED
from fulltune.training.untouched import is_library_class, library_class

#: ``causal``: logits at t predict label t+1. ``seq2seq`` and ``token``: label t. ``class``: one label per row.
#: ``multi-label``: a vector of zeros and ones per row. ``regression``: one or several numbers per row.
LabelKind = Literal["causal", "seq2seq", "token", "class", "multi-label", "regression"]

#: The kind of labels by the ``problem_type`` of a sequence classifier.
_PROBLEM_TYPES: Mapping[str, LabelKind] = {
    "single_label_classification": "class",
    "multi_label_classification": "multi-label",
    "regression": "regression",
}


@dataclass(frozen=True)
class Objective:
    """A loss with its settings, as a function of logits and labels.

    Attributes:
        kind: Kind of the labels.
        smoothing: Label smoothing; it has no effect with several labels per row.
        weights: ``(C,)`` class weights (with several labels per row, of the positive ones).
    """

    kind: LabelKind
    smoothing: float = 0.0
    weights: Tensor | None = None

    def __call__(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return sums and counts, both of shape ``(B,)``."""
        labels = labels.to(logits.device)
        weights = None if self.weights is None else self.weights.to(logits.device)
        if self.kind == "class":
            # Rows may hold their label as a list of one, as the loss of the library allows.
            return losses.class_cross_entropy(logits, labels.flatten(), weights, self.smoothing)
        if self.kind == "multi-label":
            return losses.multi_label_bce(logits, labels, weights)
        if self.kind == "regression":
            return losses.squared_error(logits, labels)
        if self.kind == "causal":
            # A soft prompt adds positions before the text, which have no labels.
            logits = logits[:, -labels.shape[1] :]
        return losses.token_cross_entropy(logits, self.aligned(labels), self.smoothing)

    @property
    def is_of_tokens(self) -> bool:
        """True if each position has a label, not each row."""
        return self.kind in ("causal", "seq2seq", "token")

    def aligned(self, labels: Tensor) -> Tensor:
        """Return labels of tokens ``(B, T)``, aligned with the logits."""
        return losses.shift(labels) if self.kind == "causal" else labels

    def divergence(self, first: Tensor, second: Tensor, counts: Tensor) -> Tensor:
        """Return the divergence of two passes over the same rows, ``(B,)``; for classifiers only.

        Args:
            first: Logits of the first pass.
            second: Logits of the second pass.
            counts: Weights of the rows in the loss, as :meth:`__call__` returns them.
        """
        if self.kind == "multi-label":
            return losses.label_divergence(first, second)
        return losses.class_divergence(first, second) * counts

    def count(self, labels: Tensor) -> Tensor:
        """Return the denominator of these labels, a scalar, without the outputs of the model."""
        if self.kind in ("multi-label", "regression"):
            return torch.tensor(labels.numel())
        if self.kind == "class":
            weights = None if self.weights is None else self.weights.to(labels.device)
            return losses.class_counts(labels, weights).sum()
        return (self.aligned(labels) != IGNORED).sum()

    def plain(self) -> Objective:
        """Return the loss without smoothing and weights: the likelihood that evaluation reports."""
        return Objective(self.kind)


def kind_of(model: nn.Module, labels: Tensor | None = None) -> LabelKind | None:
    """Return the kind of labels of the class of a model, or None for a class that is not one of transformers.

    The kind of a sequence classifier without a ``problem_type`` is inferred from its labels, as the library does.

    Args:
        model: Unwrapped.
        labels: Labels of a batch; without them, a sequence classifier has the kind ``class``.
    """
    config = getattr(model, "config", None)
    if not isinstance(config, PretrainedConfig):
        return None
    kind = _kind_of_class(library_class(model)) if is_library_class(model) else None
    if kind == "seq2seq" and not config.is_encoder_decoder:
        return None
    return _kind_of_classifier(config, labels) if kind == "class" else kind


def note_problem_type(model: Any, kind: LabelKind) -> None:
    """Write the kind of labels to the config of a sequence classifier that lacks it, as its loss in the library does.

    Args:
        model: Unwrapped.
        kind: Kind of the labels of a batch.
    """
    if kind in _PROBLEM_TYPES.values() and getattr(model.config, "problem_type", None) is None:
        model.config.problem_type = next(name for name, one in _PROBLEM_TYPES.items() if one == kind)


def is_of_classes(model: nn.Module) -> bool:
    """Return True if the labels of a model's tokens are classes, not tokens."""
    return library_class(model).__name__ in _names("TOKEN_CLASSIFICATION")


def checked_class_weights(model: Any, weights: Sequence[float] | None) -> Tensor | None:
    """Return class weights as a tensor ``(C,)``.

    Raises:
        ArgumentError: The model has no classes, or their number differs.
    """
    if weights is None:
        return None
    _check_classifier(model, "class weights", "class_weights")
    classes = model.config.num_labels
    if len(weights) != classes:
        raise ArgumentError(
            f"{len(weights)} class weights", expected=f"{classes}, one per class", field="class_weights"
        )
    return torch.tensor(weights, dtype=torch.float32)


def checked_r_drop(model: Any, weight: float) -> float:
    """Return the weight of R-Drop.

    Raises:
        ArgumentError: The model has no classes.
    """
    if weight:
        _check_classifier(model, "R-Drop", "r_drop")
    return weight


def _check_classifier(model: nn.Module, wanted: str, field: str) -> None:
    if kind_of(model) not in ("class", "multi-label"):
        raise ArgumentError(
            f"{wanted} for {type(model).__name__}",
            expected="a sequence classifier",
            fix=f"leave {field} out",
            field=field,
        )


def _kind_of_classifier(config: Any, labels: Tensor | None) -> LabelKind | None:
    problem = getattr(config, "problem_type", None)
    if problem is None:
        several = labels is not None and labels.is_floating_point()
        problem = "multi_label_classification" if several else "single_label_classification"
        problem = problem if config.num_labels > 1 else "regression"
    return _PROBLEM_TYPES.get(problem)


@lru_cache(maxsize=256)
def _kind_of_class(model_class: type) -> LabelKind | None:
    name = model_class.__name__
    if name in _names("CAUSAL_LM"):
        return "causal"
    if name in _names("SEQ_TO_SEQ_CAUSAL_LM"):
        return "seq2seq"
    if name in _names("SEQUENCE_CLASSIFICATION"):
        return "class"
    return "token" if name in _names("MASKED_LM") | _names("TOKEN_CLASSIFICATION") else None


@lru_cache(maxsize=8)
def _names(task: str) -> frozenset[str]:
    values = getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES").values()
    return frozenset(name for value in values for name in ((value,) if isinstance(value, str) else value))
