"""Show results in a notebook: small HTML without scripts, in the colors of the notebook, light or dark.

:func:`html` is what ``_repr_html_`` of every record returns. Records of higher layers are known by their names, so that
this module loads neither them nor torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from fulltune.metrics import wording
from fulltune.metrics.wording import metric_label
from fulltune.report import display, tables

if TYPE_CHECKING:
    from fulltune.metrics.run_comparison import RunComparison
    from fulltune.records.learning_curve import LearningCurve
    from fulltune.records.learning_rate import LearningRate
    from fulltune.records.methods import MethodComparison
    from fulltune.records.plan import Plan
    from fulltune.records.run import EvaluationRecord, Record
    from fulltune.records.sweep import Sweep

_LINE = "1px solid color-mix(in srgb, currentColor 25%, transparent)"
_BOX = Markup('<div style="font-size: 0.95em; line-height: 1.4; color: inherit; max-width: 60em">{}</div>')
_TABLE = Markup('<table style="border-collapse: collapse; margin: 0.5em 0; background: none">{}{}</table>')
_ROW = Markup('<tr style="background: none; border-bottom: {}">{}</tr>')
_CELL = Markup('<{0} style="text-align: {1}; padding: 0.2em 0.8em 0.2em 0; vertical-align: top">{2}</{0}>')

#: Most lines of a list of sentences; the rest is counted.
_LINES = 8


def html(value: Any) -> str | None:
    """Return a record as HTML; None if there is no view for its class."""
    view = _VIEWS.get(type(value).__name__)
    return None if view is None else str(_BOX.format(Markup("").join(view(value))))


def _headline(text: str, note: str = "") -> Markup:
    small = Markup(' <span style="opacity: 0.75">({})</span>').format(note) if note else ""
    return Markup("<p style='margin: 0.3em 0'><strong>{}</strong>{}</p>").format(text, small)


def _sentences(lines: Iterable[str], lead: str = "") -> Markup:
    """Return one paragraph per line, at most :data:`_LINES`."""
    lines = list(lines)
    more = [f"… and {len(lines) - _LINES} more."] if len(lines) > _LINES else []
    shown = [f"{lead}{line}" for line in lines[:_LINES]] + more
    return Markup("").join(Markup("<p style='margin: 0.2em 0'>{}</p>").format(line) for line in shown)


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> Markup:
    """Return a table whose first column is text; the others are aligned right."""
    head = _row("th", [header[:1].upper() + header[1:] for header in headers]) if any(headers) else Markup("")
    return _TABLE.format(head, Markup("").join(_row("td", row) for row in rows))


def _row(tag: str, cells: Sequence[str]) -> Markup:
    aligned = [_CELL.format(tag, "right" if place else "left", cell) for place, cell in enumerate(cells)]
    return _ROW.format(_LINE, Markup("").join(aligned))


def _pairs(pairs: Mapping[str, str]) -> Markup:
    return _table((), pairs.items())


def _record(record: Record) -> list[Markup]:
    events = [event.message for event in record.guards if event.message not in record.reasons]
    return [
        _headline(record.headline, record.outcome),
        _sentences([record.recommendation.sentence] if record.recommendation else []),
        _sentences(display.unsaid(record)),
        _table(*tables.systems(record)),
        _table(("Retention", "Base", "Tuned", "Loss", "Verdict"), map(_retained, record.retention.items()))
        if record.retention
        else Markup(""),
        _sentences(events, "Guard: "),
        _sentences(record.warnings, "Note: "),
        _link(record),
    ]


def _retained(item: tuple[str, Any]) -> tuple[str, ...]:
    name, ability = item
    digits = display.decimals((ability.base.value, ability.tuned.value))
    values = (display.number(ability.base.value, digits), display.number(ability.tuned.value, digits))
    return (f"{name}, {metric_label(ability.metric)}", *values, display.signed_percentage(ability.change),
            ability.verdict)  # fmt: skip


def _link(record: Record) -> Markup:
    """Return a link to the report, if the record knows its folder."""
    if record._folder is None:
        return Markup("")
    return Markup('<p style="margin: 0.3em 0"><a href="{0}" target="_blank">{0}</a></p>').format(record.report)


def _evaluation(record: EvaluationRecord) -> list[Markup]:
    title = f"{record.model.source}, {display.system_label(record.system)}, {record.data.rows:,} rows"
    notes = _sentences(record.warnings, "Note: ")
    return [_headline(title), _table(*tables.evaluation(record)), notes]


def _plan(plan: Plan) -> list[Markup]:
    pairs = {
        "Rows": ", ".join(f"{count:,} {split}" for split, count in plan.rows.items()),
        "Optimizer steps": f"{plan.total_steps:,} ({plan.steps_per_epoch:,} per epoch, {plan.effective_batch} "
        "sequences each)",
        "Tokens per epoch": f"{plan.tokens:,}",
        "Parameters": f"{plan.parameters:,}",
        "Memory": f"{display.size(plan.peak_bytes)}, measured"
        if plan.peak_bytes
        else f"at least {display.size(plan.memory_bytes)}",
    }
    if plan.total_seconds:
        pairs["Time"] = display.duration(plan.total_seconds)
    pairs["Baselines"] = ", ".join(map(display.system_label, plan.baselines))
    sentences = [*plan.too_long, *plan.warnings, *plan.chosen, *plan.advice]
    return [_headline(f"Plan: {plan.task} on {plan.model}", plan.method), _pairs(pairs), _sentences(sentences)]


def _comparison(compared: RunComparison) -> list[Markup]:
    named = _sentences([f"From A = {compared.a} to B = {compared.b}"])
    return [_headline(compared.headline), named, _table(*tables.comparison(compared))]


def _learning_curve(curve: LearningCurve) -> list[Markup]:
    return [_headline(curve.headline, curve.verdict), _table(*tables.learning_curve(curve))]


def _learning_rate(result: LearningRate) -> list[Markup]:
    title = "No learning rate can be recommended" if result.rate is None else f"Learning rate: {result.rate:.1e}"
    return [_headline(title), _sentences([result.reason]), _table(*tables.learning_rate(result))]


def _sweep(result: Sweep) -> list[Markup]:
    return [_headline(result.headline), _sentences([result.caution]), _table(*tables.sweep(result))]


def _methods(compared: MethodComparison) -> list[Markup]:
    digits = display.decimals(result.score.value for result in compared.methods if result.score)
    rows = []
    for result in compared.methods:
        score = display.number(result.score.value, digits) if result.score else result.reason
        against = result.against
        gain = f"{display.difference(against.delta, digits)}, {wording.verdict(against)}" if against else ""
        rows.append((result.method, score, gain, display.duration(result.seconds)))
    headers = ("Method", metric_label(compared.metric), f"Minus {compared.reference}", "Time")
    return [_headline(compared.headline), _table(headers, rows), _sentences(compared.notes, "Note: ")]


_VIEWS: dict[str, Callable[[Any], list[Markup]]] = {
    "Record": _record,
    "EvaluationRecord": _evaluation,
    "Plan": _plan,
    "RunComparison": _comparison,
    "LearningCurve": _learning_curve,
    "LearningRate": _learning_rate,
    "Sweep": _sweep,
    "MethodComparison": _methods,
}
