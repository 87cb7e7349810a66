"""Classification scores against scikit-learn, on arbitrary labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    matthews_corrcoef,
    precision_recall_fscore_support,
)
from sklearn.preprocessing import MultiLabelBinarizer

from fulltune.metrics.accumulate import Accumulator
from fulltune.metrics.classification import BINS, calibration, classification_metrics, confusion, per_class
from fulltune.records.run import Prediction

LABELS = ("ant", "bee", "cat", "dog", "never")
LABEL = st.sampled_from(LABELS[:4])
SINGLE = st.lists(st.tuples(LABEL, LABEL), min_size=1, max_size=40)
SETS = st.sets(LABEL).map(lambda labels: tuple(sorted(labels)))
MULTI = st.lists(st.tuples(SETS, SETS), min_size=1, max_size=40)
Answer = str | tuple[str, ...]


def rows(pairs: Sequence[tuple[Answer, Answer]], values: Sequence[dict[str, object]] = ()) -> list[Prediction]:
    """Return predictions for (reference, output) pairs."""
    return [
        Prediction(
            system="tuned",
            id=str(index),
            input="",
            reference=reference,
            output=output,
            values=values[index] if values else {},
        )
        for index, (reference, output) in enumerate(pairs)
    ]


def scores(
    predictions: Sequence[Prediction], multi_label: bool = False, labels: Sequence[str] = LABELS
) -> dict[str, float]:
    accumulator = Accumulator(classification_metrics(labels, multi_label))
    for prediction in predictions:
        accumulator.add(prediction)
    return {name: score.value for name, score in accumulator.scores(resamples=100).items()}


@given(SINGLE)
def test_single_labels_equal_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    true, predicted = zip(*pairs, strict=True)
    found = scores(rows(pairs))
    assert found["macro_f1"] == pytest.approx(f1_score(true, predicted, average="macro", zero_division=0))
    assert found["micro_f1"] == pytest.approx(f1_score(true, predicted, average="micro", zero_division=0))
    assert found["accuracy"] == pytest.approx(accuracy_score(true, predicted))
    assert found["mcc"] == pytest.approx(mcc(true, predicted), abs=1e-9)


def mcc(true: Sequence[str], predicted: Sequence[str]) -> float:
    if set(true) == set(predicted) and len(set(true)) == 1:
        return 0.0  # scikit-learn warns for a single label, and gives 0
    return float(matthews_corrcoef(true, predicted))


@pytest.mark.parametrize("pairs", [[("ant", "bee"), ("bee", "bee")] * 30, [("ant", "bee"), ("ant", "ant")] * 30])
def test_the_mcc_of_one_answer_or_one_reference_is_zero_by_definition_and_has_no_interval(
    pairs: list[tuple[str, str]],
) -> None:
    accumulator = Accumulator(classification_metrics(LABELS, multi_label=False))
    for prediction in rows(pairs):
        accumulator.add(prediction)
    score = accumulator.scores(resamples=100)["mcc"]
    assert (score.value, score.n) == (0.0, 60)
    assert [math.isnan(score.low), math.isnan(score.high)] == [True, True]


@given(MULTI)
def test_several_labels_equal_scikit_learn(pairs: list[tuple[tuple[str, ...], tuple[str, ...]]]) -> None:
    binarizer = MultiLabelBinarizer(classes=LABELS).fit([LABELS])
    true, predicted = (binarizer.transform([pair[side] for pair in pairs]) for side in (0, 1))
    found = scores(rows(pairs), multi_label=True)
    macro, micro = (f1_score(true, predicted, average=kind, zero_division=np.nan) for kind in ("macro", "micro"))
    assert found["macro_f1"] == pytest.approx(macro, nan_ok=True)
    assert found["micro_f1"] == pytest.approx(micro, nan_ok=True)
    assert found["accuracy"] == pytest.approx(accuracy_score(true, predicted))


@given(SINGLE)
def test_per_class_and_confusion_equal_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    true, predicted = zip(*pairs, strict=True)
    expected = precision_recall_fscore_support(true, predicted, labels=LABELS, zero_division=0)
    found = per_class(rows(pairs), LABELS)
    assert [row["label"] for row in found] == list(LABELS)
    for column, key in enumerate(("precision", "recall", "f1", "support")):
        assert [row[key] for row in found] == pytest.approx(expected[column].tolist())  # type: ignore[literal-required]
    assert confusion(rows(pairs), LABELS) == confusion_matrix(true, predicted, labels=LABELS).tolist()


@given(MULTI)
def test_per_class_of_several_labels_equals_scikit_learn(pairs: list[tuple[tuple[str, ...], tuple[str, ...]]]) -> None:
    binarizer = MultiLabelBinarizer(classes=LABELS).fit([LABELS])
    true, predicted = (binarizer.transform([pair[side] for pair in pairs]) for side in (0, 1))
    expected = precision_recall_fscore_support(true, predicted, average=None, zero_division=0)
    assert [row["f1"] for row in per_class(rows(pairs), LABELS)] == pytest.approx(expected[2].tolist())


def test_a_label_that_only_train_has_does_not_pull_the_mean_down() -> None:
    assert scores(rows([("ant", "ant"), ("bee", "bee")]))["macro_f1"] == 1.0


@given(SINGLE)
def test_an_unlisted_answer_is_wrong_and_is_a_class_of_its_own(pairs: list[tuple[str, str]]) -> None:
    pairs = [*pairs, ("ant", "no such label")]
    true, predicted = zip(*pairs, strict=True)
    found = scores(rows(pairs))
    assert found["macro_f1"] == pytest.approx(f1_score(true, predicted, average="macro", zero_division=0))
    assert found["accuracy"] == pytest.approx(accuracy_score(true, predicted))
    assert sum(map(sum, confusion(rows(pairs), LABELS))) == len(pairs) - 1


def expected_calibration_error(decisions: Sequence[tuple[float, bool]]) -> float:
    """Compute the error as in Guo et al. 2017: the weighted mean over the bins of |accuracy - confidence|."""
    total, n = 0.0, len(decisions)
    for low, high in zip(np.linspace(0, 1, 16)[:-1], np.linspace(0, 1, 16)[1:], strict=True):
        inside = [(c, right) for c, right in decisions if low < c <= high or (c == 0 and low == 0)]
        if inside:
            accuracy = sum(right for _, right in inside) / len(inside)
            confidence = sum(c for c, _ in inside) / len(inside)
            total += len(inside) / n * abs(accuracy - confidence)
    return total


@given(st.lists(st.tuples(st.floats(0, 1), LABEL, LABEL), min_size=1, max_size=60))
def test_calibration_error_of_single_labels(drawn: list[tuple[float, str, str]]) -> None:
    predictions = rows([(t, p) for _, t, p in drawn], [{"confidence": c} for c, _, _ in drawn])
    decisions = [(c, t == p) for c, t, p in drawn]
    assert scores(predictions)["ece"] == pytest.approx(expected_calibration_error(decisions))
    bins = calibration(predictions)
    assert sum(b["count"] for b in bins) == len(drawn)
    gap = sum(b["count"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / len(drawn)
    assert gap == pytest.approx(scores(predictions)["ece"])


@given(st.lists(st.tuples(SETS, SETS, st.tuples(*[st.floats(0, 1)] * 4)), min_size=1, max_size=20))
def test_calibration_error_of_several_labels_is_over_all_decisions(
    drawn: list[tuple[tuple[str, ...], tuple[str, ...], tuple[float, ...]]],
) -> None:
    values = [{"probabilities": dict(zip(LABELS[:4], p, strict=True))} for _, _, p in drawn]
    predictions = rows([(true, out) for true, out, _ in drawn], values)
    decisions = [
        (p if label in out else 1 - p, (label in out) == (label in true))
        for true, out, probabilities in drawn
        for label, p in zip(LABELS[:4], probabilities, strict=True)
    ]
    assert scores(predictions, multi_label=True)["ece"] == pytest.approx(expected_calibration_error(decisions))
    assert sum(b["count"] for b in calibration(predictions)) == len(decisions)


@pytest.mark.parametrize("confidence", [step / BINS for step in range(BINS + 1)])
def test_a_confidence_on_an_edge_is_in_the_lower_bin(confidence: float) -> None:
    (found,) = calibration(rows([("ant", "ant")], [{"confidence": confidence}]))
    assert found["low"] <= confidence <= found["high"]
    assert found["low"] < confidence or confidence == 0


def test_rows_without_confidence_have_no_calibration_error() -> None:
    unsure = rows([("ant", "ant"), ("ant", "ant")], [{}, {"confidence": "NaN"}])
    assert math.isnan(scores(unsure)["ece"])
    assert calibration(unsure) == []
    assert math.isnan(scores(rows([(("ant",), ("ant",))]), multi_label=True)["ece"])


def test_without_rows_everything_is_nan() -> None:
    found = scores([])
    assert len(found) == 5
    assert all(math.isnan(value) for value in found.values())


@pytest.mark.parametrize(
    ("multi_label", "names"),
    [(False, ["macro_f1", "accuracy", "micro_f1", "mcc", "ece"]), (True, ["macro_f1", "accuracy", "micro_f1", "ece"])],
)
def test_macro_f1_decides(multi_label: bool, names: list[str]) -> None:
    metrics = classification_metrics(LABELS, multi_label)
    assert [metric.name for metric in metrics] == names
    assert [metric.name for metric in metrics if metric.direction == "lower"] == ["ece"]


def test_confusion_refuses_several_labels() -> None:
    with pytest.raises(TypeError, match="several labels"):
        confusion(rows([(("ant",), ("ant",))]), LABELS)


@pytest.mark.parametrize("helper", [per_class, confusion])
def test_helpers_take_a_stream(helper: Callable[..., list[object]]) -> None:
    predictions = rows([("ant", "bee"), ("bee", "bee")])
    assert helper(iter(predictions), LABELS) == helper(predictions, LABELS)
