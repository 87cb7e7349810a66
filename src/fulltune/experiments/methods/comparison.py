"""``fulltune methods``: full fine-tuning, LoRA, QLoRA, prompt tuning and the baselines on the same rows.

    found = fulltune.compare_methods("config.yaml", rates=3, seeds=3)
    print(found.headline)

Every method gets the same number of rates to try, around its own usual rate; they are judged on validation rows. The
best rate is then trained once per seed, for the same number of steps as all others, and scored once on the evaluation
rows. Each part runs in a worker process and is not repeated once it is done: a killed comparison resumes.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from statistics import mean
from typing import Any

from fulltune.config import (
    Config,
    ConfigSource,
    load_config,
    refuse_folds,
    with_one_seed,
    with_validation_rows,
)
from fulltune.errors import ConfigError, Problem, did_you_mean
from fulltune.experiments.methods.recommend import recommend
from fulltune.experiments.methods.worker import Answer, JobSpec, WorkerDied, answer_path, execute_in_worker
from fulltune.metrics import seeds
from fulltune.metrics.accumulate import Accumulator
from fulltune.metrics.base import Metric
from fulltune.metrics.compare import holm
from fulltune.metrics.run_comparison import deciding_metric, scored
from fulltune.records.methods import MethodComparison, MethodResult, SeedRun, SystemResult, Tried
from fulltune.records.run import Comparison, Record, base_kept, read_record
from fulltune.report.methods import render
from fulltune.runtime import machine, plugins
from fulltune.runtime.files import atomic_text
from fulltune.runtime.progress import Progress, progress_of
from fulltune.runtime.version import __version__
from fulltune.store.jobs import job_folder, locked

METHODS = ("full", "lora", "qlora", "prompt-tuning")

#: Ratio of adjacent rates of a search: half a decade.
SPACING = math.sqrt(10)

#: Methods whose best rates move together: if a rate far from the usual suits one, it suits the others.
_ON_WEIGHTS = ("full", "lora", "qlora")

#: Executes a job spec, and writes the answer next to its path.
Runner = Callable[[JobSpec, Path], Answer]


def compare_methods(
    config: ConfigSource | None = None,
    *,
    methods: Sequence[str] = METHODS,
    rates: int = 3,
    seeds: int | None = None,
    max_steps: int | None = None,
    tokens: int | None = None,
    prune: bool = False,
    out: str | Path = "runs",
    overrides: Sequence[str] = (),
    progress: Progress | bool | None = None,
    quiet: bool = False,
    runner: Runner = execute_in_worker,
    **options: Any,
) -> MethodComparison:
    """Compare methods on the rows of a config; the same call resumes a killed comparison.

    Args:
        config, overrides, progress, options: As in :func:`fulltune.run`; ``train.learning_rate`` is the middle of the
            rates of the config's own method.
        methods: Names; the others are compared with ``full``, or with the first one if it is not among them.
        rates: Learning rates to try per method.
        seeds: Runs per method at the chosen rate, with ``train.seed`` and the seeds after it. Default: ``train.seeds``.
        max_steps: Optimizer steps per training; the default is that of the config.
        tokens: Training tokens per training, approximately, instead of steps.
        prune: End trials early that fall behind.
        out: The runs folder, where the folder ``methods-…`` with ``methods.json`` and ``methods.html`` is created.
        quiet: Show no progress of the workers.
        runner: Runs a part of the work.

    Raises:
        FulltuneError: Anything that would stop a run before its first step. A method that does not apply is no error:
        its
            row has the reason.
    """
    loaded, progress = load_config(config, overrides, options=options), progress_of(progress)
    refuse_folds(loaded, "a comparison of methods")
    seeds = loaded.train.seeds if seeds is None else seeds
    _check(methods, rates, seeds, max_steps, tokens)
    config = _fair(with_one_seed(loaded), max_steps)
    arguments = {"methods": list(methods), "rates": rates, "seeds": seeds, "tokens": tokens, "prune": prune}
    folder = job_folder(out, "methods", config, arguments)
    with locked(folder):
        scheduler = _Scheduler(config, folder, Path(out), quiet, prune, runner, progress)
        prepared = scheduler.prepare(methods)
        scheduler = scheduler.with_train(epochs=prepared.epochs)  # the same for every method
        if tokens:
            steps = max(1, round(tokens / prepared.tokens_per_step))
            scheduler = scheduler.with_train(max_steps=steps)
            prepared = prepared.model_copy(update={"steps": steps})
        numbers = [config.train.seed + index for index in range(seeds)]
        results = [
            scheduler.method(name, grid(config, name, rates, prepared.usual_rates), numbers, prepared)
            for name in methods
        ]
        result = _summary(config, prepared, results, numbers, folder, Path(out))
        atomic_text(folder / "methods.json", result.to_json())
        atomic_text(folder / "methods.html", render(result))
    return result


def grid(config: Config, method: str, rates: int, usual: Mapping[str, float]) -> tuple[float, ...]:
    """Return the rates to try: ``rates`` of them, half a decade apart, around the usual rate of the method.

    The config's own rate is the middle for its own method. Between full, LoRA and QLoRA its ratio to the usual rate
    carries over (a small model learns at higher rates by each of them).

    Args:
        config: The config.
        method: The method.
        rates: Number of rates.
        usual: The usual rate of each method for the model.
    """
    middle, asked = usual[method], config.train.learning_rate
    if asked is not None and method == config.method:
        middle = asked
    elif asked is not None and method in _ON_WEIGHTS and config.method in _ON_WEIGHTS:
        middle *= asked / usual[config.method]
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
    """Return the config with validation rows, a curve to choose the best step by, and no early stop."""
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
class _Scheduler:
    """Run job specs in workers, and skip those that are done."""

    config: Config
    folder: Path
    out: Path
    quiet: bool
    prune: bool
    runner: Runner
    progress: Progress

    def with_train(self, **options: Any) -> _Scheduler:
        """Return the scheduler with other options of training."""
        train = self.config.train.model_copy(update=options)
        config = self.config.model_copy(update={"train": train})
        return replace(self, config=config)

    def prepare(self, methods: Sequence[str]) -> Answer:
        """Check the job for all methods.

        Raises:
            FulltuneError: Anything that makes the comparison impossible.
        """
        answer = self._ask("prepare", self._spec(kind="prepare", methods=tuple(methods)))
        if answer.refused:
            shutil.rmtree(self.folder, ignore_errors=True)  # it holds nothing but this refusal
            raise answer.refused.error()
        return answer

    def method(self, name: str, rates: Sequence[float], seeds: Sequence[int], prepared: Answer) -> MethodResult:
        """Search the rate of one method and run it."""
        try:
            tried = self._search(name, rates)
            chosen = _best(tried, prepared.higher_is_better) if len(rates) > 1 else rates[0]
            if chosen is None:
                reason = next((trial.reason for trial in tried if trial.reason), "training broke at every rate")
                # Refused before any step at every rate: the method does not apply, whatever the rate.
                if all(trial.seconds == 0 for trial in tried):
                    return MethodResult(method=name, status="does not apply", reason=reason)
                return MethodResult(method=name, status="failed", reason=reason, rates=tried)
            runs = tuple(self._run(name, chosen, seed) for seed in seeds)
        except _NotApplicable as error:
            return MethodResult(method=name, status="does not apply", reason=str(error))
        except WorkerDied as error:
            return MethodResult(method=name, status="failed", reason=str(error))
        broken = next((run for run in runs if not math.isfinite(run.score.value)), None)
        if broken is not None:
            reason = f"the score of seed {broken.seed} is not a finite number"
            return MethodResult(method=name, status="failed", reason=reason, rates=tried, rate=chosen, runs=runs)
        at_edge = len(rates) > 1 and chosen in (rates[0], rates[-1])
        confidence = self.config.evaluation.confidence
        return _measured(name, tried, chosen, at_edge, runs, self._parameters(runs[0]), confidence)

    def _search(self, name: str, rates: Sequence[float]) -> tuple[Tried, ...]:
        if len(rates) == 1:
            return ()
        spec = self._spec(kind="search", methods=(name,), rates=tuple(rates), prune=self.prune)
        answer = self._ask(f"{name}: {len(rates)} rates", spec)
        _applies(answer)
        return tuple(sorted(answer.tried, key=lambda trial: _rate(trial)))

    def _run(self, name: str, rate: float, seed: int) -> SeedRun:
        spec = self._spec(kind="run", methods=(name,), rates=(rate,), seed=seed)
        answer = self._ask(f"{name}: seed {seed}", spec)
        _applies(answer)
        return _seed_run(read_record(self.out / answer.run_id / "record.json"), seed, answer.device_bytes)

    def _parameters(self, run: SeedRun) -> tuple[int, int]:
        parameters = read_record(self.out / run.run_id / "record.json").parameters
        return parameters.trainable, parameters.total

    def _spec(self, **fields: Any) -> JobSpec:
        config = self.config.model_dump(mode="json")
        return JobSpec(config=config, out=str(self.out), folder=str(self.folder), quiet=self.quiet, **fields)

    def _ask(self, title: str, spec: JobSpec) -> Answer:
        name = "-".join([*spec.methods, spec.kind, *([str(spec.seed)] if spec.kind == "run" else [])])
        path = self.folder / "jobs" / f"{name if spec.kind != 'prepare' else 'prepare'}.json"
        path.parent.mkdir(exist_ok=True)
        done = self._done(spec, path)
        if done is not None:
            return done
        answer_path(path).unlink(missing_ok=True)
        atomic_text(path, spec.to_json())
        self.progress.note(title)
        return self.runner(spec, path)

    def _done(self, spec: JobSpec, path: Path) -> Answer | None:
        """Return the answer to the same job spec if it exists and the run that it names still exists."""
        kept = answer_path(path)
        if not (path.exists() and kept.exists()):
            return None
        same = JobSpec.model_validate_json(path.read_text(encoding="utf-8")).model_copy(update={"quiet": spec.quiet})
        answer = Answer.model_validate_json(kept.read_text(encoding="utf-8"))
        is_there = spec.kind != "run" or (self.out / answer.run_id / "record.json").exists()
        return answer if same == spec and not answer.refused and is_there else None


class _NotApplicable(Exception):
    """A method refused this job, with its reason."""


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
        retention={name: ability.change for name, ability in record.retention.items()},
        retention_interval={name: (ability.low, ability.high) for name, ability in record.retention.items()},
        warnings=(*stopped, *record.warnings),
    )


def _measured(
    name: str,
    tried: tuple[Tried, ...],
    rate: float,
    at_edge: bool,
    runs: tuple[SeedRun, ...],
    parameters: tuple[int, int],
    confidence: float,
) -> MethodResult:
    """Return the costs of a method; its score over seeds is added once all methods are done."""
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
        retention_interval={
            ability: seeds.with_spread(
                [run.retention[ability] for run in runs], [run.retention_interval[ability] for run in runs], confidence
            )
            for ability in runs[0].retention_interval
        },
        runs=runs,
    )


def _summary(
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
    metric = deciding_metric(record)
    rows = {
        name: [scored(out / run.run_id, [metric]).without(record.left_out) for run in result.runs]
        for name, result in measured.items()
    }
    settings = config.evaluation.model_dump(include={"resamples", "confidence", "min_effect"})
    compared = _adjusted(
        [_scored(result, rows, reference, metric, settings) for result in results], config.evaluation.confidence
    )
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
    """Return the systems without training, from a run of the reference."""

    def difference(system: str) -> Comparison:
        own = scored(out / record.run_id, [metric], system).without(record.left_out)
        same = [one.without(frozenset(one.ids).difference(own.ids)) for one in reference]
        return seeds.difference([own], same, metric, **settings)

    return tuple(
        SystemResult(system=system, score=scores[metric.name], against=difference(system))
        for system, scores in record.scores.items()
        if system != "tuned" and metric.name in scores
    )


def _scored(
    result: MethodResult,
    rows: Mapping[str, Sequence[Accumulator]],
    reference: str,
    metric: Metric,
    settings: Mapping[str, Any],
) -> MethodResult:
    """Return the method with its score over seeds and its difference from the reference."""
    if result.method not in rows:
        return result
    own, is_reference = rows[result.method], result.method == reference
    return result.model_copy(
        update={
            "score": seeds.score(own, metric, **{key: settings[key] for key in ("resamples", "confidence")}),
            "spread": seeds.spread(own, metric),
            "against": None if is_reference else _claimed(own, rows[reference], metric, settings),
        }
    )


def _adjusted(results: Sequence[MethodResult], confidence: float) -> list[MethodResult]:
    """Return the results with p-values adjusted for the number of methods; a claim must hold for these."""
    adjusted = holm([result.against.p if result.against else math.nan for result in results])
    return [_as_one_of_several(result, p, confidence) for result, p in zip(results, adjusted, strict=True)]


def _as_one_of_several(result: MethodResult, p_holm: float, confidence: float) -> MethodResult:
    if result.against is None:
        return result
    changes: dict[str, Any] = {"p_holm": p_holm}
    if result.against.verdict in ("improved", "worse") and p_holm > 1 - confidence:
        changes["verdict"] = "no detectable change"
    return result.model_copy(update={"against": result.against.model_copy(update=changes)})


def _claimed(
    own: Sequence[Accumulator], reference: Sequence[Accumulator], metric: Metric, settings: Mapping[str, Any]
) -> Comparison:
    """Return the difference of two methods; no claim is made from fewer seeds than show how much seeds differ."""
    found = seeds.difference(own, reference, metric, **settings)
    if min(len(own), len(reference)) >= seeds.LEAST_SEEDS or found.verdict not in ("improved", "worse"):
        return found
    return found.model_copy(update={"verdict": "too few seeds"})
