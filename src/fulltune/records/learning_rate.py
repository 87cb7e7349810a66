"""Define the record of a search for a learning rate."""

from __future__ import annotations

from fulltune.records.run import Model


class SweptRate(Model):
    """A point of the range test: the loss after a step at this rate, and its exponential mean."""

    rate: float
    loss: float
    smoothed: float


class Candidate(Model):
    """A short training at one rate: the loss on held-out rows after it; NaN if the training failed."""

    rate: float
    loss: float


class LearningRate(Model):
    """The result of :func:`fulltune.find_learning_rate`.

    Attributes:
        task, model: As in the config.
        rate: The recommended rate; None without a clear result.
        reason: The result in a sentence.
        asked: The rate of the config.
        start: Loss on held-out rows before training.
        candidates: Short trainings, by ascending rate.
        sweep: The range test.
        held_out: Number of sequences that candidates are compared on.
        steps: Optimizer steps of a short training.
        weights: SHA-256 of the weights, the same before and after.
        seconds: Wall time.
        plot: Path of an SVG file.
    """

    task: str
    model: str
    rate: float | None
    reason: str
    asked: float
    start: float
    candidates: tuple[Candidate, ...]
    sweep: tuple[SweptRate, ...]
    held_out: int
    steps: int
    weights: str
    seconds: float
    plot: str

    @property
    def line(self) -> str:
        """The line for the config; empty without a result."""
        return "" if self.rate is None else f"train: {{learning_rate: {self.rate:.1e}}}"
