"""``fulltune methods``: full, LoRA, QLoRA, prompt tuning and the baselines on the same rows. Which one for my data?

    found = fulltune.compare_methods("config.yaml", rates=3, seeds=3)
    print(found.headline)

Every method has the same number of rates to try, around its own usual one; they are judged on validation rows. The
best one is then trained once a seed, for the same steps as all others, and scored once on the evaluation rows. Each
part is done in a process of its own, and one that is done is not done again: a killed comparison goes on where it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import mean
from typing import Any

from fulltune.config import LEARNING_RATES, Config, load_config, with_validation_rows
from fulltune.errors import ConfigError, Problem, did_you_mean
from fulltune.experiments.methods.recommend import recommend
from fulltune.experiments.methods.worker import Answer, ArmDied, Order, answer_path, in_a_process
from fulltune.metrics import known, seeds
from fulltune.metrics.accumulate import Accumulator
from fulltune.metrics.base import Metric
from fulltune.metrics.compare import scored
from fulltune.records.methods import MethodComparison, MethodResult, SeedRun, SystemResult, Tried
from fulltune.records.run import Record, base_kept, read_record
from fulltune.report.methods import render
from fulltune.runtime import machine, plugins
from fulltune.runtime.files import atomic_text
from fulltune.runtime.progress import NullProgress, Progress
from fulltune.runtime.version import __version__
from fulltune.store.jobs import job_folder, locked

METHODS = ("full", "lora", "qlora", "prompt-tuning")

#: Neighboring rates of a search differ by this factor: half a decade.
SPACING = math.sqrt(10)

#: Methods whose usual rates move together: what is ten times higher than usual for one is so for the others.
_ON_WEIGHTS = ("full", "lora", "qlora")

#: Does what an order says, and leaves the answer beside the path.
Runner = Callable[[Order, Path], Answer]


def compare_methods(
    config: Config | Mapping[str, Any] | str | Path,
    *,
    methods: Sequence[str] = METHODS,
    rates: int = 3,
    seeds: int = 1,
    max_steps: int | None = None,
    tokens: int | None = None,
    prune: bool = False,
    out: str | Path = "runs",
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
    quiet: bool = False,
    runner: Runner = in_a_process,
) -> MethodComparison:
    """Compare methods on a config's rows; the same call goes on where a killed one was.

    Args:
        config, overrides, progress: As in :func:`fulltune.run`; its ``train.learning_rate`` is the middle of the rates
            of its own method.
        methods: Names; the first of them that is ``full``, else the first, is what others are compared with.
        rates: Learning rates to try for each method.
        seeds: Runs of each with the chosen rate: ``train.seed`` and those after it.
        max_steps: Optimizer steps of every training; default: as the config says.
        tokens: Instead, about so many training tokens.
        prune: End trials early that fall behind.
        out: Runs go there, and the folder ``methods-…`` with ``methods.json`` and ``methods.html``.
        quiet: The processes say nothing.
        runner: Does a part of the work.

    Raises:
        FulltuneError: All that would stop a run before its first step. A method that does not apply is a row with its
            reason, and no error.
    """
    _check(methods, rates, seeds, max_steps, tokens)
    config, progress = _fair(load_config(config, overrides), max_steps), progress or NullProgress()
    arguments = {"methods": list(methods), "rates": rates, "seeds": seeds, "tokens": tokens, "prune": prune}
    folder = job_folder(out, "methods", config, arguments)
    with locked(folder):
        desk = _Desk(config, folder, Path(out), quiet, prune, runner, progress)
        prepared = desk.prepare(methods)
        if tokens:
            steps = max(1, round(tokens / prepared.tokens_per_step))
            desk, prepared = desk.for_steps(steps), prepared.model_copy(update={"steps": steps})
        numbers = [config.train.seed + index for index in range(seeds)]
        results = [desk.method(name, grid(config, name, rates), numbers, prepared) for name in methods]
        found = _told(config, prepared, results, numbers, folder, Path(out))
        atomic_text(folder / "methods.json", found.to_json())
        atomic_text(folder / "methods.html", render(found))
    return found


def grid(config: Config, method: str, rates: int) -> tuple[float, ...]:
    """Rates to try: ``rates`` of them, half a decade apart, around the one that is usual for the method.

    The config's own rate is the middle for its own method. Between full, LoRA and QLoRA it carries over: where it is
    three times the usual one for the first, so it is for the others (a small model learns at higher rates by each).
    """
    middle = LEARNING_RATES.get(method, config.train.learning_rate)
    if method == config.method:
        middle = config.train.learning_rate
    elif method in _ON_WEIGHTS and config.method in _ON_WEIGHTS:
        middle *= config.train.learning_rate / LEARNING_RATES[config.method]
    return tuple(float(f"{middle * SPACING ** (index - (rates - 1) / 2):.3g}") for index in range(rates))


def _check(methods: Sequence[str], rates: int, seeds: int, max_steps: int | None, tokens: int | None) -> None:
    names, problems = plugins.names("method"), list[Problem]()
    for name in methods:
        if name not in names:
            fix = did_you_mean(name, names) or "choose some of these"
            problems.append(Problem(f"there is no method {name!r}", f"some of {', '.join(names)}", fix, "--methods"))
    if not methods or len(set(methods)) < len(methods):
        problems.append(Problem(f"{','.join(methods)!r}", "names of methods, each once", where="--methods"))
    counts = {"--rates": rates, "--seeds": seeds, "--max-steps": max_steps, "--tokens": tokens}
    problems += [
        Problem(f"{count}", "at least 1", where=where)
        for where, count in counts.items()
        if count is not None and count < 1
    ]
    if max_steps is not None and tokens is not None:
        problems.append(Problem("both --max-steps and --tokens", "one of them", where="--tokens"))
    if problems:
        raise ConfigError(problems)


def _fair(config: Config, max_steps: int | None) -> Config:
    """Rows to choose by, a curve to choose the best step on, and the same number of steps for all: patience ends none
    early.
    """
    config = with_validation_rows(config)
    train = {"evaluations": max(1, config.train.evaluations)} | ({"max_steps": max_steps} if max_steps else {})
    guard = config.guards.overfitting
    guards = {} if guard is None else {"overfitting": guard.model_copy(update={"patience": 0})}
    return config.model_copy(
        update={
            "train": config.train.model_copy(update=train),
            "guards": config.guards.model_copy(update=guards),
        }
    )


@dataclass(frozen=True)
class _Desk:
    """Gives orders, and knows which are done."""

    config: Config
    folder: Path
    out: Path
    quiet: bool
    prune: bool
    runner: Runner
    progress: Progress

    def for_steps(self, steps: int) -> _Desk:
        train = self.config.train.model_copy(update={"max_steps": steps})
        config = self.config.model_copy(update={"train": train})
        return _Desk(config, self.folder, self.out, self.quiet, self.prune, self.runner, self.progress)

    def prepare(self, methods: Sequence[str]) -> Answer:
        """Raises what makes the whole job impossible."""
        answer = self._ask("prepare", self._order(kind="prepare", methods=tuple(methods)))
        if answer.refused:
            raise answer.refused.error()
        return answer

    def method(self, name: str, rates: Sequence[float], seeds: Sequence[int], prepared: Answer) -> MethodResult:
        """Search and run one method."""
        try:
            tried = self._search(name, rates)
            chosen = _best(tried, prepared.higher_is_better) if len(rates) > 1 else rates[0]
            if chosen is None:
                reason = next((trial.reason for trial in tried if trial.reason), "training broke at every rate")
                # Refused before any step, at every rate: it is the method that does not fit, not the rates.
                if all(trial.seconds == 0 for trial in tried):
                    return MethodResult(method=name, status="does not apply", reason=reason)
                return MethodResult(method=name, status="failed", reason=reason, rates=tried)
            runs = tuple(self._run(name, chosen, seed) for seed in seeds)
        except _NotApplicable as error:
            return MethodResult(method=name, status="does not apply", reason=str(error))
        except ArmDied as error:
            return MethodResult(method=name, status="failed", reason=str(error))
        broken = next((run for run in runs if not math.isfinite(run.score.value)), None)
        if broken is not None:
            reason = f"the score of seed {broken.seed} is not a finite number"
            return MethodResult(method=name, status="failed", reason=reason, rates=tried, rate=chosen, runs=runs)
        at_edge = len(rates) > 1 and chosen in (rates[0], rates[-1])
        return _measured(name, tried, chosen, at_edge, runs, self._parameters(runs[0]))

    def _search(self, name: str, rates: Sequence[float]) -> tuple[Tried, ...]:
        if len(rates) == 1:
            return ()
        order = self._order(kind="search", methods=(name,), rates=tuple(rates), prune=self.prune)
        answer = self._ask(f"{name}: {len(rates)} rates", order)
        _applies(answer)
        return tuple(sorted(answer.tried, key=lambda trial: _rate(trial)))

    def _run(self, name: str, rate: float, seed: int) -> SeedRun:
        order = self._order(kind="run", methods=(name,), rates=(rate,), seed=seed)
        answer = self._ask(f"{name}: seed {seed}", order)
        _applies(answer)
        return _seed_run(read_record(self.out / answer.run_id / "record.json"), seed, answer.device_bytes)

    def _parameters(self, run: SeedRun) -> tuple[int, int]:
        found = read_record(self.out / run.run_id / "record.json").parameters
        return found.trainable, found.total

    def _order(self, **fields: Any) -> Order:
        config = self.config.model_dump(mode="json")
        return Order(config=config, out=str(self.out), folder=str(self.folder), quiet=self.quiet, **fields)

    def _ask(self, title: str, order: Order) -> Answer:
        name = "-".join([*order.methods, order.kind, *([str(order.seed)] if order.kind == "run" else [])])
        path = self.folder / "arms" / f"{name if order.kind != 'prepare' else 'prepare'}.json"
        path.parent.mkdir(exist_ok=True)
        done = self._done(order, path)
        if done is not None:
            return done
        answer_path(path).unlink(missing_ok=True)
        atomic_text(path, order.to_json())
        self.progress.note(title)
        return self.runner(order, path)

    def _done(self, order: Order, path: Path) -> Answer | None:
        """The answer to the same order, where it is there and what it names still is."""
        kept = answer_path(path)
        if not (path.exists() and kept.exists()):
            return None
        same = Order.model_validate_json(path.read_text(encoding="utf-8")).model_copy(update={"quiet": order.quiet})
        answer = Answer.model_validate_json(kept.read_text(encoding="utf-8"))
        is_there = order.kind != "run" or (self.out / answer.run_id / "record.json").exists()
        return answer if same == order and not answer.refused and is_there else None


class _NotApplicable(Exception):
    """A method that refused this job, with its reason."""


def _applies(answer: Answer) -> None:
    if answer.refused:
        raise _NotApplicable(str(answer.refused.error()))


def _rate(trial: Tried) -> float:
    return float(str(trial.settings["train.learning_rate"]))


def _best(tried: Sequence[Tried], higher_is_better: bool) -> float | None:
    sign = 1 if higher_is_better else -1
    whole = [trial for trial in tried if trial.state == "whole"]
    return _rate(max(whole, key=lambda trial: sign * trial.value)) if whole else None


def _seed_run(record: Record, seed: int, device_bytes: int) -> SeedRun:
    used, adapter = record.resources, record.adapter
    stopped = record.reasons if record.outcome == "stopped" else ()
    return SeedRun(
        seed=seed,
        run_id=record.run_id,
        score=record.scores["tuned"][record.metric],
        outcome=record.outcome,
        base_kept=base_kept(record.guards) is not None,
        tokens=record.training.tokens,
        seconds=used.train_seconds,
        tokens_per_second=used.tokens_per_second,
        memory_bytes=record.training.peak_bytes,
        device_bytes=device_bytes,
        optimizer_bytes=record.training.optimizer_bytes,
        disk_bytes=adapter.bytes if adapter else used.model_bytes,
        retention={name: found.change for name, found in record.retention.items()},
        warnings=(*stopped, *record.warnings),
    )


def _measured(
    name: str,
    tried: tuple[Tried, ...],
    rate: float,
    at_edge: bool,
    runs: tuple[SeedRun, ...],
    parameters: tuple[int, int],
) -> MethodResult:
    """A method's costs; what it scored over its seeds is told once all are there."""
    return MethodResult(
        method=name,
        status="measured",
        rates=tried,
        rate=rate,
        at_edge=at_edge,
        trainable=parameters[0],
        total=parameters[1],
        memory_bytes=max(run.device_bytes or run.memory_bytes for run in runs),
        optimizer_bytes=round(mean(run.optimizer_bytes for run in runs)),
        seconds=round(mean(run.seconds for run in runs), 3),
        tokens_per_second=round(mean(run.tokens_per_second for run in runs), 1),
        tokens=round(mean(run.tokens for run in runs)),
        disk_bytes=round(mean(run.disk_bytes for run in runs)),
        retention={ability: mean(run.retention[ability] for run in runs) for ability in runs[0].retention},
        runs=runs,
    )


