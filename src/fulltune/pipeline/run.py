"""The story of a run, top to bottom. Open this first.

    config → data → base model → audit → plan → baselines → train (guards watching) → evaluate tuned → retention
           → verdict → record → report → registry

Every stage takes what the stages before it returned and reaches back to nothing; each writes its file as it ends, so
that a crash leaves a readable run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fulltune.config import Config, dump_config, load_config
from fulltune.data.findings import first_warnings
from fulltune.evaluation.baselines import choose_shots
from fulltune.evaluation.evaluate import score_baselines, score_system
from fulltune.evaluation.prompt_use import PromptCounter
from fulltune.evaluation.retention import Memory
from fulltune.metrics.compare import RunComparison
from fulltune.metrics.compare import compare as compare_folders
from fulltune.models.fast_kernels import accelerated
from fulltune.pipeline import finish, job, train
from fulltune.pipeline import resume as resuming
from fulltune.pipeline.job import dated, dated_as, find_model, load, parts, pinned
from fulltune.pipeline.planning import measured_plan
from fulltune.pipeline.planning.plan import Plan
from fulltune.pipeline.record import build, evaluation_record
from fulltune.pipeline.resume import check, clean, config_of, keep, on_its_day, read_back, restarted
from fulltune.records.run import EvaluationRecord, Record
from fulltune.report import write_report
from fulltune.runtime import distributed
from fulltune.runtime.kernels.active import fixed
from fulltune.runtime.progress import NullProgress, Progress
from fulltune.runtime.stopwatch import Stopwatch, Warnings
from fulltune.store.registry.register import register_run
from fulltune.store.registry.registry import evidence
from fulltune.store.runs import new_run_id
from fulltune.tasks import dataset

Source = Config | Mapping[str, Any] | str | Path


def run(
    config: Source | None = None,
    *,
    out: str | Path = "runs",
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
    resume: str | Path | None = None,
    allow_changed: bool = False,
    **options: Any,
) -> Record:
    """Tune a model and prove whether that helped.

    Args:
        config: A :class:`Config`, a mapping, or the path of a YAML or JSON file; or nothing, with the same names as
            ``options``.
        out: Where run folders lie.
        overrides: ``a.b=value`` texts, applied last.
        progress: Where stages report; nothing by default.
        resume: A run that was stopped or killed, to go on with; it brings its own config.
        allow_changed: Resume although data, config or packages are not those that the run began with.

    Returns:
        The record, as it stands in ``record.json`` of the run folder.

    Raises:
        FulltuneError: One clear message; see :mod:`fulltune.errors`.
    """
    if resume is not None and config is None and not options:
        config = config_of(resume, out)
    config = pinned(load_config(config if config is not None else options, overrides), out)
    watch = Stopwatch()
    with contextlib.ExitStack() as held, Warnings() as warned:
        held.enter_context(distributed.joined(_timeout(config)))
        progress = progress if progress and distributed.is_main() else NullProgress()
        resume = resume or distributed.once(lambda: restarted(out))
        config = config if resume is None else on_its_day(config, resume, out)
        task, method = parts(config)
        with watch("data"):
            prepare = partial(dataset.prepare, config, task)
            task, data = distributed.once(lambda: (task, prepare()))
        with watch("load"):
            base = load(config, task, out)
            config = dated(config, task, base)
        with watch("audit"):
            audit, features, curve = distributed.once(lambda: dataset.inspect(config, task, data, base, Path(out)))
        run_id = distributed.shared(new_run_id(config.task, config.model))
        folder = held.enter_context(resuming.held(out, resume, run_id))
        check(folder, config, data, base, allow_changed)
        folder.write_text("config.yaml", dump_config(config))
        held.enter_context(fixed(config.speed.kernels, folder.path / "kernels.json"))
        held.enter_context(accelerated(base.model))
        audit_file = folder.write_text("audit.json", audit.to_json())
        audit.raise_if_broken(config.data.allow_leaks, where=str(audit_file))
        plan_job = measured_plan.Job(config, task, data, base, features, out, audit)
        folder.write_json("plan.json", measured_plan.checked_plan(plan_job))
        for line in first_warnings(audit.warnings(), "in audit.json"):
            progress.note(line)
        with folder.append("predictions.jsonl") as sink:
            with watch("baselines"):
                shots = choose_shots(task, config, base.family, data.train.examples, data.eval.examples)
                systems = score_baselines(config, task, data, base, shots, Path(out), sink, progress)
                folder.write_json("baselines.json", {name: e.scores(config.evaluation) for name, e in systems.items()})
            with watch("remember"):
                memory = Memory.of(config, base, Path(out), progress)
            done = read_back(config, task, folder, out)
            if done is not None:
                student, trained = done
            else:
                with watch("train"):
                    student = base if task.head == base.head else load(config, task, out, head=task.head)
                    given = (config, task, method, student, data, features, curve, memory, folder, progress)
                    trained = train.train(*given)
                with watch("save"):
                    trained = finish.finish(task, method, student, data, trained, folder)
                    keep(trained, folder)
            held.enter_context(accelerated(student.model))
            with watch("evaluate"):
                systems["tuned"] = score_system(task, student, "tuned", data, progress, sink)
            with watch("retention"):
                kept = memory.compare(student, progress)
        found = (config, task, data, base, audit, shots, systems, trained, kept, watch, warned, folder)
        record = distributed.once(lambda: build(*found))
        folder.write_text("record.json", record.to_json())
        clean(folder.path)
        with watch("report"):
            distributed.once(lambda: write_report(folder.path))
        distributed.once(lambda: register_run(out, folder.path))
    return record


def _timeout(config: Config) -> float:
    """Return the seconds that processes wait for each other; a wrong value is reported with the other options."""
    asked = config.trainer.get("ddp_timeout")
    return float(asked) if isinstance(asked, (int, float)) and asked > 0 else distributed.TIMEOUT


def plan(config: Source, *, out: str | Path = "runs", overrides: Sequence[str] = ()) -> Plan:
    """What a config will do, before it does it, and what it will take: the data is loaded and audited, a few steps are
    measured on a model that is thrown away, no run is made.

    Raises:
        FulltuneError: All that would stop the run before its first step.
    """
    config, watch = load_config(config, overrides), Stopwatch()
    task, _ = parts(config)
    data = dataset.prepare(config, task)
    base = load(config, task, out)
    audit, features, curve = dataset.inspect(config, task, data, base, Path(out))
    audit.raise_if_broken(config.data.allow_leaks)
    return measured_plan.full_plan(
        measured_plan.Job(config, task, data, base, features, out, audit), curve, prepared=watch.total
    )


def evaluate(
    name: str,
    config: Source | None = None,
    *,
    out: str | Path = "runs",
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
) -> EvaluationRecord:
    """Score a model on a config's evaluation rows: a run's tuned model (with its own config), or any checkpoint,
    zero-shot.

    Raises:
        FulltuneError: The run, the model or the data cannot be had or do not fit each other.
    """
    progress = progress or NullProgress()
    if config is None:
        config = job.config_of(name, out)
    config = dated_as(load_config(config, overrides), name, out)
    task, _ = parts(config)
    with Warnings() as warned:
        data = dataset.prepare(config, task)
        task.findings({"eval": data.eval.examples})
    bundle, system = find_model(config, task, name, out)
    config = dated(config, task, bundle)
    asked = PromptCounter()
    with fixed(config.speed.kernels), accelerated(bundle.model):
        evaluation = score_system(task, bundle, system, data, progress, asked)
    return evaluation_record(config, task, data, bundle, evaluation, asked.uses(), warned)


def compare(a: str, b: str, *, out: str | Path = "runs") -> RunComparison:
    """Compare two runs' tuned models on the rows that both scored; refuses runs whose scores do not mean the same
    thing.
    """
    return compare_folders(evidence(a, out), evidence(b, out))
