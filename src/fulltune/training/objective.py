"""Which kind of loss the class of a model promises: known for the library's usual heads; all others compute their own.

Whether the model keeps the promise is checked by :mod:`fulltune.training.loss_check`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.models.auto import modeling_auto

from fulltune.errors import ArgumentError
from fulltune.models import losses
from fulltune.training.untouched import is_library_class, library_class

#: ``causal``: logits at t predict label t+1. ``seq2seq`` and ``token``: label t. ``class``: one label a row.
#: ``multi-label``: a vector of zeros and ones a row. ``regression``: one or several numbers a row.
Kind = Literal["causal", "seq2seq", "token", "class", "multi-label", "regression"]


@dataclass(frozen=True)
class Objective:
    """A loss with its settings, as a function of logits and labels.

    Attributes:
        kind: What the labels are.
        smoothing: Label smoothing; not defined for several labels a row, where it has no effect.
        weights: ``(C,)`` class weights (factors on the ones for several labels a row).
    """

    kind: Kind
    smoothing: float = 0.0
    weights: Tensor | None = None

    def __call__(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Sums and counts, both of shape ``(B,)``."""
        labels = labels.to(logits.device)
        weights = None if self.weights is None else self.weights.to(logits.device)
        if self.kind == "class":
            return losses.class_cross_entropy(logits, labels, weights, self.smoothing)
        if self.kind == "multi-label":
            return losses.multi_label_bce(logits, labels, weights)
        if self.kind == "regression":
            return losses.squared_error(logits, labels)
        if self.kind == "causal":
            # A soft prompt puts positions before the text; those predict nothing that is labeled.
            logits = logits[:, -labels.shape[1] :]
        return losses.token_cross_entropy(logits, self.aligned(labels), self.smoothing)

    @property
    def is_of_tokens(self) -> bool:
        """Whether positions are labeled, not rows."""
        return self.kind in ("causal", "seq2seq", "token")

    def aligned(self, labels: Tensor) -> Tensor:
        """Labels of tokens ``(B, T)`` as they stand beside the logits."""
        return losses.shift(labels) if self.kind == "causal" else labels

    def divergence(self, first: Tensor, second: Tensor, counts: Tensor) -> Tensor:
        """How far two passes over the same rows lie apart, ``(B,)``: classifiers only.

        Rows are weighted by what they count in the loss; ``counts`` is what :meth:`__call__` returned.
        """
        if self.kind == "multi-label":
            return losses.label_divergence(first, second)
        return losses.class_divergence(first, second) * counts

    def count(self, labels: Tensor) -> Tensor:
        """The denominator that these labels add, as a scalar, known before the model has run."""
        if self.kind in ("multi-label", "regression"):
            return torch.tensor(labels.numel())
        if self.kind == "class":
            weights = None if self.weights is None else self.weights.to(labels.device)
            return losses.class_counts(labels, weights).sum()
        return (self.aligned(labels) != losses.IGNORED).sum()

    def plain(self) -> Objective:
        """The same without smoothing and weights: the likelihood itself, which is what evaluation reports."""
        return Objective(self.kind)


def kind_of(model: nn.Module, labels: Tensor | None = None) -> Kind | None:
    """The kind of loss that the class of a model promises, or None for one that is not the library's own.

    A sequence classifier without a ``problem_type`` is told by its labels, as the library does (class indices if they
    are not known yet).
    """
    config = getattr(model, "config", None)
    if not isinstance(config, PretrainedConfig):
        return None
    kind = _kind_of_class(library_class(model)) if is_library_class(model) else None
    if kind == "seq2seq" and not config.is_encoder_decoder:
        return None
    return _kind_of_classifier(config, labels) if kind == "class" else kind


def is_of_classes(model: nn.Module) -> bool:
    """Return True if the labels of a model's tokens are classes, not tokens."""
    return library_class(model).__name__ in _names("TOKEN_CLASSIFICATION")


def checked_class_weights(model: Any, weights: Sequence[float] | None) -> Tensor | None:
    """Class weights as a tensor ``(C,)``.

    Raises:
        ArgumentError: The model has no classes, or another number of them.
    """
    if weights is None:
        return None
    _check_classifier(model, "class weights", "class_weights")
    classes = model.config.num_labels
    if len(weights) != classes:
        raise ArgumentError(f"{len(weights)} class weights", expected=f"{classes}, one a class", field="class_weights")
    return torch.tensor(weights, dtype=torch.float32)


def checked_r_drop(model: Any, weight: float) -> float:
    """The weight of R-Drop.

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


def _kind_of_classifier(config: Any, labels: Tensor | None) -> Kind | None:
    problem = getattr(config, "problem_type", None)
    if problem is None:
        several = labels is not None and labels.is_floating_point()
        problem = "multi_label_classification" if several else "single_label_classification"
        problem = problem if config.num_labels > 1 else "regression"
    kinds: dict[str, Kind] = {
        "single_label_classification": "class",
        "multi_label_classification": "multi-label",
        "regression": "regression",
    }
    return kinds.get(problem)


@lru_cache(maxsize=256)
def _kind_of_class(model_class: type) -> Kind | None:
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
