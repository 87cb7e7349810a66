"""Results for people at a terminal. Everything here takes a record-like object and gives what :mod:`rich` prints."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fulltune.doctor import Diagnosis
from fulltune.plan import Plan, gib
from fulltune.records import Record, Score
from fulltune.report import display


def record(record: Record, folder: Path) -> RenderableType:
    """A run: its headline, its systems by the deciding metric, the report's path, and what to try next."""
    table = scores({name: row[record.metric] for name, row in record.scores.items()}, record.metric)
    reasons = [Text(f"  {reason}") for reason in record.reasons]
    report = Text(f"Report: {folder / 'report.html'}", overflow="fold")
    return Group(Text(record.headline, style="bold"), *reasons, table, report, Text(f"Next: {next_step(record)}"))


def scores(found: dict[str, Score], metric: str) -> Table:
    """One metric of several systems, with intervals, in the report's order."""
    digits = display.decimals(score.value for score in found.values())
    table = Table("system", display.metric_label(metric), "interval", "rows")
    for name in display.in_order(found):
        score = found[name]
        value, bounds = display.number(score.value, digits), display.interval(score.low, score.high, digits)
        table.add_row(display.system_label(name), value, escape(bounds), display.count(score.n))
    return table


def next_step(record: Record) -> str:
    """One thing worth trying after this run."""
    if record.outcome == "stopped":
        return "lower train.learning_rate (for example --set train.learning_rate=1e-5) and run again"
    verdicts = {comparison.verdict for comparison in record.comparison.values()}
    if "worse" in verdicts:
        return "look at the broken rows in the report, then try a lower train.learning_rate or fewer train.epochs"
    if "no detectable change" in verdicts:
        return "bring more rows (train to learn more, eval for narrower intervals), or raise train.epochs"
    return f"change one setting with --set, run again, and `fulltune compare {record.run_id} latest`"


def plan(plan: Plan) -> RenderableType:
    """A plan: one fact a line, then the advice."""
    needs = f"at least {gib(plan.memory_bytes)}, activations on top"
    if plan.machine_bytes is not None:
        needs += f"; this machine has {gib(plan.machine_bytes)}"
    facts = {
        "task": f"{plan.task}, method {plan.method}",
        "model": f"{plan.model}, {plan.parameters:,} parameters",
        "rows": ", ".join(f"{count:,} {split}" for split, count in plan.rows.items()),
        "sequences": f"{plan.sequences:,} an epoch, {plan.tokens:,} tokens",
        "steps": f"{plan.total_steps:,} ({plan.steps_per_epoch:,} an epoch), {plan.warmup_steps:,} of them warm-up",
        "effective batch": f"{plan.effective_batch} sequences",
        "memory": needs,
        "baselines": ", ".join(display.system_label(name) for name in plan.baselines),
        "evaluated after": ", ".join(map(str, plan.evaluations)) or "training only",
    }
    return Group(_facts(facts), *(Text(f"Advice: {line}") for line in plan.advice))


def diagnosis(found: Diagnosis) -> RenderableType:
    """A diagnosis: versions, machine, fast paths, and the command for each missing feature."""
    facts = {
        "python": found.python,
        **{name: version or "not installed" for name, version in found.versions.items()},
        "platform": found.platform,
        "device": found.device,
        "cpu": found.cpu,
        "cores, threads": f"{found.cores}, {found.threads}",
        "memory": f"{gib(found.memory_bytes)}, {gib(found.memory_free_bytes)} free",
        "disk": f"{gib(found.disk_free_bytes)} free",
        "FP32 products": found.blas,
        **{name: "on" if active else "off" for name, active in found.fast_paths.items()},
        **{item.name: "ready" if item.available else f"missing: {item.command}" for item in found.features},
    }
    return _facts(facts)


def _facts(facts: dict[str, str]) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in facts.items():
        table.add_row(Text(name, style="dim"), Text(value, overflow="fold"))
    return table
