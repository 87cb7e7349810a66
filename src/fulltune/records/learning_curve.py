"""Define the record of a learning curve."""

from __future__ import annotations

from typing import Literal

from fulltune.records.run import Model, Score


class Point(Model):
    """A part of the training rows and the score of the model tuned on it."""

    rows: int
    score: Score


class Change(Model):
    """Gain from twice the rows, in the direction of the metric (above 0 is better), with its interval."""

    rows: int
    value: float
    low: float
    high: float
    exponent: float


class LearningCurve(Model):
    """Scores by number of training rows.

    Attributes:
        task: Name of the task.
        model: The base model.
        metric: The deciding metric.
        direction: ``higher`` or ``lower`` is better.
        steps: Optimizer steps per part, the same for all.
        confidence: Level of the intervals.
        points: From the smallest part to all rows.
        doubled: Gain from twice the rows; None if no power law can be fitted.
        verdict: ``more data helps`` if the interval of the gain is above 0.
        headline: The result in a sentence or two.
    """

    task: str
    model: str
    metric: str
    direction: Literal["higher", "lower"]
    steps: int
    confidence: float
    points: tuple[Point, ...]
    doubled: Change | None
    verdict: Literal["more data helps", "undecided"]
    headline: str
