"""Define the scores of the parts of the evaluation rows: their groups, folders or databases."""

from __future__ import annotations

from fulltune.records.base import Model


class PartScore(Model):
    """The deciding metric on the rows of one part.

    Attributes:
        name: The group, folder or database.
        n: Number of rows that both systems answered.
        tuned, baseline: Values of both systems.
        difference: The first minus the second, in the unit of the metric.
    """

    name: str
    n: int
    tuned: float
    baseline: float
    difference: float


class PartScores(Model):
    """The tuned model against the best baseline, part by part. It describes these rows: nothing is tested.

    Attributes:
        by: The property that the rows of a part share: a column, ``folder`` or ``database``.
        baseline: The system that the tuned model is compared with.
        count: Number of parts with enough rows to have a score.
        behind: Number of these in which the tuned model is worse than the baseline.
        fewest: Fewest rows of such a part.
        small: Number of parts with fewer rows.
        worst: The parts with the smallest gains, the worst first.
    """

    by: str
    baseline: str
    count: int
    behind: int
    fewest: int
    small: int
    worst: tuple[PartScore, ...]
