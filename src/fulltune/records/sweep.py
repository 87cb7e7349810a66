"""Define the record of a search over keys of a config."""

from __future__ import annotations

import math
from typing import Literal

from fulltune.records.methods import Tried
from fulltune.records.run import Model, Verdict


class Selection(Model):
    """Gain of the search over the original config, in the unit of the objective; above 0 is better.

    ``seen`` is the gain on the rows that chose; ``value`` is the gain on rows that did not, NaN if it cannot be
    computed (the loss is the objective, or the default is not among the complete trials). The interval, the p-value and
    the verdict of the paired test are adjusted for the number of trials.
    """

    seen: float
    value: float
    low: float
    high: float
    p: float = math.nan
    verdict: Verdict = "no detectable change"


class Sweep(Model):
    """The result of :func:`fulltune.sweep`.

    Attributes:
        task, model: As in the config.
        objective, direction: The criterion of the trials.
        rows: Number of validation rows.
        space: Each key and its values, as they were written.
        trials: Trials in the order in which they ended.
        default: Number of the trial with the original config; None if that is outside the space.
        best: Number of the best trial; None if all failed.
        gain: Gain over the default.
        confidence: Level of the interval.
        headline: The result.
        caution: The reliability of the result, in a sentence.
        config: Path of the best config, ready to run; empty without one.
        folder: Folder of the journal.
    """

    task: str
    model: str
    objective: str
    direction: Literal["higher", "lower"]
    rows: int
    space: dict[str, str]
    trials: tuple[Tried, ...]
    default: int | None
    best: int | None
    gain: Selection | None
    confidence: float
    headline: str
    caution: str
    config: str
    folder: str
