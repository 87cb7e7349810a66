"""Show answers before and after training: one question and two answers, or rows that changed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fulltune.metrics.run_comparison import ChangedRows, Row
from fulltune.metrics.wording import metric_label
from fulltune.report.display import number, system_label, visible
from fulltune.runtime.graphemes import clip

if TYPE_CHECKING:
    from fulltune.pipeline.ask import Asked
    from fulltune.records.predictions import Predictions

#: Characters of a text that a terminal shows.
_LONG = 600


def asked(answer: Asked) -> RenderableType:
    """Show one question and both answers, with the details that the task has of each."""
    parts: list[RenderableType] = [Text(answer.input, style="dim")]
    for name, prediction in answer.answers.items():
        parts += [Text(f"\n{name}", style="bold"), Text(_said(prediction.output) or "(nothing)", overflow="fold")]
        parts += [Text(line, style="dim") for line in _details(prediction.values)]
    return Group(*parts)


def changed_rows(changed: ChangedRows) -> RenderableType:
    """Show rows that became worse or better, those that became worse first: with both answers, or with both scores."""
    kinds = ("better", "worse") if changed.counted is None else ("fixed", "broken")
    counted = changed.counted or _moved(changed)
    parts: list[RenderableType] = [Text(_between(changed), overflow="fold")]
    listed = zip(kinds, (changed.fixed, changed.broken), counted, strict=True)
    for kind, rows, count in reversed(list(listed)):
        most = "" if changed.counted or not rows else ", the largest changes first"
        shown = f", {len(rows)} shown" if len(rows) < count else ""
        parts.append(Text(f"\n{count:,} {kind}{most}{shown}", style="bold"))
        parts += [_answers(row) for row in rows] if changed.reads_answers else [_scores(changed, rows)] * bool(rows)
    return Group(*parts)


def _moved(changed: ChangedRows) -> tuple[int, int]:
    return max(changed.moved[0], len(changed.fixed)), max(changed.moved[1], len(changed.broken))


def _answers(row: Row) -> RenderableType:
    """Show one row with both answers, and with both scores if it changed gradually."""
    table = Table(show_header=False, box=None, pad_edge=False)
    values = {"row": row.id, "input": row.input, "right": row.reference, "before": row.before, "after": row.after}
    for name, value in values.items():
        table.add_row(Text(name, style="dim"), Text(_said(value), overflow="fold"))
    if row.scores and not {*row.scores} <= {0.0, 1.0}:
        table.add_row(Text("score", style="dim"), Text(" → ".join(map(number, row.scores))))
    return Group(table, Text(""))


def _scores(changed: ChangedRows, rows: Sequence[Row]) -> RenderableType:
    """Show the scores of texts that are judged as they are: what a model writes says nothing about these."""
    is_one_run = changed.before.partition("#")[0] == changed.after
    before = "base" if changed.system == "zero_shot" else system_label(changed.system) if is_one_run else "before"
    table = Table(box=None, pad_edge=False)
    table.add_column("text", overflow="fold")
    for name in (before, "tuned" if is_one_run else "after", "difference"):
        table.add_column(name, justify="right")
    for row in rows:
        old, new = row.scores or (math.nan, math.nan)
        table.add_row(Text(row.id), number(old), number(new), number(new - old, sign=True))
    return table


def _between(changed: ChangedRows) -> str:
    unit = "rows" if changed.reads_answers else "texts"
    metric = f"{unit} by {metric_label(changed.metric)}{' (lower is better)' if changed.lower else ''}"
    if changed.before == f"{changed.after}#{changed.system}":
        best = ", the best baseline," if changed.is_best else " (the base)" if changed.system == "zero_shot" else ""
        return f"From {system_label(changed.system)}{best} to the tuned model of {changed.after}:\n{metric}"
    return f"From {changed.before}\nto   {changed.after}:\n{metric}"


def predictions(found: Predictions) -> RenderableType:
    """Show how many rows were answered, where they are, and the first rows without an answer."""
    parts: list[RenderableType] = [Text(predictions_line(found), style="bold"), Text(f"Written: {found.output}")]
    parts += [Text(found.warning)] if found.warning else []
    parts += [Text(f"Read: {form.file}: {assumption}") for form in found.files for assumption in form.assumed]
    parts += [Text(f"No answer: {one.where}: {one.reason}") for one in found.unanswered]
    more = found.total - found.answered - len(found.unanswered)
    return Group(*parts, *([Text(f"… and {more:,} more, which have a reason in `error`")] if more else []))


def predictions_line(found: Predictions) -> str:
    """Return the counts of answered, truncated and failed rows as one sentence."""
    failed = found.total - found.answered
    rate = (found.total - found.resumed) / found.seconds if found.seconds else 0.0
    parts = [f"{found.answered:,} of {found.total:,} row{'s' * (found.total != 1)} answered by {found.model}"]
    parts += [f"{found.truncated:,} truncated"] if found.truncated else []
    parts += [f"{failed:,} without an answer"] if failed else []
    parts += [f"{found.failing_queries:,} with a query that fails"] if found.failing_queries else []
    parts += [f"{found.doubtful_queries:,} with a value from nowhere (`sql_warning`)"] if found.doubtful_queries else []
    parts += [f"{found.resumed:,} resumed"] if found.resumed else []
    return ", ".join(parts) + f" ({found.seconds:,.1f} s, {rate:,.{0 if rate >= 10 else 1}f} rows per second)"


def _details(values: Mapping[str, Any]) -> list[str]:
    """Return the details of an answer: a shortened prompt, confidences, rows of a query, a cut at the limit."""
    lines = []
    if values.get("removed_tokens"):
        lines.append(
            f"(asked without {values['removed_tokens']:,} tokens of the {values['removed_parts']}, which did not fit)"
        )
    if "confidence" in values:
        lines.append(f"confidence {values['confidence']:.3f}")
    if "probabilities" in values:
        ranked = sorted(values["probabilities"].items(), key=lambda item: -item[1])[:5]
        lines.append(", ".join(f"{visible(label)} {share:.3f}" for label, share in ranked))
    if values.get("error"):
        lines.append(f"fails: {values['error']}")
    if values.get("warning"):
        lines.append(f"check: {values['warning']}")
    lines += [", ".join(map(_cell, row)) for row in values.get("rows", ())]
    if values.get("count", 0) > len(values.get("rows", ())):
        lines.append(f"… {'more than ' if values.get('more') else ''}{values['count']:,} rows")
    end = "the model's last position" if "limit" in values else "evaluation.max_new_tokens"
    return lines + ([f"(cut at {end})"] if values.get("capped") else [])


def _cell(value: object) -> str:
    """Return the value of a row in one line, with control characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))


def _said(output: str | tuple[str, ...]) -> str:
    text = output if isinstance(output, str) else ", ".join(map(visible, output))
    return text if len(text) <= _LONG else f"{clip(text, _LONG)} …"
