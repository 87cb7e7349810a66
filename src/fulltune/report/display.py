"""Numbers and names as people read them. NaN stays ``NaN``; it never turns into 0 or a blank."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

#: Systems in the order of the report: from no learning at all to the tuned model.
SYSTEMS = {
    "majority": "Majority class",
    "tfidf": "TF-IDF",
    "zero_shot": "Zero-shot",
    "few_shot": "Few-shot",
    "tuned": "Tuned",
}

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
    "empty_results": "Right by an empty result",
    "capped": "Cut off by the limit",
}

#: Best near 1: shown, never starred.
_NEAR_ONE = ("length_ratio",)


def system_label(name: str) -> str:
    """``zero_shot`` → ``Zero-shot``; an unknown system keeps its own name."""
    return SYSTEMS.get(name, name)


def metric_label(name: str) -> str:
    """``rouge_lsum`` → ``ROUGE-Lsum``, ``bits_per_byte`` → ``Bits per byte``."""
    known = _METRICS.get(name.lower()) or _METRICS.get(name.lower().replace("_", ""))
    return known or name[:1].upper() + name[1:].replace("_", " ")


def better(metric: str, direction: str) -> str:
    """Which way is better, in words with an arrow."""
    if metric in _NEAR_ONE:
        return "near 1 is better"
    return "↑ higher is better" if direction == "higher" else "↓ lower is better"


def is_judged(metric: str) -> bool:
    """Whether a highest or lowest value is the best one."""
    return metric not in _NEAR_ONE


def in_order(systems: Iterable[str]) -> list[str]:
    """The known systems in the report's order, then any others by name."""
    found = set(systems)
    return [name for name in SYSTEMS if name in found] + sorted(found - set(SYSTEMS))


def as_float(value: Any) -> float:
    """A float from what JSON may hold (``"NaN"`` included); NaN for anything that is not a number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def decimals(values: Iterable[float]) -> int:
    """Digits after the point, one choice for a column: three, fewer as its smallest value passes 10, 100 and 1000."""
    sizes = [abs(value) for value in values if math.isfinite(value) and value != 0]
    if not sizes:
        return 3
    return min(3, max(0, 3 - math.floor(math.log10(min(sizes)))))


def number(value: float, digits: int = 3, *, sign: bool = False) -> str:
    """``-0.0214`` → ``−0.021``; ``NaN`` and ``∞`` by name."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:+,.{digits}f}" if sign else f"{value:,.{digits}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def interval(low: float, high: float, digits: int = 3, *, sign: bool = False) -> str:
    """``[0.861, 0.894]``, or ``no interval`` when neither end is a number."""
    if math.isnan(low) and math.isnan(high):
        return "no interval"
    return f"[{number(low, digits, sign=sign)}, {number(high, digits, sign=sign)}]"


def delta(value: float, digits: int = 3) -> str:
    """A signed difference; one that rounds to nothing but is not nothing shows two significant digits."""
    if math.isfinite(value) and value != 0 and round(value, digits) == 0:
        return f"{value:+.1e}".replace("e-0", "e-").replace("-", "−")
    return number(value, digits, sign=True)


def p_value(value: float) -> str:
    """``p = 0.042`` or ``p < 0.001``."""
    return "p < 0.001" if value < 0.001 else f"p = {number(value)}"


def compact(value: float) -> str:
    """Three significant digits for an axis or a rate: ``3e-5``, ``0.021``, ``1,200``."""
    if not math.isfinite(value) or value == 0:
        return number(value, 0)
    if abs(value) < 0.001 or abs(value) >= 1e7:
        return f"{value:.2e}".replace(".00e", "e").replace("0e", "e").replace("e-0", "e-").replace("e+0", "e")
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}".replace("-", "−")


def count(value: float) -> str:
    return number(value, 0)


def duration(seconds: float) -> str:
    """``75`` → ``1 min 15 s``."""
    if not math.isfinite(seconds):
        return number(seconds)
    if seconds < 10:
        return f"{seconds:.2g} s" if seconds < 1 else f"{seconds:.1f} s"
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def size(bytes_: float) -> str:
    """``5_700_000_000`` → ``5.7 GB`` (powers of 1000)."""
    value, units = float(bytes_), ["bytes", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.3g} {units[0]}"


def share(part: float) -> str:
    """``0.9975`` → ``99.8%``; only a true whole reads ``100%``."""
    if not math.isfinite(part):
        return number(part)
    if part in (0.0, 1.0):
        return f"{part:.0%}"
    return f"{min(max(part, 0.001), 0.999):.1%}" if 0 < part < 1 else f"{part:.1%}"
