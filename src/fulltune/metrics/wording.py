"""Word scores and differences in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fulltune.metrics.base import Metric
from fulltune.metrics.power import least_rows, rows_needed
from fulltune.records.run import Comparison

#: Numbers from here on are written with an exponent.
HUGE = 1e12

_SYSTEMS = {
    "majority": "the majority class",
    "tfidf": "TF-IDF",
    "linear_probe": "the linear probe",
    "copy": "the copied input",
    "lead": "the first sentences",
    "nearest": "the nearest row of train",
    "nearest_values": "the nearest row of train with its values swapped",
    "ngram": "the n-gram model",
    "tuned": "the tuned model",
}


#: Names of metrics as headings.
_METRICS = {
    "macro_f1": "Macro-F1",
    "micro_f1": "Micro-F1",
    "mcc": "MCC",
    "ece": "Calibration error",
    "linear_cka": "Linear CKA",
    "bleu": "BLEU",
    "chrf": "chrF",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougel": "ROUGE-L",
    "rougelsum": "ROUGE-Lsum",
    "continuation_bleu": "BLEU of continuations",
    "continuation_rougel": "ROUGE-L of continuations",
    "distinct_2": "Distinct bigrams",
    "repetition_4": "Repeated 4-grams",
    "executes": "Executes",
    "sql_exact_match": "Exact match",
    "empty_results": "Correct with an empty result",
    "capped": "Cut off by the limit",
}


#: What the scores of a metric mean, where its name does not say it.
_MEANINGS = {
    "bits_per_byte": "Bits per byte: how many bits, on average, the model needs to predict a byte of the evaluation "
    "texts. 8 is a blind guess; with 0.1 less, each byte gets 7% more probability."
}


def meaning(metric: str) -> str:
    """Return what the scores of a metric mean in a sentence; empty if its name says it."""
    return _MEANINGS.get(metric, "")


def system(name: str) -> str:
    """Return a system's name in a sentence, e.g. ``zero-shot``, ``TF-IDF``, ``the majority class``."""
    return _SYSTEMS.get(name, name.replace("_", "-"))


def label(metric: Metric) -> str:
    """Return a metric's name in a sentence."""
    return metric.label or metric.name


def metric_label(name: str) -> str:
    """Return the heading for the name of a metric, e.g. ``ROUGE-Lsum`` for ``rouge_lsum``."""
    known = _METRICS.get(name.lower()) or _METRICS.get(name.lower().replace("_", ""))
    return known or name[:1].upper() + name[1:].replace("_", " ")


def in_sentence(heading: str) -> str:
    """Return a heading as it is written in a sentence, e.g. ``macro-F1`` for ``Macro-F1``, but ``ROUGE-Lsum``."""
    return heading[:1].lower() + heading[1:] if heading[1:2].islower() else heading


def gain(comparison: Comparison, metric: Metric, sign: int = 1) -> str:
    """Return e.g. ``12.3 points (10.1 to 14.4)``, the gain in the metric's direction (the loss, with ``sign`` -1)."""
    delta, low, high = oriented(comparison, metric, sign)
    return f"{amount(delta, metric)} ({number(low, metric)} to {number(high, metric)})"


def signed(comparison: Comparison, metric: Metric) -> str:
    """Return e.g. ``+0.4 points (−1.2 to +2.0)``, in the metric's own unit and sign."""
    delta, low, high = (number(value, metric, "+") for value in (comparison.delta, comparison.low, comparison.high))
    return f"{delta}{' points' if metric.percent else ''} ({low} to {high})"


def oriented(comparison: Comparison, metric: Metric, sign: int = 1) -> tuple[float, float, float]:
    """Return difference and interval, above 0 if the first system is better (the second, with ``sign`` -1)."""
    if sign * (1 if metric.direction == "higher" else -1) > 0:
        return comparison.delta, comparison.low, comparison.high
    return -comparison.delta, -comparison.high, -comparison.low


def amount(value: float, metric: Metric) -> str:
    """Return a difference with its unit, e.g. ``2.1 points``."""
    return f"{number(value, metric)}{' points' if metric.percent else ''}"


def number(value: float, metric: Metric, sign: str = "") -> str:
    """Return a difference without its unit; one that is not 0 is never shown as 0."""
    if HUGE <= abs(value) < math.inf:
        return f"{value:{sign}.3g}".replace("-", "−")
    if metric.percent:
        text = f"{100 * value:{sign}.1f}"
    else:
        text = f"{value:{sign},.3f}" if abs(value) < 100 else f"{value:{sign},.0f}"
    if value and not text.strip("+-0."):
        text = f"{100 * value if metric.percent else value:{sign}.1g}"
    return text.replace("-", "−")


