"""Show results in a terminal. Each function takes a record and returns what :mod:`rich` prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fulltune.cli.doctor import Diagnosis
from fulltune.cli.render import data
from fulltune.data.findings import first_warnings
from fulltune.data.overlap import LEAKED
from fulltune.data.tokens import TRUNCATED
from fulltune.metrics import wording
from fulltune.metrics.run_comparison import RunComparison
from fulltune.metrics.wording import metric_label
from fulltune.pipeline.planning.engine_memory import Table as FitTable
from fulltune.pipeline.planning.plan import gib
from fulltune.records.plan import Detectable, Plan
from fulltune.records.run import EvaluationRecord, Record, Retention
from fulltune.records.seeded import SeededRuns
from fulltune.records.verdict import ManyVerdicts, PairVerdict
from fulltune.report import dataset, display, retention, tables
from fulltune.report import verdict as verdicts
from fulltune.report.methods import rows as method_rows
from fulltune.runtime.terminal import wrapping_table

if TYPE_CHECKING:
    from fulltune.experiments.interpolation import Interpolation
    from fulltune.experiments.soup import Soup
    from fulltune.pipeline.resume_check import ResumeCheck
    from fulltune.records.learning_curve import LearningCurve
    from fulltune.records.learning_rate import LearningRate
    from fulltune.records.methods import MethodComparison
    from fulltune.records.sweep import Sweep


#: Fraction of waiting for a core from which a plan says so.
_WAITING = 0.15

#: Units of rough times, with their seconds.
_UNITS = (("hours", 3600), ("minutes", 60), ("seconds", 1))

#: Groups, folders or databases that are shown.
_PARTS = 3

#: Longest name of a system in a table of 80 columns; longer ones, such as run ids, are listed below it.
_NAME_WIDTH = 16


def record(record: Record, folder: Path, hint: str = "", *, noted: bool = False) -> RenderableType:
    """Show a run: headline, systems by the deciding metric, warnings of the audit, the report's path, the advice.

    Args:
        record: The run.
        folder: Its folder.
        hint: What else to do next.
        noted: The warnings of the audit were printed before training, so that their number is enough.
    """
    reasons = [Text(f"  {reason}") for reason in display.unsaid(record)]
    report = Text(f"Report: {folder / 'report.html'}", overflow="fold")
    advice = [Text(f"Next: {record.recommendation.sentence}")] if record.recommendation else []
    ending = [report, *advice, *([Text(hint, overflow="fold")] if hint else [])]
    warned, informed = watched(record)
    reasoned = [*reasons, *warned]
    facts = [*informed, *described(record), *(counted(record) if noted else audited(record)), *spent(record)]
    kept = [*parted(record), *folded(record), *retained(record), *facts]
    meaning = wording.meaning(record.metric)
    scored: list[RenderableType] = [_table(tables.systems(record)), *([Text(meaning)] if meaning else [])]
    return Group(Text(record.headline, style="bold"), *reasoned, *scored, *kept, *ending)


def parted(record: Record) -> list[RenderableType]:
    """Return the groups, folders or databases with the smallest gains, if there are any."""
    table = tables.parts(record, _PARTS)
    return [] if table is None else [Text(f"{tables.about_parts(record)}. The worst, untested:"), _table(table)]


def folded(record: Record) -> list[Text]:
    """Return the scores of the folds of cross-validation in a line."""
    if not record.folds:
        return []
    scores = wording.figures(*(fold.score.value for fold in record.folds))
    return [
        Text(
            f"Folds: {', '.join(scores)} (each answered by a model trained on the others; the final model was trained "
            "on all rows)"
        )
    ]


def retained(record: Record) -> list[Text]:
    """Return a line per ability that was lost, or one about the largest loss; then one about those only reported."""
    lost = [name for name, ability in record.retention.items() if ability.verdict == "lost"]
    worst = retention.worst(record.retention)
    shown = lost or ([worst[0]] if worst else [])
    lines = [Text(_retained(name, record.retention[name]), style="bold red" if lost else "") for name in shown]
    free = {name: ability for name, ability in record.retention.items() if ability.verdict == "no budget"}
    if free:
        changes = (f"{name} {display.signed_percentage(ability.change)}" for name, ability in free.items())
        rule = "Retention, only reported" if len(free) < len(record.retention) else f"Retention: {retention.FREE}"
        lines.append(Text(f"{rule}: loss of {', '.join(changes)}"))
    return lines


def _retained(name: str, ability: Retention) -> str:
    loss, low, high = map(display.signed_percentage, (ability.change, ability.low, ability.high))
    values = f"{metric_label(ability.metric)} {ability.base.value:.4g} → {ability.tuned.value:.4g}"
    budget = display.percentage(ability.budget)
    verdict = {
        "kept": f"kept (at most {budget} may be lost)",
        "lost": f"lost (more than the {budget} of the budget)",
        "cannot tell": f"{ability.base.n} rows cannot tell whether this is within the budget of {budget}",
    }[ability.verdict]
    return f"Retention: loss of {name} {loss} ({low} to {high}), {values}: {verdict}"


def described(record: Record) -> list[Text]:
    """Return one line per fact about the data that the model gets to see."""
    pairs = dataset.details(record.data.summary)
    return [Text(f"Data, {name}: {fact}") for name, fact in pairs.items()]


def spent(record: Record) -> list[Text]:
    """Return the seconds of the run and of its stages, the longest first, and those of baselines, from a second on.

    Baselines that read a sample of the rows are named in a line of their own.
    """
    resources = record.resources
    stages = sorted(resources.stage_seconds.items(), key=lambda stage: -stage[1])
    long = ", ".join(f"{name} {seconds:.0f}" for name, seconds in stages if seconds >= 1)
    seconds = f"Seconds: {resources.total_seconds:.0f}" + (f" ({long})" if long else "")
    seconds += "" if resources.core_seconds is None else f", {resources.core_seconds:.0f} core-seconds"
    uses = sorted(record.baselines.items(), key=lambda item: -item[1].seconds)
    slow = ", ".join(
        f"{display.system_label(name)} {use.seconds:.0f}"
        for name, use in uses
        if use.seconds >= 1 and not use.is_cached
    )
    sampled = [Text(f"{display.system_label(name)}: {use.sampled}") for name, use in uses if use.sampled]
    return [Text(seconds + (f"; baselines: {slow}" if slow else "")), *sampled]


def audited(record: Record) -> list[Text]:
    """Return one line per warning of the audit, for the first ones, without those that the facts of the data state."""
    audit = record.data.audit
    warnings = [" ".join(line.split()) for line in audit.findings[audit.errors :][: audit.warnings]]
    summary = record.data.summary
    stated = {TRUNCATED: summary.truncation, LEAKED: summary.leaks}
    warnings = [line for line in warnings if not any(mark in line for mark, fact in stated.items() if fact)]
    return [Text(line) for line in first_warnings(warnings, "in audit.json")]


def counted(record: Record) -> list[Text]:
    """Return a line with the number of warnings of the audit, if there are any."""
    count = record.data.audit.warnings
    return [Text(f"Audit: {count} warning{'s' * (count != 1)}, listed above and in audit.json")] if count else []


def watched(record: Record) -> tuple[list[Text], list[Text]]:
    """Return one line per event of a guard: those that changed the run, and those that report that all is well.

    Events that the reasons repeat are left out.
    """
    events = [event for event in record.guards if event.message not in record.reasons]
    fine = [event for event in events if event.guard == "overfitting" and event.step == record.training.steps]
    fine = [event for event in fine if event.verdict == "continue"]
    warned = [Text(f"Guard ({event.guard}): {event.message}") for event in events if event not in fine]
    return warned, [Text(event.message) for event in fine]


def seeded(result: SeededRuns) -> RenderableType:
    """Show several seeds: the result, the mean of each system, and the runs."""
    digits = display.decimals([score.value for score in result.scores.values()])
    table = wrapping_table("system", metric_label(result.metric), "interval", "tuned against it")
    for name in display.in_order(result.scores):
        score, against = result.scores[name], result.comparison.get(f"tuned vs {name}")
        gain = f"{display.difference(against.delta, digits)}, {wording.verdict(against)}" if against else ""
        bounds = display.interval(score.low, score.high, digits)
        table.add_row(display.system_label(name), display.number(score.value, digits), bounds, gain)
    lines = [f"seed {run.seed}: {run.run_id} {display.number(run.value, digits)}, {run.outcome}" for run in result.runs]
    reasons = [f"Reason: {reason}" for reason in result.reasons]
    texts = [Text(line, overflow="fold") for line in (*reasons, *lines)]
    return Group(Text(f"{result.outcome}. {result.headline}", style="bold"), table, *texts)


def verdict(result: PairVerdict | ManyVerdicts) -> RenderableType:
    """Show the verdict on two or more systems: sentences, then one row per system."""
    rows = verdicts.rows(result)
    is_long = max(len(row[0]) for row in rows) > _NAME_WIDTH and len(rows) <= len(ascii_uppercase)
    shown = {row[0]: letter if is_long else row[0] for row, letter in zip(rows, ascii_uppercase, strict=False)}
    table = wrapping_table(*verdicts.header(result))
    for row in rows:
        table.add_row(shown.get(row[0], row[0]), *row[1:])
    first, *others = verdicts.sentences(result)
    key = [Text(f"{letter}: {name}", overflow="fold") for name, letter in shown.items() if is_long]
    return Group(Text(first, style="bold"), *(Text(line) for line in others), table, *key)


def evaluation(record: EvaluationRecord) -> RenderableType:
    """Show an evaluation: every metric of one system, the deciding one first."""
    system = display.system_label(record.system)
    title = f"{record.model.source}, {system}, on {record.data.rows:,} rows of {record.data.source}"
    notes = [Text(f"Note: {line}") for line in record.warnings]
    return Group(Text(title, style="bold"), _table(tables.evaluation(record)), *notes)


def comparison(compared: RunComparison) -> RenderableType:
    """Show a comparison from A to B: the result, each metric with its paired difference, and the rows that changed."""
    lists = {
        "right only in B": compared.fixed,
        "right only in A": compared.broken,
        "better in B": compared.most_improved,
        "better in A": compared.most_worsened,
        "left out": compared.left_out,
    }
    changed = {name: _some(rows) for name, rows in lists.items() if rows}
    named = Text(f"From A = {compared.a}\nto   B = {compared.b}", overflow="fold")
    table = _table(tables.comparison(compared))
    return Group(Text(compared.headline, style="bold"), named, table, _pairs(changed))


def interpolation(result: Interpolation, use: str = "") -> RenderableType:
    """Show an interpolation: the choice, every point with its score and its losses, the files, and how to use it."""
    label = metric_label(result.metric)
    digits = display.decimals(point.score.value for point in result.points)
    table = wrapping_table("α", label, "interval", "largest loss", "inside the budget", "")
    for point in result.points:
        bounds = display.interval(point.score.low, point.score.high, digits)
        sign = "chosen" if point.alpha == result.alpha else "on the front" if point.on_front else ""
        inside = "yes" if point.within_budget else "no"
        score = display.number(point.score.value, digits)
        table.add_row(f"{point.alpha:g}", score, bounds, display.signed_percentage(point.loss), inside, sign)
    pairs = {f"eval, {name}": display.number(score.value, digits) for name, score in result.final.items()}
    if result.kept_as_tuned:
        pairs["as tuned at every α"] = _some(result.kept_as_tuned) + " (the base has none)"
    pairs |= {"model": result.model, "figure": "interpolation.svg and interpolation.json in the run's folder"}
    return Group(Text(result.headline, style="bold"), table, _pairs(pairs), *_next(use))


def _next(command: str) -> list[Text]:
    return [Text(f"Next: {command}", overflow="fold")] if command else []


def soup(result: Soup, use: str = "") -> RenderableType:
    """Show the mean of several models: its score, those of its sources, and how to use it."""
    title = Text(f"The mean of {len(result.sources)} models is in {result.model}", style="bold")
    if not result.scores:
        return Group(title, *_next(use))
    digits = display.decimals(score.value for score in result.scores.values())
    table = wrapping_table("model", metric_label(result.metric), "interval", "rows")
    for name, score in result.scores.items():
        bounds = display.interval(score.low, score.high, digits)
        table.add_row(name, display.number(score.value, digits), bounds, display.count(score.n))
    return Group(title, table, *_next(use))


def methods(compared: MethodComparison) -> RenderableType:
    """Show a comparison of methods: the result, one line per method, caveats, and the page."""
    score = metric_label(compared.metric)
    table = wrapping_table(
        "method", score, f"minus {compared.reference}", "trained", "memory", "time", "tokens/s", "disk", "lost"
    )
    for row in method_rows(compared):
        if row.reason:
            continue
        name = f"{row.name} ✓" if row.chosen else row.name
        values = [f"{row.score} {row.score_interval}", f"{row.against} {row.against_interval}"]
        table.add_row(
            name,
            *values,
            row.part,
            row.memory,
            row.time,
            row.speed,
            row.disk,
            f"{row.retention} {row.retention_interval}".strip(),
        )
    absent = [f"{result.method} {result.status}: {result.reason}" for result in compared.methods if result.reason]
    notes = [Text(line) for line in (*absent, *(f"Note: {note}" for note in compared.notes))]
    page = Text(f"Page: {Path(compared.folder) / 'methods.html'}", overflow="fold")
    return Group(Text(compared.headline, style="bold"), table, *notes, page)


def sweep(result: Sweep) -> RenderableType:
    """Show a search: its trials, the best first, the gain of the choice, and the config to run."""
    pairs = {"run it": f"fulltune run {result.config}"} if result.config else {}
    reasons = {trial.reason for trial in result.trials if trial.reason}
    broken = [Text(f"Broke: {reason}") for reason in sorted(reasons)]
    return Group(
        Text(result.headline, style="bold"), _table(tables.sweep(result)), *broken, Text(result.caution), _pairs(pairs)
    )


def plan(plan: Plan) -> RenderableType:
    """Show a plan: one fact per line, memory by part and time by stage if they were measured, and the advice."""
    pairs = {
        "task": f"{plan.task}, method {plan.method}",
        "model": f"{plan.model}, {plan.parameters:,} parameters",
        "rows": ", ".join(f"{count:,} {split}" for split, count in plan.rows.items()),
        "sequences": f"{plan.sequences:,} an epoch, {plan.tokens:,} tokens",
        "steps": f"{plan.total_steps:,} ({plan.steps_per_epoch:,} an epoch), {plan.warmup_steps:,} of them warm-up",
        **({"trainings": _trainings(plan)} if plan.trainings > 1 else {}),
        "effective batch": f"{plan.effective_batch} sequences",
        **dataset.details(plan.data),
        "memory": _memory(plan),
        **({"time": _rough_time(plan.rough_seconds)} if plan.rough_seconds is not None else {}),
        "baselines": ", ".join(display.system_label(name) for name in plan.baselines),
        **({"detectable": _detectable(plan.detectable)} if plan.detectable else {}),
        "evaluations": f"after steps {', '.join(map(str, plan.evaluations))}" if plan.evaluations else "after training",
        **({"computed by": "; ".join(plan.fast_paths)} if plan.fast_paths else {}),
    }
    tables = [_shares(title, part) for title, part in _costs(plan).items() if part]
    lines = [
        *(f"Length: {line}" for line in plan.too_long),
        *first_warnings(plan.warnings, "(--json shows all)"),
        *(f"Default: {line}" for line in plan.chosen),
        *(f"Advice: {line}" for line in plan.advice),
        *_shared(plan),
    ]
    return Group(_pairs(pairs), *data.classes(plan.data), *tables, *map(Text, lines))


def _trainings(plan: Plan) -> str:
    if plan.folds is None:
        return f"{plan.trainings}, which differ in their seed"
    return f"{plan.trainings}: {plan.folds} folds, and the final model on all rows"


def _detectable(detectable: Detectable) -> str:
    metric = metric_label(detectable.metric)
    together = f", those of each of {detectable.groups:,} groups together" if detectable.groups else ""
    if detectable.changed is None:
        deviations = f"{detectable.value:.2g} standard deviations of the rows' differences in {metric}"
        alone = f" ({detectable.ungrouped:.2g} if each on its own)" if detectable.ungrouped else ""
        changing = f", if{together[1:]} change{alone}" if together else ""
        return f"a difference of {deviations}, with {detectable.rows:,} rows{changing}"
    points = f"{100 * detectable.value:.1f} points of {metric}"
    alone = f" ({100 * detectable.ungrouped:.1f} points if each on its own)" if detectable.ungrouped else ""
    return (
        f"a difference of {points}, if {detectable.changed:.0%} of {detectable.rows:,} rows become right or wrong"
        f"{together}{alone}"
    )


def _memory(plan: Plan) -> str:
    peak = plan.peak_bytes
    how = "at the peak" if plan.is_measured else "at the peak, by a formula"
    needs = f"at least {gib(plan.memory_bytes)}, activations on top" if peak is None else f"{gib(peak)} {how}"
    return needs if plan.machine_bytes is None else f"{needs}; this machine has {gib(plan.machine_bytes)}"


def _rough_time(seconds: float) -> str:
    """Return the estimate of a formula, and what it leaves out."""
    unit, size = next(((name, size) for name, size in _UNITS if seconds >= 1.5 * size), _UNITS[-1])
    about = f"{float(f'{seconds / size:.1g}'):,g} {unit}"
    return f"roughly {about} of training, by a formula (within a factor of 3); baselines and scores take more"


def _shared(plan: Plan) -> list[str]:
    """Return a sentence if other programs slowed down the measuring of times."""
    if plan.waiting < _WAITING or not (plan.seconds or plan.rough_seconds):
        return []
    if not plan.seconds:
        return [
            f"Other programs use this machine: this process waited {plan.waiting:.0%} of the time for a core. The time "
            f"is that without them; beside them, a run takes about {1 / max(0.01, 1 - plan.waiting):.0f} times as long."
        ]
    return [
        f"Other programs use this machine: during the measuring this process waited {plan.waiting:.0%} of the time for "
        f"a core. Without them, it takes about {1 - plan.waiting:.0%} of these times."
    ]


def _costs(plan: Plan) -> dict[str, dict[str, str]]:
    memory = {name: _size(count) for name, count in plan.memory.items()}
    seconds = {name: display.duration(value) for name, value in plan.seconds.items()}
    if seconds:
        seconds["all"] = display.duration(plan.total_seconds or 0.0)
    if seconds and plan.core_seconds is not None:
        seconds["core-seconds"] = f"{plan.core_seconds:,.0f}"
    if memory:
        memory["all"] = _size(plan.peak_bytes or 0)
    return {"memory": memory, "time": seconds}


def _size(count: int) -> str:
    return gib(count) if count >= 2**30 else f"{count / 2**20:,.0f} MiB"


def _shares(title: str, parts: dict[str, str]) -> Table:
    table = wrapping_table(title, "", title_justify="left")
    for name, value in parts.items():
        table.add_row(display.system_label(name), value)
    return table


def what_fits(fits: FitTable) -> RenderableType:
    """Show the fewest devices on which each engine trains a model."""
    engines = list(fits.rows[0].fits)
    table = wrapping_table("model", "parameters", "device", *engines)
    for row in fits.rows:
        fewest = [str(row.fits[engine] or "–") for engine in engines]
        table.add_row(row.model, display.count(row.parameters), f"{row.device_bytes >> 30} GiB", *fewest)
    how = (
        "Fewest devices, of 1 to 64, for full FP32 training with AdamW, 1,024 tokens per device, activations recomputed"
    )
    return Group(table, Text(f"{how}{', with --offload' if fits.offload else ''}.", style="dim"))


def learning_curve(curve: LearningCurve) -> RenderableType:
    """Show scores by number of training rows, and the gain from twice as many."""
    how = (
        f"Each part was trained for {curve.steps:,} steps and scored on all rows of eval; better is {curve.direction}."
    )
    return Group(Text(curve.headline, style="bold"), _table(tables.learning_curve(curve)), Text(how, style="dim"))


def learning_rate(result: LearningRate) -> RenderableType:
    """Show the search for a learning rate: the result, the short trainings, the plot, and the line for the config."""
    pairs = {"the config has": f"{result.asked:.1e}", "plot": result.plot}
    if result.rate is not None:
        pairs["to take it"] = result.line
    tried = [_table(tables.learning_rate(result))] if result.candidates else []
    return Group(Text(result.reason, style="bold"), *tried, _pairs(pairs))


def diagnosis(result: Diagnosis) -> RenderableType:
    """Show a diagnosis: versions, machine, fast paths, and the command for each missing feature."""
    pairs = {
        "python": result.python,
        **{name: version or "not installed" for name, version in result.versions.items()},
        "platform": result.platform,
        "device": result.device,
        "cpu": result.cpu,
        "cores, threads": f"{result.cores}, {result.threads}",
        "memory": f"{gib(result.memory_bytes)}, {gib(result.memory_free_bytes)} free",
        "disk": f"{gib(result.disk_free_bytes)} free",
        "FP32 products": f"{result.products} (BLAS: {result.blas})",
        **{name: "on" if active else "off" for name, active in result.fast_paths.items()},
        **{item.name: "ready" if item.available else f"missing: {item.command}" for item in result.features},
    }
    return _pairs(pairs)


def resume_check(result: ResumeCheck) -> RenderableType:
    """Show whether a resumed training is the same, part by part."""
    same = f"{result.steps} steps, and {result.stopped_at} + resume + {result.steps - result.stopped_at}"
    title = f"{same}: {'equal, bit for bit' if result.is_exact else 'not equal'}"
    parts = {name: "equal" if equal else "different" for name, equal in result.parts.items()}
    return Group(Text(title, style="bold" if result.is_exact else "bold red"), _pairs(parts))


def _some(ids: Sequence[str], shown: int = 5) -> str:
    """Format a list: ``12: a, b, c, d, e …``."""
    return f"{len(ids):,}: {', '.join(ids[:shown])}" + (" …" if len(ids) > shown else "")


def _table(table: tables.Table) -> Table:
    shown = wrapping_table(*table.headers)
    for row in table.rows:
        shown.add_row(*row)
    return shown


def _pairs(pairs: dict[str, str]) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in pairs.items():
        table.add_row(Text(name, style="dim"), Text(value, overflow="fold"))
    return table
