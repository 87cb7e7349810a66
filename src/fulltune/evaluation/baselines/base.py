"""Define what a baseline is given and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from fulltune.config import BaselineConfig
from fulltune.models.bundle import Bundle
from fulltune.records.run import Prediction
from fulltune.tasks.base import Example, Task


@dataclass(frozen=True)
class Given:
    """Everything that a baseline may read, besides the inputs of the examples that it answers.

    Attributes:
        task: The task, fitted to the data.
        base: The base model.
        settings: Options of the baselines.
        train: Training examples.
        groups: The group of each training example (``data.group``); empty without groups.
        shots: Examples for few-shot prompts.
    """

    task: Task
    base: Bundle
    settings: BaselineConfig
    train: Sequence[Example]
    groups: Sequence[str] = ()
    shots: Sequence[Example] = ()


@dataclass(frozen=True)
class Answers:
    """Predictions of a baseline, and how it was set.

    Attributes:
        predictions: One prediction per example, in order.
        setting: What was chosen on rows of train, e.g. ``C = 3 (3-fold cross-validation)``.
        sampled: Which of the rows of train were read, if not all of them; else an empty text.
    """

    predictions: Iterator[Prediction]
    setting: str = ""
    sampled: str = ""


Baseline = Callable[[Given, Sequence[Example]], Answers]
