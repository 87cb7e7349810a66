"""Define the results of ``fulltune verdict``."""

from __future__ import annotations

from typing import Literal

from fulltune.records.base import Model
from fulltune.records.run import Verdict

#: Requirements on a verdict for exit code 0.
Requirement = Literal["improved", "not-worse"]


class Measured(Model):
    """The score of one system, or a difference, with its interval."""

    value: float
    interval: tuple[float, float]
    name: str = ""


class NotWorse(Model):
    """Test that B is not worse than A by a margin or more.

    Attributes:
        margin: The margin in the unit of the metric.
        p: One-sided p-value of the hypothesis that it is worse by at least the margin, adjusted for the number of
            systems (Holm 1979).
        verdict: ``not worse`` if p is at most half of ``1 - confidence``: the interval lies above minus the margin.
    """

    margin: float
    p: float
    verdict: Literal["not worse", "cannot tell", "too few rows"]


class PairVerdict(Model):
    """Verdict on two systems, A and B, on the same rows; the difference is B minus A.

    Attributes:
        metric, label, direction: The metric, its name in texts, and which direction is better.
        n, groups: Numbers of rows and of groups; 0 groups if rows are independent.
        confidence: Confidence level of the intervals.
        a, b: Scores of both.
        difference: B minus A.
        p, test: Two-sided p-value, and the test.
        p_holm: p-value adjusted for the number of comparisons; equal to p if there is one.
        smallest_detectable: Smallest difference that as many rows detect in four of five cases.
        min_effect: Smallest difference that counts, in the unit of the metric.
        verdict: On B: ``improved`` means better than A.
        not_worse: The test against a margin; None if none was asked for.
        require, passed: The requirement, and True if it holds; empty and True without a requirement.
        headline: The verdict in one sentence.
        notes: Further facts for readers.
    """

    metric: str
    label: str
    direction: Literal["higher", "lower"]
    n: int
    groups: int
    confidence: float
    a: Measured
    b: Measured
    difference: Measured
    p: float
    test: str
    p_holm: float
    smallest_detectable: float
    min_effect: float
    verdict: Verdict
    not_worse: NotWorse | None
    require: Requirement | Literal[""]
    passed: bool
    headline: str
    notes: tuple[str, ...]


class ManyVerdicts(Model):
    """Verdicts on several systems against one, the reference; p-values are adjusted for their number (Holm 1979)."""

    metric: str
    reference: str
    require: Requirement | Literal[""]
    passed: bool
    comparisons: tuple[PairVerdict, ...]
