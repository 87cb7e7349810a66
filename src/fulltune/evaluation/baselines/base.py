"""Define what a baseline is given and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fulltune.config import BaselineConfig, TrainConfig
from fulltune.records.run import Prediction
from fulltune.tasks.base import Example, Task

if TYPE_CHECKING:
    from fulltune.models.bundle import Bundle


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
        rows: The number of rows that a baseline may pass through the base (``baselines.time``); None for any number.
    """

    task: Task
    base: Bundle
    settings: BaselineConfig
    train: Sequence[Example]
    groups: Sequence[str] = ()
    shots: Sequence[Example] = ()
    rows: int | None = None


@dataclass(frozen=True)
class Answers:
    """Predictions of a baseline, and how it was set.

    Attributes:
        predictions: One prediction per example, in order.
        setting: The choice made on rows of train, e.g. ``C = 3 (3-fold cross-validation)``.
        sampled: The rows of train that were read, in words, if not all of them; else an empty text.
    """

    predictions: Iterator[Prediction]
    setting: str = ""
    sampled: str = ""


#: A baseline is never limited to fewer rows than this.
FEWEST_ROWS = 1000


def allowed_rows(settings: BaselineConfig, train: TrainConfig, sequences: int, scored: int) -> int:
    """Return how many rows a baseline may pass through the base: a fraction of those of the run.

    A trained sequence counts three times per epoch, forward and backward (Kaplan et al. 2020, "Scaling Laws for Neural
    Language Models", table 1), a scored row once. The number does not depend on the speed of the machine, so that the
    same config gives the same scores.

    Args:
        settings: Options of the baselines.
        train: Options of training.
        sequences: Training sequences per epoch.
        scored: Evaluation rows.
    """
    trained = train.passes * sequences
    if train.max_steps is not None:
        trained = min(trained, train.max_steps * train.batch_size * train.accumulation)
    return max(FEWEST_ROWS, int(settings.time * (3 * trained + scored)))


Baseline = Callable[[Given, Sequence[Example]], Answers]
