"""Classification scores from counts per class, equal to scikit-learn's.

Macro-F1 averages over the labels that occur among the scored rows, as a reference or as an answer. This is
scikit-learn's default for single labels, so that published numbers are comparable; a label that occurs only in train
would otherwise contribute an F1 of 0. The same rule holds for several labels per row, where scikit-learn calls it
``zero_division=nan`` (by default it counts absent labels as 0). A resample omits the labels that it does not contain.

An answer outside the label list counts as one additional, unlisted class, so that it is an error and not ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypedDict

import numpy as np

from fulltune.metrics.base import Array, Metric
from fulltune.metrics.ratios import mean, ratio
from fulltune.records.run import Prediction

#: Equal-width confidence bins of the calibration error, as in Guo et al. 2017.
BINS = 15
_EDGES = np.linspace(0, 1, BINS + 1)


class ClassRow(TypedDict):
    """Scores of one class as fractions (0 if undefined); ``support`` is its count among the references."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


class CalibrationBin(TypedDict):
    """Answers with a confidence in ``(low, high]``: count, mean confidence, and accuracy."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def classification_metrics(labels: Sequence[str], multi_label: bool) -> tuple[Metric, ...]:
    """Return the metrics of a classification task, the deciding one (macro-F1) first.

    Args:
        labels: All label names; the order does not matter.
        multi_label: True if answers and references are tuples of labels. Accuracy is then subset accuracy, and there
            is no MCC.
    """
    counts = _Counts(labels)
    metrics = [
        Metric(
            "macro_f1", "higher", 1, "scikit-learn f1_score(average='macro')", counts, counts.macro_f1, label="macro-F1"
        ),
        Metric(
            "accuracy", "higher", 1, _ACCURACY[multi_label], counts, counts.accuracy, label="accuracy", ratio=(0, 1)
        ),
        Metric(
            "micro_f1", "higher", 1, "scikit-learn f1_score(average='micro')", counts, counts.micro_f1, label="micro-F1"
        ),
    ]
    if not multi_label:
        metrics.append(
            Metric(
                "mcc",
                "higher",
                1,
                _MCC,
                counts,
                counts.mcc,
                percent=False,
                label="MCC",
                bounds=(-1.0, 1.0),
                undefined=counts.is_constant,
            )
        )
    gaps = _decision_gaps if multi_label else _answer_gaps
    metrics.append(Metric("ece", "lower", 1, _ECE[multi_label], gaps, _ece, label="calibration error"))
    return tuple(metrics)


_ACCURACY = {
    False: "scikit-learn accuracy_score",
    True: "scikit-learn accuracy_score on label sets (subset accuracy): all labels of the row are correct",
}
_MCC = "scikit-learn matthews_corrcoef, multi-class (Gorodkin 2004)"
_ECE = {
    False: f"expected calibration error, {BINS} equal-width bins (Guo et al. 2017)",
    True: f"expected calibration error over all label decisions, {BINS} equal-width bins (Guo et al. 2017)",
}


class _Counts:
    """Statistics of a row: ``[hit, rows, true positives.., predicted.., true..]``.

    The last three blocks have one entry per label and one for unlisted labels.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)
        self._index = {label: index for index, label in enumerate(self.labels)}
        self._size = len(self._index) + 1

    def __call__(self, prediction: Prediction) -> Array:
        predicted = _label_set(prediction.output)
        true = _label_set(prediction.reference)
        vector = np.zeros(2 + 3 * self._size)
        vector[:2] = predicted == true, 1
        for block, labels in enumerate((predicted & true, predicted, true)):
            for label in labels:
                vector[2 + block * self._size + self._index.get(label, self._size - 1)] += 1
        return vector

    def per_class(self, sums: Array) -> tuple[Array, Array, Array]:
        """Return true positives, predicted and true counts, each of shape ``(..., labels + 1)``."""
        blocks = sums[..., 2:].reshape(*sums.shape[:-1], 3, self._size)
        return blocks[..., 0, :], blocks[..., 1, :], blocks[..., 2, :]

    def accuracy(self, sums: Array) -> Array:
        return mean(sums)

    def macro_f1(self, sums: Array) -> Array:
        hits, predicted, true = self.per_class(sums)
        occurs = predicted + true > 0
        f1 = np.where(occurs, ratio(2 * hits, predicted + true), 0.0)
        return ratio(f1.sum(axis=-1), occurs.sum(axis=-1))

    def micro_f1(self, sums: Array) -> Array:
        hits, predicted, true = (counts.sum(axis=-1) for counts in self.per_class(sums))
        return ratio(2 * hits, predicted + true)

    def mcc(self, sums: Array) -> Array:
        """Return the MCC; 0 if all answers or all references are one label, as in scikit-learn; NaN without rows."""
        _, predicted, true = self.per_class(sums)
        hits = sums[..., 0]
        rows = sums[..., 1]
        covariance = hits * rows - (predicted * true).sum(axis=-1)
        spread = self._spread(sums)
        defined = ratio(covariance, np.sqrt(np.maximum(spread, 0)))
        return np.where(rows > 0, np.where(spread > 0, defined, 0.0), np.nan)

    def is_constant(self, sums: Array) -> bool:
        """Return True if all answers or all references are one label: a correlation with them is undefined."""
        return not self._spread(sums) > 0

    def _spread(self, sums: Array) -> Array:
        """Return the squared denominator of the MCC; 0 if all answers or all references are one label."""
        _, predicted, true = self.per_class(sums)
        rows = sums[..., 1]
        spread = (rows**2 - (predicted**2).sum(axis=-1)) * (rows**2 - (true**2).sum(axis=-1))
        return np.asarray(spread)