def _told(
    config: Config, prepared: Answer, results: Sequence[MethodResult], numbers: Sequence[int], folder: Path, out: Path
) -> MethodComparison:
    measured = {result.method: result for result in results if result.status == "measured"}
    if not measured:
        raise ConfigError([Problem(f"{result.method}: {result.reason}", field="method") for result in results])
    names = [result.method for result in results]
    wanted = "full" if "full" in names else names[0]
    reference = wanted if wanted in measured else next(iter(measured))
    instead = () if reference == wanted else (f"{wanted} has no score; others are compared with {reference}.",)
    record = read_record(out / measured[reference].runs[0].run_id / "record.json")
    metric = _metric(record)
    rows = {name: [scored(out / run.run_id, [metric]) for run in result.runs] for name, result in measured.items()}
    settings: dict[str, Any] = {"resamples": config.evaluation.resamples, "confidence": config.evaluation.confidence}
    compared = [_scored(result, rows, reference, metric, settings) for result in results]
    baselines = _baselines(record, out, rows[reference], metric, settings)
    choice = recommend(compared, baselines, reference, metric)
    return MethodComparison(
        fulltune=__version__,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        machine=machine.describe(),
        task=config.task,
        model=config.model,
        metric=metric.name,
        label=metric.label or metric.name,
        percent=metric.percent,
        direction=metric.direction,
        objective=prepared.objective,
        confidence=config.evaluation.confidence,
        rows=prepared.rows,
        steps=prepared.steps,
        seeds=tuple(numbers),
        reference=reference,
        methods=tuple(compared),
        baselines=baselines,
        recommended=choice.method,
        headline=choice.headline,
        notes=(*instead, *choice.notes),
        folder=str(folder),
    )


