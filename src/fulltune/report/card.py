"""Write the model card of a version in the hub's format: data, baselines, scores with intervals, retention, limits."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fulltune.metrics.wording import metric_label
from fulltune.records.run import Record, Retention
from fulltune.report import dataset, display
from fulltune.report.worse_rows import WorseRows
from fulltune.store.registry.registry import Version

_HERE = Path(__file__).parent

#: Names of the hub for the tasks.
_PIPELINES = {
    "causal-lm": "text-generation",
    "classification": "text-classification",
    "seq2seq": "text2text-generation",
    "text2sql": "text2text-generation",
}

#: Pipelines that answer as the report does; the other tasks are asked through ``generate``.
_PLAIN = {"causal-lm": "text-generation", "classification": "text-classification"}

#: Inputs of the lines that show how a model is used, as they are written in Python.
_EXAMPLES = {"causal-lm": "Once upon a time", "text2sql": r"Schema: …\n\nQuestion: How many are there?\nSQL:"}


@dataclass(frozen=True)
class Licenses:
    """Licenses of a base and of the training data, as their own cards state them; empty if they are not known."""

    base: str = ""
    data: str = ""


def card(
    version: Version,
    record: Record | None,
    *,
    is_adapter: bool = False,
    worse: WorseRows | None = None,
    has_texts: bool = False,
    licenses: Licenses | None = None,
) -> str:
    """Return the card in Markdown, with its metadata first.

    Args:
        version: The exported version.
        record: Record of its run; None for averaged or interpolated models, which have no scores of their own.
        is_adapter: The exported files are an adapter, which needs its base.
        worse: Rows that got worse; None if the predictions are not known.
        has_texts: Quote texts of these rows. A card that is published should not.
        licenses: Licenses of base and data.
    """
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    environment.filters |= {"bare": bare, "cell": _cell}
    return environment.get_template("card.md.j2").render(
        metadata=_metadata(version, record),
        version=version,
        lineage=version.lineage,
        record=record,
        is_adapter=is_adapter,
        worse=worse,
        has_texts=has_texts,
        licenses=licenses or Licenses(),
        auto=_auto_class(version.lineage.base.family),
        pipeline=_PLAIN.get(version.lineage.task),
        example=_EXAMPLES.get(version.lineage.task, "A text."),
        systems=_systems(record) if record else [],
        retained=_retained(record) if record else [],
        data=dataset.details(record.data.summary) if record else {},
        label=metric_label,
    )


def bare(source: str) -> str:
    """Return the name of a source without the folders of a local path; a hub id is unchanged."""
    if Path(source).is_absolute() or PureWindowsPath(source).is_absolute() or source.startswith((".", "~")):
        parts = [part for part in source.replace("\\", "/").split("/") if part not in ("", "model")]
        return parts[-1] if parts else source
    return source


def _metadata(version: Version, record: Record | None) -> str:
    """Return the YAML header as the hub's library writes it."""
    from huggingface_hub import EvalResult, ModelCardData

    lineage = version.lineage
    fields: dict[str, Any] = {"library_name": "transformers", "tags": ["fulltune", lineage.task]}
    fields["pipeline_tag"] = _PIPELINES.get(lineage.task)
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", lineage.base.source) and bare(lineage.base.source) == lineage.base.source:
        fields["base_model"] = lineage.base.source
    if record is not None:
        fields |= {"model_name": version.name, "metrics": list(record.scores.get("tuned", {}))}
        fields["eval_results"] = [
            EvalResult(
                task_type=_PIPELINES.get(lineage.task, lineage.task),
                dataset_type=bare(record.data.eval.source),
                dataset_name=bare(record.data.eval.source),
                metric_type=name,
                metric_value=score.value,
                metric_name=metric_label(name),
            )
            for name, score in record.scores.get("tuned", {}).items()
            if math.isfinite(score.value)
        ]
    return str(ModelCardData(**{key: value for key, value in fields.items() if value}).to_yaml())


def _systems(record: Record) -> list[tuple[str, list[str]]]:
    """Return every system with its value and interval for each metric of the record."""
    rows = []
    for name in display.in_order(record.scores):
        scores = record.scores[name]
        rows.append((display.system_label(name), [_interval(scores.get(metric)) for metric in record.metrics]))
    return rows


def _interval(score: Any) -> str:
    if score is None or (not score.n and math.isnan(score.value)):
        return ""
    return f"{display.number(score.value)} {display.interval(score.low, score.high)}"


def _retained(record: Record) -> list[tuple[str, ...]]:
    return [_retained_row(name, result) for name, result in record.retention.items()]


def _retained_row(name: str, result: Retention) -> tuple[str, ...]:
    change, low, high = map(display.signed_percentage, (result.change, result.low, result.high))
    return (
        name,
        metric_label(result.metric),
        display.number(result.base.value),
        display.number(result.tuned.value),
        f"{change} ({low} to {high})",
        result.verdict,
    )


def _auto_class(family: str) -> str:
    return "AutoModelForSeq2SeqLM" if family == "encoder-decoder" else "AutoModelForCausalLM"


def _cell(text: str) -> str:
    """Escape text for a cell or a line of Markdown."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
