"""The page: everything gathered, one template filled in."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fulltune.records.run import Prediction, Record, Step
from fulltune.report import curves, facts, retention, scores, task
from fulltune.report.display import metric_label, share
from fulltune.report.examples import gallery

_HERE = Path(__file__).parent


def render(
    record: Record,
    steps: Sequence[Step],
    predictions: Iterable[Prediction],
    audit: Mapping[str, Any] | None,
    *,
    examples: int = 24,
) -> str:
    """The report as one self-contained HTML page, readable without script; nothing is fetched from elsewhere.

    Args:
        record: The run.
        steps: What the trainer logged, in order; may be empty.
        predictions: Of all systems, in any order. Gone through twice and never held: pass something that can be
            iterated again (a list, or an object whose ``__iter__`` opens a file). A one-shot iterator is read whole.
        audit: The contents of ``audit.json``, or None.
        examples: How many rows are shown side by side; all rows are counted.

    Returns:
        HTML. Everything that came from data, labels or names is escaped. Sections with nothing to show are left out.
    """
    shown = gallery(record.task, predictions, examples)
    drawn = _task_context(record)
    page = environment().get_template("report.html.j2")
    return page.render(
        record=record,
        css=Markup(asset("report.css")),
        script=Markup(asset("report.js")),
        script_hash=_script_hash(),
        beaten=scores.beaten(record),
        deciding=scores.deciding(record),
        table=scores.table(record, record.scores),
        clean_table=scores.table(record, record.scores_without_leaks),
        forest=scores.forest(record),
        comparisons=scores.comparisons(record),
        curves=curves.curves(steps, record.guards, record.details),
        retention=retention.rows(record),
        retention_chart=retention.chart(record),
        queries=task.queries(shown.survey),
        gallery=shown,
        splits=facts.splits(record),
        levels=facts.findings(record, audit),
        weights=facts.weights(record),
        training=facts.training(record),
        cost=facts.cost(record),
        stages=task.stages(record.resources.stage_seconds),
        definitions=facts.definitions(record),
        **drawn,
    )


def _task_context(record: Record) -> dict[str, Any]:
    drawn = {
        "confusion": task.confusion(record.details),
        "per_class": task.per_class(record.details),
        "calibration": task.calibration(record.details),
        "plain_details": task.plain_details(record.details),
    }
    return drawn | {"bars": [] if drawn["confusion"] or drawn["per_class"] else task.metric_bars(record)}


@cache
def environment() -> Environment:
    """Templates of this folder; everything that is put into them is escaped."""
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"share": share, "metric": metric_label}
    return environment


@cache
def asset(name: str) -> str:
    """A text file of this folder."""
    return (_HERE / name).read_text(encoding="utf-8").strip()


@cache
def _script_hash() -> str:
    """For the page's own content policy: the browser runs this one script and no other, whatever the data holds."""
    return "sha256-" + base64.b64encode(hashlib.sha256(asset("report.js").encode()).digest()).decode()
