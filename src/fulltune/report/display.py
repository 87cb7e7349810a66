"""Format numbers and names for the report and the terminal. NaN stays ``NaN``; it never becomes 0 or blank."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from fulltune.data.values import is_padded
from fulltune.metrics.wording import HUGE

if TYPE_CHECKING:
    from fulltune.records.run import Record

#: Systems in the order of the report: from no training to the tuned model.
SYSTEMS = {
    "majority": "Majority class",
    "tfidf": "TF-IDF",
    "linear_probe": "Linear probe",
    "copy": "Copied input",
    "lead": "First sentences",
    "nearest": "Nearest row",
    "nearest_values": "Nearest row with new values",
    "ngram": "N-gram model",
    "zero_shot": "Zero-shot",
    "few_shot": "Few-shot",
    "tuned": "Tuned",
}

#: Metrics whose best value is 1: shown without a mark for the best.
_NEAR_ONE = ("length_ratio",)


def visible(label: str) -> str:
    """Return the name of a class, in quotes if it begins or ends with a blank."""
    return repr(label) if is_padded(label) else label


def system_label(name: str) -> str:
    """Return e.g. ``Zero-shot`` for ``zero_shot``; an unknown system keeps its name."""
    return SYSTEMS.get(name, name)


def better(metric: str, direction: str) -> str:
    """Return the direction in which a metric improves, in words with an arrow."""
    if metric in _NEAR_ONE:
        return "near 1 is better"
    return "↑ higher is better" if direction == "higher" else "↓ lower is better"


def is_judged(metric: str) -> bool:
    """Return True if the highest or lowest value of a metric is the best one."""
    return metric not in _NEAR_ONE


def is_rival(system: str, metric: str) -> bool:
    """Return True if a system may have the best value: a constant answer is calibrated without knowing anything."""
    return (system, metric) != ("majority", "ece")


def in_order(systems: Iterable[str]) -> list[str]:
    """Return the known systems in the order of the report, then the others by name."""
    names = set(systems)
    return [name for name in SYSTEMS if name in names] + sorted(names - set(SYSTEMS))


#: An amount with its interval in a sentence, e.g. ``5.7 points (1.0 to 10.7)``.
_AMOUNT = re.compile(r"[+−]?[\d.,]+(?: points)? \([^() ]+ to [^() ]+\)")


def unsaid(record: Record) -> list[str]:
    """Return the reasons that the headline does not state itself, as they are or by their amount and interval."""

    def is_said(reason: str) -> bool:
        amount = _AMOUNT.search(reason)
        return reason in record.headline or (amount is not None and amount[0] in record.headline)

    return [reason for reason in record.reasons if not is_said(reason)]


def is_beaten_by(record: Record, system: str) -> bool:
    """Return True if a baseline is better by its paired test, adjusted for the number of baselines."""
    comparison = record.comparison.get(f"tuned vs {system}")
    return comparison is not None and comparison.verdict == "worse" and not comparison.p_holm > 1 - record.confidence


def as_float(value: Any) -> float:
    """Convert a JSON value (``"NaN"`` included) to a float; NaN for anything that is not a number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def decimals(values: Iterable[float]) -> int:
    """Return the number of decimals for a column: three, fewer if its smallest value exceeds 10, 100 or 1000.

    There are up to six if values that differ would otherwise look equal.
    """
    finite = {value for value in values if math.isfinite(value)}
    sizes = [abs(value) for value in finite if value != 0]
    digits = min(3, max(0, 3 - math.floor(math.log10(min(sizes))))) if sizes else 3
    while digits < 6 and len({round(value, digits) for value in finite}) < len(finite):
        digits += 1
    return digits


def record_decimals(record: Record, metric: str) -> int:
    """Return the number of decimals of a metric in a record: the same in each of its tables, charts and sentences."""
    tables = (record.scores, record.scores_all_rows, record.scores_without_leaks)
    return max(decimals(row[metric].value for row in table.values() if metric in row) for table in tables)


def number(value: float, digits: int = 3, *, sign: bool = False) -> str:
    """Format ``-0.0214`` as ``−0.021``; ``NaN`` and ``∞`` by name."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if abs(value) >= HUGE:
        return f"{value:+.4g}".replace("-", "−").lstrip("" if sign else "+")
    text = f"{value:+,.{digits}f}" if sign else f"{value:,.{digits}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def interval(low: float, high: float, digits: int = 3, *, sign: bool = False) -> str:
    """Format ``[0.861, 0.894]``; ``no interval`` if both ends are NaN."""
    if math.isnan(low) and math.isnan(high):
        return "no interval"
    return f"[{number(low, digits, sign=sign)}, {number(high, digits, sign=sign)}]"


def difference(value: float, digits: int = 3) -> str:
    """Format a signed difference; a nonzero one that rounds to zero keeps two significant digits."""
    if math.isfinite(value) and value != 0 and round(value, digits) == 0:
        return f"{value:+.1e}".replace("e-0", "e-").replace("-", "−")
    return number(value, digits, sign=True)


def p_value(value: float) -> str:
    """Format ``p = 0.042`` or ``p < 0.001``."""
    return "p < 0.001" if value < 0.001 else f"p = {number(value)}"


def compact(value: float) -> str:
    """Format three significant digits for an axis or a rate: ``3e-5``, ``0.021``, ``1,200``."""
    if not math.isfinite(value) or value == 0:
        return number(value, 0)
    if abs(value) < 0.001 or abs(value) >= 1e7:
        return f"{value:.2e}".replace(".00e", "e").replace("0e", "e").replace("e-0", "e-").replace("e+0", "e")
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}".replace("-", "−")


def count(value: float) -> str:
    """Format a number without decimals."""
    return number(value, 0)


def duration(seconds: float) -> str:
    """Format seconds: ``4.2 s``, ``1 min 15 s``, ``2 h 5 min``."""
    if not math.isfinite(seconds):
        return number(seconds)
    if seconds < 10:
        return f"{seconds:.2g} s" if seconds < 1 else f"{seconds:.1f} s"
    rounded = round(seconds)
    hours = rounded // 3600
    minutes = rounded // 60 % 60
    rest = rounded % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def moment(created: str) -> str:
    """Format ``2026-01-31 12:30 UTC``; a text that is no time is returned as it is."""
    try:
        time = datetime.fromisoformat(created.replace("Z", "+00:00"))
    except ValueError:
        return created
    return f"{time:%Y-%m-%d %H:%M} {time.tzname() or ''}".strip()


def size(bytes_: float) -> str:
    """Format bytes: ``5.7 GB`` for ``5_700_000_000`` (powers of 1000)."""
    value = float(bytes_)
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.3g} {units[0]}"


def percentage(fraction: float) -> str:
    """Format ``0.9975`` as ``99.8%``; only exactly 0 and 1 are shown as ``0%`` and ``100%``."""
    if not math.isfinite(fraction):
        return number(fraction)
    if fraction in (0.0, 1.0):
        return f"{fraction:.0%}"
    return f"{min(max(fraction, 0.001), 0.999):.1%}" if 0 < fraction < 1 else f"{fraction:.1%}"


def signed_percentage(fraction: float) -> str:
    """Format a relative change: ``+31.4%`` or ``−2.0%``."""
    return f"{fraction:+.1%}".replace("-", "−") if math.isfinite(fraction) else number(fraction)