def figures(*values: float) -> list[str]:
    """Return scores with as many digits as it takes to see that they differ, at most six decimals."""
    for digits in range(3, 7):
        shown = [figure(value, digits) for value in values]
        if len(set(shown)) == len(set(values)):
            break
    return shown


def change(before: float, after: float) -> str:
    """Return e.g. ``0.780 → 0.903``."""
    return " → ".join(figures(before, after))


def verdict(comparison: Comparison) -> str:
    """Return the verdict of a comparison; a certain difference that does not count is named as such."""
    small = comparison.verdict == "no detectable change" and comparison.is_certain
    return "below min_effect" if small else comparison.verdict


def counting(comparison: Comparison, metric: Metric) -> str:
    """Return e.g. ``less than 0.5 points, the smallest that counts (evaluation.min_effect)``."""
    return f"less than {amount(comparison.min_effect, metric)}, the smallest that counts (evaluation.min_effect)"


def figure(value: float, digits: int = 3) -> str:
    """Return a score."""
    if HUGE <= abs(value) < math.inf:
        return f"{value:.4g}".replace("-", "−")
    return (f"{value:.{digits}f}" if abs(value) < 100 else f"{value:,.{digits - 3}f}").replace("-", "−")


def listed(names: Sequence[str]) -> str:
    """Return e.g. ``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def rows(count: int) -> str:
    """Return e.g. ``1 row`` or ``1,200 rows``."""
    return f"{count:,} row" + ("s" if count != 1 else "")


def headline(
    a: str, b: str, before: float, after: float, metric: Metric, comparison: Comparison, confidence: float
) -> str:
    """Return the result of a comparison in one sentence.

    Args:
        a, b: Names of both systems; the comparison is ``b`` minus ``a``.
        before, after: Their scores.
        metric: The metric.
        comparison: The comparison.
        confidence: Its confidence level.
    """
    name, values, n = label(metric), change(before, after), f"n = {comparison.n}"
    if comparison.groups:
        n += f" in {comparison.groups} groups"
    if comparison.verdict == "too few rows":
        return f"{too_few(comparison, confidence)}: {name} {values} from {a} to {b}."
    if comparison.verdict == "no detectable change":
        difference = signed(comparison, metric)
        if not comparison.is_certain:
            return f"No detectable change in {name} from {a} to {b} ({values}): {difference}, {n}."
        if abs(comparison.delta) < comparison.min_effect:
            return f"{name} changed from {a} to {b} by {counting(comparison, metric)}: {values}, {difference}, {n}."
        adjusted = f"adjusted for several comparisons (Holm, p = {comparison.p_holm:.2g})"
        return f"No detectable change in {name} from {a} to {b} ({values}), {adjusted}: {difference}, {n}."
    verb, sign = ("better", 1) if comparison.verdict == "improved" else ("worse", -1)
    return f"{b} is {verb} than {a} in {name} by {gain(comparison, metric, sign)}, {values}, {n}."


def detectable(comparison: Comparison, metric: Metric, against: str = "") -> str:
    """Return the smallest difference that as many rows detect; empty if it is unknown.

    It depends on how much the answers of both systems differ; ``against`` names the second, if several are compared.
    """
    if not comparison.smallest_detectable > 0 or comparison.verdict == "too few rows":
        return ""
    size, pair = amount(comparison.smallest_detectable, metric), f" from {against}" if against else ""
    return f"With {units(comparison)}, a difference of {size}{pair} is detected in four of five cases."


def units(comparison: Comparison) -> str:
    """Return what was swapped and resampled: ``1,200 rows``, or ``40 groups of rows``."""
    if not comparison.groups:
        return rows(comparison.n)
    return f"{comparison.groups:,} group{'s' if comparison.groups > 1 else ''} of rows"


def too_few(comparison: Comparison, confidence: float) -> str:
    """Return that so few rows (or groups of them) cannot decide, and how many could."""
    least = least_rows(confidence)
    found = f"{units(comparison)} cannot decide (no test at {confidence:.0%} can with fewer than {least})"
    if comparison.groups:
        return found
    needed = rows_needed(comparison, confidence) or 0
    return found + (f"; about {needed:,} would show a difference of this size" if needed > least else "")


def with_article(noun: str) -> str:
    """Return a noun with its indefinite article."""
    return f"an {noun}" if noun[:1].lower() in "aeiou" else f"a {noun}"
