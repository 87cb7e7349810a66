"""Recommend a method by fixed rules over the measurements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fulltune.metrics import wording
from fulltune.metrics.base import Metric
from fulltune.metrics.seeds import LEAST_SEEDS
from fulltune.records.methods import MethodResult, SystemResult

#: Relative difference of a cost below which it is no reason to prefer a method.
_ALIKE = 0.05


@dataclass(frozen=True)
class Choice:
    """A method (None if nothing can be recommended), the recommendation in words, and its caveats."""

    method: str | None
    headline: str
    notes: tuple[str, ...]


def recommend(
    methods: Sequence[MethodResult], baselines: Sequence[SystemResult], reference: str, metric: Metric
) -> Choice:
    """Recommend the best method that certainly differs from the reference, else the cheapest that does not.

    "Does not certainly differ" is not "equal": the sentence has the interval, so that the reader sees how much better
    the more expensive method may still be.
    """
    measured = [result for result in methods if result.status == "measured"]
    notes = (*_edges(measured), *_kept(measured), *_warnings(measured), *_several(measured))
    own = next((result for result in measured if result.method == reference), None)
    if own is None or own.score is None:
        return Choice(
            None, f"Nothing can be recommended: {reference}, which others are compared with, has no score.", notes
        )
    sign = 1 if metric.direction == "higher" else -1
    others = sorted(
        (result for result in measured if result.against and result.score),
        key=lambda result: sign * result.score.value if result.score else 0.0,
        reverse=True,
    )
    chosen, headline = _chosen(own, others, metric)
    return Choice(chosen.method, f"{headline}{_against_baselines(chosen, baselines, metric)}", notes)


def _chosen(own: MethodResult, others: Sequence[MethodResult], metric: Metric) -> tuple[MethodResult, str]:
    if not others:
        value = own.score.value if own.score else math.nan
        return own, f"Only {own.method} was measured: {wording.label(metric)} {wording.figure(value)}."
    better = [result for result in others if _verdict(result) == "improved"]
    if better:
        best = better[0]
        return best, f"{best.method} is better than {own.method} by {_gain(best, metric)}{_costs(best, own)}."
    alike = [result for result in others if _verdict(result) not in ("improved", "worse")]
    if not alike:
        rival = others[0]
        gain = _gain(rival, metric, -1)
        return own, f"{own.method} is better than {rival.method}, the next best, by {gain}{_costs(own, rival)}."
    cheapest = min([own, *filter(_learnt, alike)], key=lambda result: result.memory_bytes)
    if cheapest is own or cheapest.memory_bytes > (1 - _ALIKE) * own.memory_bytes:
        rival = alike[0]
        why = "saves no memory here" if _learnt(rival) else "never beat its base"
        return own, f"{_undetected(own, rival, rival, metric)}. {rival.method} {why}: take {own.method}."
    undetected = _undetected(cheapest, own, cheapest, metric)
    return cheapest, f"{undetected}{_costs(cheapest, own)}. {_risk(cheapest, own, metric)}"


def _gain(result: MethodResult, metric: Metric, sign: int = 1) -> str:
    """Format how much better a method is than the reference, or with ``sign`` -1 the reference than the method."""
    return wording.gain(result.against, metric, sign) if result.against else "an unknown amount"


def _undetected(one: MethodResult, other: MethodResult, compared: MethodResult, metric: Metric) -> str:
    """Return that two methods cannot be told apart; a difference between few models is described, not claimed."""
    difference = f": {wording.signed(compared.against, metric)}" if compared.against else ""
    if _verdict(compared) == "too few seeds":
        return f"Too few seeds to claim a difference between {one.method} and {other.method}{difference}"
    return f"No difference between {one.method} and {other.method} was detected{difference}"


def _learnt(result: MethodResult) -> bool:
    """Return whether training beat the base in some run: learning nothing is cheap for the wrong reason."""
    return not result.runs or not all(run.base_kept for run in result.runs)


def _risk(cheap: MethodResult, own: MethodResult, metric: Metric) -> str:
    """Return how much better the more expensive method may be, by the interval."""
    most = wording.oriented(cheap.against, metric, -1)[2] if cheap.against else math.nan
    if not most > 0 or math.isinf(most):
        return f"Take {cheap.method}."
    return (
        f"Take {cheap.method}, unless up to {wording.amount(most, metric)} that {own.method} may be better by "
        "are worth its cost; more evaluation rows and seeds narrow the interval."
    )


def _costs(result: MethodResult, than: MethodResult) -> str:
    """Format costs: `` at 3.4× the memory and 1.2× the time``."""
    parts = [
        f"{ratio:.2g}× the {name}"
        for name, ratio in (
            ("memory", _ratio(result.memory_bytes, than.memory_bytes)),
            ("time", _ratio(result.seconds, than.seconds)),
        )
        if math.isfinite(ratio)
    ]
    return f" at {wording.listed(parts)}" if parts else ""


def _ratio(a: float, b: float) -> float:
    return a / b if a and b else math.nan


def _against_baselines(chosen: MethodResult, baselines: Sequence[SystemResult], metric: Metric) -> str:
    """Return a sentence if a system without training scores higher than the recommended method."""
    if chosen.score is None:
        return ""
    sign = 1 if metric.direction == "higher" else -1
    ahead = [one for one in baselines if sign * one.score.value > sign * chosen.score.value]
    if not ahead:
        return ""
    best = max(ahead, key=lambda one: sign * one.score.value)
    name = wording.system(best.system)
    return f" But {name}, which trains nothing here, scores higher: {wording.figure(best.score.value)}."


def _edges(measured: Sequence[MethodResult]) -> list[str]:
    return [
        f"{result.method}: the best rate, {result.rate:.3g}, is at the edge of those tried; a better may lie outside."
        for result in measured
        if result.at_edge
    ]


def _kept(measured: Sequence[MethodResult]) -> list[str]:
    lines = []
    for result in measured:
        count = sum(run.base_kept for run in result.runs)
        if count:
            lines.append(f"{result.method}: no step of training beat the base in {count} of {len(result.runs)} runs.")
    return lines


def _warnings(measured: Sequence[MethodResult]) -> list[str]:
    """Return the warnings of the runs, each once."""
    lines = {f"{result.method}: {text}": None for result in measured for run in result.runs for text in run.warnings}
    return list(lines)


def _several(measured: Sequence[MethodResult]) -> list[str]:
    compared = sum(result.against is not None for result in measured)
    lines = []
    if compared > 1:
        lines.append(f"{compared} methods are compared with one: verdicts are adjusted (Holm), intervals are not.")
    fewest = min((len(result.runs) for result in measured), default=LEAST_SEEDS)
    if fewest < LEAST_SEEDS:
        covered = "rows alone" if fewest == 1 else "rows and seeds"
        lines.append(
            f"Descriptive: with fewer than {LEAST_SEEDS} seeds per method (seeds: {LEAST_SEEDS}) no difference is "
            f"claimed. Intervals cover {covered}, and other seeds may reverse a difference."
        )
    return lines


def _verdict(result: MethodResult) -> str:
    return result.against.verdict if result.against else ""