def _baselines(
    record: Record, out: Path, reference: Sequence[Accumulator], metric: Metric, settings: Mapping[str, Any]
) -> tuple[SystemResult, ...]:
    """What trains nothing, from a run of the reference."""
    return tuple(
        SystemResult(
            system=system,
            score=scores[metric.name],
            against=seeds.difference([scored(out / record.run_id, [metric], system)], reference, metric, **settings),
        )
        for system, scores in record.scores.items()
        if system != "tuned" and metric.name in scores
    )


def _metric(record: Record) -> Metric:
    """The metric that decides, made anew for the labels of the run.

    Raises:
        ConfigError: A package's own metric, which cannot be computed again from predictions.
    """
    metrics = known(record.details.get("labels", ()), bool(record.details.get("multi_label", False)))
    if record.metric not in metrics:
        raise ConfigError(
            f"the metric {record.metric!r} of the task {record.task} is none of fulltune's own",
            expected="a task whose deciding metric fulltune can compute",
            fix="run each method by itself",
            field="task",
        )
    return metrics[record.metric]


def _scored(
    result: MethodResult,
    rows: Mapping[str, Sequence[Accumulator]],
    reference: str,
    metric: Metric,
    settings: Mapping[str, Any],
) -> MethodResult:
    """The method with its score over seeds and its difference to the reference."""
    if result.method not in rows:
        return result
    own, is_reference = rows[result.method], result.method == reference
    return result.model_copy(
        update={
            "score": seeds.score(own, metric, **settings),
            "spread": seeds.spread(own, metric),
            "against": None if is_reference else seeds.difference(own, rows[reference], metric, **settings),
        }
    )