def _label_set(labels: str | tuple[str, ...]) -> frozenset[str]:
    return frozenset((labels,)) if isinstance(labels, str) else frozenset(labels)


def _bin(confidence: float) -> int:
    """Return the bin of a confidence; bins are open below and closed above, and the first also includes 0."""
    return min(max(int(np.searchsorted(_EDGES, confidence, side="left")) - 1, 0), BINS - 1)


def _answers(prediction: Prediction) -> list[tuple[float, bool]]:
    """Return the confidence and correctness of a single label; nothing if the row has no confidence."""
    confidence = prediction.values.get("confidence")
    if confidence is None or np.isnan(float(confidence)):
        return []
    return [(float(confidence), prediction.output == prediction.reference)]


def _decisions(prediction: Prediction) -> list[tuple[float, bool]]:
    """Return the confidence and correctness of every decision; a "no" has one minus the label's probability."""
    predicted = _label_set(prediction.output)
    true = _label_set(prediction.reference)
    decisions = []
    for label, probability in (prediction.values.get("probabilities") or {}).items():
        confidence = float(probability) if label in predicted else 1 - float(probability)
        if not np.isnan(confidence):
            decisions.append((confidence, (label in predicted) == (label in true)))
    return decisions


def _gaps(decisions: Sequence[tuple[float, bool]]) -> Array | None:
    """Return accuracy minus confidence, summed per bin, followed by the number of decisions: ``(BINS + 1,)``."""
    if not decisions:
        return None
    vector = np.zeros(BINS + 1)
    for confidence, right in decisions:
        vector[_bin(confidence)] += right - confidence
    vector[BINS] = len(decisions)
    return vector


def _answer_gaps(prediction: Prediction) -> Array | None:
    return _gaps(_answers(prediction))


def _decision_gaps(prediction: Prediction) -> Array | None:
    return _gaps(_decisions(prediction))


def _ece(sums: Array) -> Array:
    return ratio(np.abs(sums[..., :BINS]).sum(axis=-1), sums[..., BINS])


def per_class(predictions: Iterable[Prediction], labels: Sequence[str]) -> list[ClassRow]:
    """Return precision, recall, F1 and support of each label, in the given order (``zero_division=0``)."""
    counts = _Counts(labels)
    total = np.zeros(2 + 3 * counts._size)
    for prediction in predictions:
        total += counts(prediction)
    hits, predicted, true = counts.per_class(total)
    scores = [np.nan_to_num(ratio(*pair)) for pair in ((hits, predicted), (hits, true), (2 * hits, predicted + true))]
    return [
        ClassRow(label=label, precision=float(p), recall=float(r), f1=float(f), support=int(n))
        for label, p, r, f, n in zip(labels, *scores, true, strict=False)
    ]


def confusion(predictions: Iterable[Prediction], labels: Sequence[str]) -> list[list[int]]:
    """Return counts of single labels: one row per reference, one column per answer. Unlisted labels are omitted.

    Raises:
        TypeError: The rows have several labels, for which a confusion matrix is not defined.
    """
    index = {label: position for position, label in enumerate(labels)}
    matrix = [[0] * len(labels) for _ in labels]
    for prediction in predictions:
        if not (isinstance(prediction.reference, str) and isinstance(prediction.output, str)):
            raise TypeError(f"row {prediction.id!r} has several labels; a confusion matrix needs one")
        if prediction.reference in index and prediction.output in index:
            matrix[index[prediction.reference]][index[prediction.output]] += 1
    return matrix


def calibration(predictions: Iterable[Prediction]) -> list[CalibrationBin]:
    """Return the bins of the reliability diagram behind the calibration error; bins without answers are omitted."""
    sums = np.zeros((BINS, 3))
    for prediction in predictions:
        decisions = _answers(prediction) if isinstance(prediction.reference, str) else _decisions(prediction)
        for confidence, right in decisions:
            sums[_bin(confidence)] += 1, confidence, right
    return [
        CalibrationBin(
            low=float(low), high=float(high), count=int(n), confidence=float(c / n), accuracy=float(hits / n)
        )
        for low, high, (n, c, hits) in zip(_EDGES, _EDGES[1:], sums, strict=False)
        if n
    ]
