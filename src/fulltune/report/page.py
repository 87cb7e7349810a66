"""Render the report: collect all parts and fill in one template."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from fulltune.metrics.recommendation import lead as advised
from fulltune.metrics.wording import meaning, metric_label
from fulltune.records.run import Prediction, Record, Step, best_baseline
from fulltune.report import curves, dataset, details, retention, scores, tables, task, tiles
from fulltune.report.display import moment, percentage, unsaid
from fulltune.report.examples import gallery

_HERE = Path(__file__).parent


def render(
    record: Record,
    steps: Sequence[Step],
    predictions: Iterable[Prediction],
    audit: Mapping[str, Any] | None,
    *,
    examples: int = 24,
    reproduce: Sequence[str] = ("fulltune run config.yaml",),
) -> str:
    """Return the report as one self-contained HTML page that works without scripts and loads no other files.

    Args:
        record: Record of the run.
        steps: Logged steps, in order; may be empty.
        predictions: Predictions of all systems, in any order. Iterated twice and not kept in memory: pass an object
            that can be iterated repeatedly (a list, or one whose ``__iter__`` opens a file). A one-shot iterator is
            read completely.
        audit: Contents of ``audit.json``, or None.
        examples: Number of rows that are shown side by side; all rows are counted.
        reproduce: Commands that repeat the run, for a shell in the folder of the page.

    Returns:
        HTML. All texts from data, labels and names are escaped. Empty sections are omitted.
    """
    shown = gallery(record.task, predictions, examples, best_baseline(record))
    drawn = _task_context(record)
    page = environment().get_template("report.html.j2")
    return page.render(
        record=record,
        page_title=_title(record),
        css=Markup(asset("report.css")),
        script=Markup(asset("report.js")),
        script_hash=_script_hash(),
        beaten=scores.beaten(record),
        table=scores.table(record, record.scores),
        meaning=meaning(record.metric),
        other_table=scores.table(record, scores.beside(record)),
        forest=scores.forest(record),
        comparisons=scores.comparisons(record),
        how_compared=scores.how_compared(record),
        fewest_rows=scores.FEWEST_ROWS,
        baseline_uses=scores.baseline_uses(record),
        parts=tables.parts(record),
        about_parts=tables.about_parts(record),
        curves=curves.curves(steps, record.guards, record.details),
        retention=retention.rows(record),
        retention_chart=retention.chart(record),
        has_budget=retention.has_budget(record),
        reproduce=reproduce,
        queries=task.queries(shown.survey),
        gallery=shown,
        splits=dataset.splits(record),
        data_details=dataset.details(record.data.summary),
        notable=dataset.notable(record.data.summary),
        class_table=dataset.classes(record.data.summary),
        tiles=tiles.tiles(record),
        reasons=unsaid(record),
        outcome_sign=tiles.SIGNS[record.outcome],
        outcome_meaning=tiles.meaning(record),
        levels=details.findings(record, audit),
        weights=details.weights(record),
        folds=details.folds(record),
        training=details.training(record),
        cost=details.cost(record),
        stages=task.stages(record.resources.stage_seconds),
        definitions=details.definitions(record),
        **drawn,
    )


def _title(record: Record) -> str:
    """Return the title of the page: what to do and the run; the headline is on the page, once."""
    lead = f"{advised(record.recommendation, record.outcome)}: " if record.recommendation else ""
    return f"{lead}{record.run_id}"


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
    """Return the environment for the templates of this folder, which escapes all inserted values."""
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "percentage": percentage,
        "metric": metric_label,
        "moment": moment,
        "prose": prose,
        "headings": headings,
    }
    return environment


def prose(text: str) -> Markup:
    """Return a sentence with what it has between backticks as code."""
    parts = str(text).split("`")
    if len(parts) % 2 == 0:  # an odd number of backticks
        return escape(text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if index % 2 else escape(part) for index, part in enumerate(parts)
    )


def headings(body: str) -> list[tuple[str, Markup]]:
    """Return the id and the title of every section of a page: whatever a section is, the list of contents has it."""
    return [(id_, Markup(title)) for id_, title in re.findall(r'<section id="([\w-]+)"[^>]*>\s*<h2>(.*?)</h2>', body)]


@cache
def asset(name: str) -> str:
    """Return the contents of a text file of this folder."""
    return (_HERE / name).read_text(encoding="utf-8").strip()


@cache
def _script_hash() -> str:
    """Return the hash for the page's content policy: browsers run only this script, whatever the data contains."""
    return "sha256-" + base64.b64encode(hashlib.sha256(asset("report.js").encode()).digest()).decode()
