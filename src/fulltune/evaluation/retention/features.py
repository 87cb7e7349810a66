"""Encoders without a head for words: is the representation still the base's, and can one still read topics from it?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from fulltune.metrics.base import Array, Metric
from fulltune.metrics.ratios import mean
from fulltune.records.run import Prediction, Score

_FOLDS = 5


def _right(prediction: Prediction) -> Array:
    return np.array([float(prediction.output == prediction.reference), 1.0])


topic_accuracy = Metric(
    name="topic_accuracy",
    direction="higher",
    version=1,
    source="accuracy of a logistic regression on frozen mean-pooled features, cross-validated (Alain & Bengio 2017)",
    statistics=_right,
    value=mean,
    label="topics right from frozen features",
)


def linear_cka(x: Array, y: Array) -> float:
    """Linear centered kernel alignment of features ``(n, p)`` and ``(n, q)`` of the same rows: 1 for the same
    representation up to rotation and scale, about 0 for unrelated ones.

    Kornblith et al. 2019, with the unbiased estimator of HSIC (Song et al. 2012, equation 5) as in Nguyen et al. 2021:
    the plain one is far from 0 for unrelated features where rows are fewer than dimensions. NaN below 4 rows.
    """
    if len(x) < 4:
        return math.nan
    k, l = x @ x.T, y @ y.T  # noqa: E741 - the letters of the paper
    similarity = _hsic(k, l) / math.sqrt(_hsic(k, k) * _hsic(l, l)) if min(_hsic(k, k), _hsic(l, l)) > 0 else math.nan
    return float(similarity)


def _hsic(k: Array, l: Array) -> float:  # noqa: E741
    n = len(k)
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
    whole = k.sum() * l.sum() / ((n - 1) * (n - 2))
    rows = 2 * (k.sum(axis=0) @ l.sum(axis=0)) / (n - 2)
    return float(((k * l).sum() + whole - rows) / (n * (n - 3)))


def jackknife(n: int, value: Callable[[NDArray[np.intp]], float], confidence: float) -> Score:
    """A value on all rows with its jackknife interval (Efron & Tibshirani 1993, chapter 11).

    Args:
        n: Rows.
        value: The statistic on the rows that an index array ``(m,)`` names.
        confidence: Of the interval.
    """
    rows = np.arange(n)
    found = value(rows)
    without = np.array([value(np.delete(rows, index)) for index in rows])
    error = math.sqrt((n - 1) / n * float(((without - without.mean()) ** 2).sum())) if n else math.nan
    reach = float(norm.ppf(0.5 + confidence / 2)) * error
    return Score(value=found, low=found - reach, high=min(1.0, found + reach), n=n)


def similarity(base: Array, tuned: Array, confidence: float) -> Score:
    """:func:`linear_cka` of the base's and the tuned model's features with its interval."""
    return jackknife(len(base), lambda rows: linear_cka(base[rows], tuned[rows]), confidence)


def topics(ids: Sequence[str], features: Array, wanted: Sequence[str]) -> list[Prediction]:
    """What a linear classifier on frozen features says of each row's topic, never having seen the row.

    Folds are stratified and the same for the same topics, so that two representations are asked alike. From features
    that are not finite nothing is read: every answer is empty.
    """
    said = _cross_validated(features, wanted) if np.isfinite(features).all() else [""] * len(ids)
    return [
        Prediction(system="", id=row, input="", reference=topic, output=str(answer))
        for row, topic, answer in zip(ids, wanted, said, strict=True)
    ]


def _cross_validated(features: Array, wanted: Sequence[str]) -> list[str]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=17)
    said: list[str] = cross_val_predict(classifier, features, list(wanted), cv=folds).tolist()
    return said


def can_classify(wanted: Sequence[str]) -> bool:
    """Whether there are at least two topics, each with a row for every fold."""
    counts = [list(wanted).count(topic) for topic in set(wanted)]
    return len(counts) > 1 and min(counts) >= _FOLDS
