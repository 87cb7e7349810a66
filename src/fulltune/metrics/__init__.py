"""Metrics by name. Each is a function of summed statistics per example: see :mod:`fulltune.metrics.base`."""

from __future__ import annotations

from collections.abc import Sequence

from fulltune.errors import ConfigError, did_you_mean
from fulltune.metrics import likelihood, sql, text
from fulltune.metrics.base import Metric
from fulltune.metrics.classification import classification_metrics

_FIXED = {
    metric.name: metric
    for module in (likelihood, sql, text)
    for metric in vars(module).values()
    if isinstance(metric, Metric)
}

#: Metrics that are shown but not compared: neither direction is better; or, for the calibration error, the estimate
#: of the same true value differs with the confidence of the answers (Roelofs et al. 2022, "Mitigating bias in
#: calibration error estimation"): of two systems without any error the less confident one scores worse.
INFORMATIONAL = frozenset({text.length_ratio.name, sql.empty_results.name, "ece"})


def known(labels: Sequence[str] = (), multi_label: bool = False) -> dict[str, Metric]:
    """Return all metrics by name; those of classification depend on the labels."""
    return _FIXED | {metric.name: metric for metric in classification_metrics(labels, multi_label)}


def get(name: str, labels: Sequence[str] = (), multi_label: bool = False) -> Metric:
    """Return a metric by name.

    Raises:
        ConfigError: There is no metric of this name.
    """
    metrics = known(labels, multi_label)
    if name not in metrics:
        raise ConfigError(
            f"unknown metric {name!r}", expected=f"one of {', '.join(sorted(metrics))}", fix=did_you_mean(name, metrics)
        )
    return metrics[name]
