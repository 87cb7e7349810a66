"""Find the metric that the best step of a training is chosen by. Importing this module imports no torch."""

from __future__ import annotations

from fulltune.config import GuardsConfig
from fulltune.errors import ConfigError, did_you_mean
from fulltune.metrics.base import Metric
from fulltune.tasks.base import Task


def choosing_metric(settings: GuardsConfig, task: Task) -> Metric | None:
    """Return the metric of the task that the best step is chosen by; None for the evaluation loss.

    Raises:
        ConfigError: ``guards.overfitting.metric`` is neither a metric of the task nor ``loss``.
    """
    asked = settings.overfitting.metric if settings.overfitting else None
    if asked is None:
        return task.metrics[0] if task.head == "classification" else None
    known = {metric.name: metric for metric in task.metrics}
    name = asked.removeprefix("eval_")
    if name != "loss" and name not in known:
        raise ConfigError(
            f"{asked!r} is no metric of {task.name}",
            expected=f"one of loss, {', '.join(known)}",
            fix=did_you_mean(name, ["loss", *known]) or "choose one of these",
            field="guards.overfitting.metric",
        )
    return known.get(name)
