"""List details of a record as terms and values: trained parameters, audit and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fulltune.records.run import MetricInfo, Record
from fulltune.report.display import compact, count, decimals, duration, interval, metric_label, number, percentage, size

Facts = list[tuple[str, str]]

LEVELS = ("error", "warning", "info")
#: Maximum number of findings per level; the rest are in audit.json.
FINDINGS = 40
#: Maximum number of row ids per finding.
IDS = 5

_SIGNS = {"error": "✕", "warning": "!", "info": "i"}


def weights(record: Record) -> Facts:
    """Return details about the weights."""
    parameters = record.parameters
    pairs = [
        ("Base model", record.model.source),
        ("Architecture", f"{record.model.architecture}, {record.model.family}"),
        ("Parameters", count(parameters.total)),
        ("Trainable", f"{count(parameters.trainable)} ({percentage(parameters.trainable / max(parameters.total, 1))})"),
        ("Frozen", count(parameters.frozen)),
        ("Number format", parameters.dtype),
        ("Changed tensors", percentage(parameters.moved)),
    ]
    return pairs + ([("Tied weights", ", ".join(parameters.tied))] if parameters.tied else [])


def training(record: Record) -> Facts:
    """Return details about training."""
    used = record.training
    optimizer = used.optimizer
    if used.optimizer_bytes:
        optimizer += f", {size(used.optimizer_bytes)} of state"
    rows = used.batch_size * used.accumulation
    pairs = [
        ("Optimizer", optimizer),
        ("Learning rate", f"{compact(used.learning_rate)}, {used.scheduler}"),
        ("Warm-up", f"{used.warmup_steps:,} steps"),
        ("Weight decay", compact(used.weight_decay)),
        ("Batch", f"{used.batch_size} × {used.accumulation} accumulated = {rows} rows per step"),
        ("Length", f"{used.epochs:g} epochs, {used.steps:,} steps"),
        ("Seen", f"{used.rows:,} training sequence{'s' * (used.rows != 1)}, {used.tokens:,} tokens"),
        ("Final training loss", compact(used.final_loss)),
        ("Seed", str(used.seed)),
    ]
    return pairs + ([("Computed by", "; ".join(used.fast_paths))] if used.fast_paths else [])


def folds(record: Record) -> Facts:
    """Return the score of each fold of cross-validation; empty without folds."""
    digits = decimals(fold.score.value for fold in record.folds)
    return [
        (
            f"Fold {fold.fold}",
            f"{metric_label(record.metric)} {number(fold.score.value, digits)} "
            f"{interval(fold.score.low, fold.score.high, digits)} on {count(fold.score.n)} rows, trained on "
            f"{count(fold.train_rows)}; {fold.outcome} ({fold.run_id})",
        )
        for fold in record.folds
    ]


def cost(record: Record) -> Facts:
    """Return details about time and memory."""
    used = record.resources
    before = used.seconds_before
    resumed = f", with {duration(before)} of training before it was resumed" if before else ""
    pairs = [
        ("Entire run", duration(used.total_seconds) + resumed),
        ("Training", duration(used.train_seconds)),
        ("Peak memory", size(used.peak_rss_bytes)),
        ("Tokens per second", compact(used.tokens_per_second)),
    ]
    return pairs + ([("Machine", used.machine)] if used.machine else [])


@dataclass(frozen=True)
class Finding:
    """A finding of the audit, as the page shows it."""

    kind: str
    message: str
    fix: str
    ids: str = ""


@dataclass(frozen=True)
class Level:
    """Findings of one level; ``more`` is the number of those that are not shown."""

    name: str
    sign: str
    findings: tuple[Finding, ...]
    more: int


def findings(record: Record, audit: Mapping[str, Any] | None) -> list[Level]:
    """Return the findings of the audit, most severe level first; without an audit file, the messages of the record."""
    raw = audit.get("findings") if audit else None
    if not isinstance(raw, Sequence) or isinstance(raw, str):
        raw = record.data.audit.findings
    levels: dict[str, list[Finding]] = {}
    for item in raw:
        level, finding = _finding(item)
        levels.setdefault(level, []).append(finding)
    order = [level for level in LEVELS if level in levels] + sorted(set(levels) - set(LEVELS))
    return [
        Level(name, _SIGNS.get(name, "·"), tuple(levels[name][:FINDINGS]), max(0, len(levels[name]) - FINDINGS))
        for name in order
    ]


def _finding(item: Any) -> tuple[str, Finding]:
    """Convert a finding in any known format: a sentence, or an object with these keys or their synonyms."""
    if not isinstance(item, Mapping):
        return "info", Finding("", str(item), "")
    level = str(_first(item, "level", "severity") or "info").lower()
    message = str(_first(item, "message", "found", "text") or "")
    where = str(_first(item, "where", "file", "split") or "")
    kind = str(_first(item, "kind", "code", "name") or "").replace("_", " ")
    words = f"{message} ({where})" if where and where not in message else message
    fix = str(item.get("fix") or "")
    return {"warn": "warning", "note": "info"}.get(level, level), Finding(kind, words, fix, _ids(item))


def _ids(item: Mapping[str, Any]) -> str:
    """Return the first row ids of a finding."""
    ids = [str(row) for row in item.get("ids") or ()]
    return ", ".join(ids[:IDS]) + (" …" if len(ids) > IDS else "")


def _first(item: Mapping[str, Any], *keys: str) -> Any:
    return next((item[key] for key in keys if item.get(key)), None)


@dataclass(frozen=True)
class Definition:
    """A term and its meaning."""

    label: str
    name: str
    info: MetricInfo


def definitions(record: Record) -> list[Definition]:
    """Return the definitions of the metrics."""
    return [Definition(metric_label(name), name, info) for name, info in record.metrics.items()]
