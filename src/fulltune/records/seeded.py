"""Define the result of a run with several seeds."""

from __future__ import annotations

from typing import Literal

from fulltune.records.base import Model
from fulltune.records.run import Comparison, Outcome, Score


class SeedOutcome(Model):
    """One of the runs: its seed, id, score and own outcome."""

    seed: int
    run_id: str
    value: float
    outcome: Outcome


class SeededRuns(Model):
    """Several trainings of one config that differ in the seed alone, judged together.

    Attributes:
        task, model: As in the config.
        metric, direction: The deciding metric.
        confidence: Confidence level of the intervals.
        runs: The runs, in the order of their seeds.
        scores: The deciding metric by system; that of ``tuned`` is the mean over the seeds, and its interval covers
            rows and seeds.
        spread: Standard deviation of the score between seeds; NaN with one seed.
        comparison: Mean of the tuned models against each baseline, keyed ``tuned vs NAME``.
        outcome: Outcome of all runs together (``docs/decisions/0005``).
        reasons: Reasons for anything but ``accepted``.
        headline: The result in a few sentences.
        folder: Folder with ``seeds.json``.
    """

    task: str
    model: str
    metric: str
    direction: Literal["higher", "lower"]
    confidence: float
    runs: tuple[SeedOutcome, ...]
    scores: dict[str, Score]
    spread: float
    comparison: dict[str, Comparison]
    outcome: Outcome
    reasons: tuple[str, ...]
    headline: str
    folder: str
