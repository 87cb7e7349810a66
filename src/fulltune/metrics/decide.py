"""Decide the outcome of a run from its comparisons with the baselines (``docs/decisions/0005``)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from fulltune.metrics import wording
from fulltune.metrics.base import Metric
from fulltune.metrics.power import least_rows
from fulltune.records.run import Comparison, Outcome, Score, Verdict

_TUNED = "tuned"


class Decision(NamedTuple):
    """Outcome of a run, the reasons for anything but ``accepted``, and a headline of one sentence."""

    outcome: Outcome
    reasons: tuple[str, ...]
    headline: str


def decide(
    comparison: Mapping[str, Comparison],
    scores: Mapping[str, Mapping[str, Score]],
    metric: Metric,
    confidence: float = 0.95,
) -> Decision:
    """Decide the outcome of a run by its scores, and describe it in one sentence.

    The first rule that applies decides:

    1. The tuned model has no finite score: ``rejected``.
    2. There are fewer rows (or groups) than any test needs (:func:`~fulltune.metrics.power.least_rows`): ``undecided``.
    3. A baseline is better by the paired test, adjusted for the number of baselines (Holm 1979): ``rejected``.
    4. The tuned model knows nothing, e.g. no answer is right (:attr:`Metric.worthless`): ``rejected``.
    5. It is better than every baseline, each by a test at the full level, and its answers depend on the input (the
       interval of the MCC of a classifier is above 0, which a guess cannot reach): ``accepted``. No adjustment is
       needed, because all tests have to succeed: an intersection-union test (Berger 1982, "Multiparameter hypothesis
       testing and acceptance sampling").
    6. Otherwise it is ``undecided``: another sample of rows might show the opposite, or the difference is too small to
       count.

    Args:
        comparison: Tuned model against each baseline on the deciding metric, keyed ``tuned vs NAME`` or ``NAME``.
        scores: ``scores[system][metric]`` of the tuned model and the baselines.
        metric: The deciding metric.
        confidence: Confidence level of the comparisons.
    """
    against = {key.removeprefix(f"{_TUNED} vs "): value for key, value in comparison.items()}
    tuned = scores[_TUNED]
    baselines = {name: scores[name][metric.name] for name in against}
    case = _Case(metric, tuned[metric.name], baselines, against, tuned.get("mcc"), confidence)
    if not math.isfinite(case.tuned.value):
        reason = f"the tuned model's {wording.label(metric)} is not a finite number (n = {case.tuned.n})"
        return Decision("rejected", (reason,), f"No verdict is possible for this run: {reason}.")
    few_groups = any(0 < one.groups < least_rows(confidence) for one in against.values())
    if case.tuned.n < least_rows(confidence) or few_groups:
        return Decision("undecided", (case.few(),), f"{case.few()}{case.seen()}.")
    if winners := [name for name in case.ranked if case.is_certain(name, "worse")]:
        reasons = (
            f"worse than {wording.system(name)} by {wording.gain(against[name], metric, -1)}" for name in winners
        )
        return Decision("rejected", tuple(reasons), case.beaten_by(winners[0]))
    if metric.knows_nothing(case.tuned.value):
        return Decision("rejected", (case.worthless(),), f"{case.worthless()}.")
    if doubts := case.doubts():
        return Decision("undecided", doubts, case.not_told())
    return Decision("accepted", (), case.improved())


@dataclass(frozen=True)
class _Case:
    """Data for the sentences about a run; ``baselines`` and ``against`` are keyed by baseline."""

    metric: Metric
    tuned: Score
    baselines: Mapping[str, Score]
    against: Mapping[str, Comparison]
    mcc: Score | None
    confidence: float

    @property
    def ranked(self) -> list[str]:
        """Names of the baselines with a score, best first."""
        scored = [name for name, score in self.baselines.items() if not math.isnan(score.value)]
        return sorted(scored, key=lambda name: self.baselines[name].value, reverse=self.metric.direction == "higher")

    def is_certain(self, name: str, verdict: Verdict) -> bool:
        """Return True if a verdict on one of several baselines holds after the adjustment for their number."""
        found = self.against[name]
        return found.verdict == verdict and not found.p_holm > 1 - self.confidence

    @property
    def _label(self) -> str:
        return wording.label(self.metric)

    @property
    def _n(self) -> str:
        """The number of rows, and of their groups, e.g. ``n = 510 in 34 groups``."""
        groups = max((found.groups for found in self.against.values()), default=0)
        return f"n = {self.tuned.n}" + (f" in {groups} groups" if groups else "")

    def doubts(self) -> tuple[str, ...]:
        """Return what stands against accepting a model that no baseline beats; empty if nothing does."""
        if not self.ranked:
            return ("there is no baseline to compare with",)
        alike = (name for name in self.ranked if self.against[name].verdict != "improved")
        lines = [f"{self._doubt(name)}: {self._difference(name)}" for name in alike]
        if self.mcc is not None and not self.mcc.low > 0:
            low, high = wording.figure(self.mcc.low), wording.figure(self.mcc.high)
            bounds = "no interval" if math.isnan(self.mcc.low) else f"{low} to {high}"
            lines.append(f"cannot be told from guessing: MCC {wording.figure(self.mcc.value)} ({bounds})")
        return tuple(lines)

    def few(self) -> str:
        """Return that there are too few rows, and how many are needed."""
        best = self.against[self.ranked[0]] if self.ranked else None
        return wording.too_few(best or _unknown(self.metric, self.tuned.n), self.confidence)

    def seen(self) -> str:
        """Return the scores of too few rows."""
        if not self.ranked:
            return f": {self._label} {wording.figure(self.tuned.value)}"
        return f": {self._label} {self._change(self.ranked[0])} against {wording.system(self.ranked[0])}"

    def worthless(self) -> str:
        """Return that the tuned model knows nothing."""
        value = wording.figure(self.tuned.value)
        return f"The tuned model is no better than guessing: {self._label} {value}, {self._n}"

    def beaten_by(self, name: str) -> str:
        winner = wording.system(name)
        return (
            f"{winner[:1].upper()}{winner[1:]} beats the tuned model: {self._label} "
            f"{' against '.join(wording.figures(self.baselines[name].value, self.tuned.value))}, "
            f"better by {wording.gain(self.against[name], self.metric, -1)}, {self._n}."
        )

    def improved(self) -> str:
        best, *_ = self.ranked
        gain = wording.gain(self.against[best], self.metric)
        change = f"{wording.system(best)} ({self._change(best)})"
        return f"Tuning improved {self._label} by {gain} over the best baseline, {change}, {self._n}."

    def not_told(self) -> str:
        """Return the sentence of a run whose rows do not show that tuning helped."""
        if not self.ranked:
            value = wording.figure(self.tuned.value)
            return f"The tuned model has no baseline to compare with: {self._label} {value}, {self._n}."
        alike = next((name for name in self.ranked if self.against[name].verdict != "improved"), None)
        if alike is None:
            return f"The tuned model {self.doubts()[-1]}, {self._n}."
        change = f"{self._label} {self._change(alike)}, {self._difference(alike)}"
        return f"The tuned model {self._doubt(alike)}: {change}{self._rest()}."

    def _doubt(self, name: str) -> str:
        """Return why the comparison with a baseline does not support the tuned model."""
        found, baseline = self.against[name], wording.system(name)
        if found.verdict == "worse":
            return (
                f"is worse than {baseline} by a test of its own, but not if adjusted for {len(self.against)} baselines "
                f"(Holm, p = {found.p_holm:.2g})"
            )
        if not found.is_certain:
            return f"cannot be told from {baseline}"
        ahead = (found.delta > 0) == (self.metric.direction == "higher")
        side = "better" if ahead else "worse"
        return f"is {side} than {baseline} by {wording.counting(found, self.metric)}"

    def _rest(self) -> str:
        beaten = [wording.system(name) for name in self.ranked if self.is_certain(name, "improved")]
        adjusted = " (adjusted for several comparisons, Holm)" if len(self.against) > 1 else ""
        return f"; better than {wording.listed(beaten)}{adjusted}" if beaten else ""

    def _change(self, name: str) -> str:
        return wording.change(self.baselines[name].value, self.tuned.value)

    def _difference(self, name: str) -> str:
        return f"{wording.signed(self.against[name], self.metric)}, {self._n}"


def _unknown(metric: Metric, n: int) -> Comparison:
    """Return the comparison with a baseline that has no score."""
    nan = math.nan
    return Comparison(metric=metric.name, delta=nan, low=nan, high=nan, p=nan, verdict="too few rows", n=n)
