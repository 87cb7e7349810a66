"""Compare representations of encoders without a language-modeling head: linear CKA, and a linear probe of topics."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from fulltune.metrics.base import Array
from fulltune.metrics.ratios import mean_of
from fulltune.records.run import Prediction, Score

_FOLDS = 5


def _is_correct(prediction: Prediction) -> Array:
    return np.array([float(prediction.output == prediction.reference), 1.0])


topic_accuracy = mean_of(
    _is_correct,
    name="topic_accuracy",
    direction="higher",
    source="accuracy of a logistic regression on frozen mean-pooled features, cross-validated (Alain & Bengio 2017)",
    label="topics right from frozen features",
)


def linear_cka(x: Array, y: Array) -> float:
    """Return the linear centered kernel alignment (CKA) of two feature matrices of the same rows.

    It is 1 for representations that are equal up to rotation and scale, and about 0 for unrelated ones (Kornblith et
    al. 2019). HSIC is estimated without bias (Song et al. 2012, equation 5), as in Nguyen et al. 2021: the biased
    estimate is far from 0 for unrelated features if there are fewer rows than dimensions.

    Args:
        x: ``(n, p)``.
        y: ``(n, q)``.

    Returns:
        The similarity; NaN below 4 rows.
    """
    if len(x) < 4:
        return math.nan
    k = x @ x.T
    l = y @ y.T  # noqa: E741 - K and L are the letters of the paper
    self_k = _hsic(k, k)
    self_l = _hsic(l, l)
    if not min(self_k, self_l) > 0:
        return math.nan
    return float(_hsic(k, l) / math.sqrt(self_k * self_l))


def _hsic(k: Array, l: Array) -> float:  # noqa: E741
    """Return the unbiased estimate of HSIC of two kernel matrices ``(n, n)`` (Song et al. 2012, equation 5)."""
    n = len(k)
    k = k - np.diag(np.diag(k))
    l = l - np.diag(np.diag(l))  # noqa: E741
    sums = k.sum() * l.sum() / ((n - 1) * (n - 2))
    rows = 2 * (k.sum(axis=0) @ l.sum(axis=0)) / (n - 2)
    return float(((k * l).sum() + sums - rows) / (n * (n - 3)))


def jackknife(n: int, value: Callable[[NDArray[np.intp]], float], confidence: float) -> Score:
    """Return a statistic of all rows with its jackknife interval (Efron & Tibshirani 1993, chapter 11).

    Args:
        n: Number of rows.
        value: The statistic of the rows in an index array ``(m,)``.
        confidence: Level of the interval.
    """
    rows = np.arange(n)
    estimate = value(rows)
    leave_one_out = np.array([value(np.delete(rows, index)) for index in rows])
    variance = (n - 1) / n * float(((leave_one_out - leave_one_out.mean()) ** 2).sum()) if n else math.nan
    half_width = float(norm.ppf(0.5 + confidence / 2)) * math.sqrt(variance)
    return Score(value=estimate, low=estimate - half_width, high=min(1.0, estimate + half_width), n=n)


def similarity(base: Array, tuned: Array, confidence: float) -> Score:
    """Return :func:`linear_cka` of the base's and the tuned model's features with its interval."""
    return jackknife(len(base), lambda rows: linear_cka(base[rows], tuned[rows]), confidence)


def topics(ids: Sequence[str], features: Array, targets: Sequence[str]) -> list[Prediction]:
    """Predict the topic of each row by a linear probe on frozen features, cross-validated.

    Folds are stratified and depend only on the topics, so that two representations are compared on the same folds. If
    features are not finite, every prediction is empty.

    Args:
        ids: Ids of the rows.
        features: ``(n, hidden)``.
        targets: Topic of each row.
    """
    outputs = _cross_validated(features, targets) if np.isfinite(features).all() else [""] * len(ids)
    return [
        Prediction(system="", id=row, input="", reference=topic, output=str(output))
        for row, topic, output in zip(ids, targets, outputs, strict=True)
    ]


def _cross_validated(features: Array, targets: Sequence[str]) -> list[str]:
    """Return the topic of each row as predicted by the probe of the fold that does not contain it."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=17)
    outputs: list[str] = cross_val_predict(classifier, features, list(targets), cv=folds).tolist()
    return outputs


def can_classify(targets: Sequence[str]) -> bool:
    """Return whether there are at least two topics, each with a row for every fold."""
    counts = [list(targets).count(topic) for topic in set(targets)]
    return len(counts) > 1 and min(counts) >= _FOLDS
