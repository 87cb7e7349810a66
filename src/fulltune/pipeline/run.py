"""A run from top to bottom. Open this first.

    config → data → audit of the rows → base model → audit of the tokens → plan → baselines → outputs of the base
           → train (guards watching) → evaluate tuned → retention → verdict → record → report → registry

Each stage takes the results of the stages before it and writes its file when it ends, so that a crash leaves a readable
run. torch is imported with the first model, after the config and the data were checked: a mistake in them is reported
within a second.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fulltune.config import Config, ConfigSource, load_config, refuse_folds
from fulltune.data.findings import first_warnings
from fulltune.errors import ConfigError
from fulltune.evaluation.prompt_use import PromptCounter
from fulltune.metrics.run_comparison import RunComparison
from fulltune.metrics.run_comparison import compare as compare_folders
from fulltune.pipeline import model_loading
from fulltune.pipeline import resume as resuming
from fulltune.pipeline.fold_configs import check_folds, of_fold
from fulltune.pipeline.job import (
    check_inputs,
    checked_task_and_method,
    prepare_job,
    with_chat_date_of,
    with_current_chat_date,
    with_resolved_model,
)
from fulltune.pipeline.open_run import open_run
from fulltune.pipeline.planning import stored_model
from fulltune.pipeline.planning.quick_plan import quick_plan
from fulltune.records.plan import Plan
from fulltune.records.run import EvaluationRecord, Record
from fulltune.report import write_report
from fulltune.runtime import distributed
from fulltune.runtime.kernels.active import pinned_kernels
from fulltune.runtime.progress import Progress, progress_of
from fulltune.runtime.stopwatch import Stopwatch, Warnings
from fulltune.store.registry.register import register_run
from fulltune.store.registry.registry import evidence
from fulltune.store.runs import name_and_folder
from fulltune.tasks import dataset

_log = logging.getLogger(__name__)


def run(
    config: ConfigSource | None = None,
    *,
    out: str | Path = "runs",
    overrides: Sequence[str] = (),
    progress: Progress | bool | None = None,
    resume: str | Path | None = None,
    allow_changed: bool = False,
    **options: Any,
) -> Record:
    """Tune a model and measure whether that helped.

    The run has a folder of its own below ``out``, with its record, its report and the tuned model. At the end its
    checkpoints are deleted, and the model is registered as a new version in the registry of ``out``. With
    ``data.folds`` each fold is a run too. A run that raises an error leaves its folder, without a version.

    Args:
        config: A :class:`Config`, a mapping, or the path of a YAML or JSON file; or nothing, if ``options`` has all of
            it.
        out: The runs folder.
        overrides: ``a.b=value`` texts, applied last.
        progress: Where stages report: by default a terminal or a notebook; False for nothing, True to report
            everywhere.
        resume: A run to resume in its folder that was stopped or killed (its id, its folder, or ``latest``). By default
            ``config`` is the one that it began with. One that differs is an error, and so are overrides and options
            that change it, except in the section ``checkpoints``.
        allow_changed: Resume with a changed config, changed data or other packages nevertheless.
        options: Keys of the config, such as ``train={"epochs": 1}``. Sections are merged over ``config`` key by key.

    Returns:
        The record, as in ``record.json`` of the run folder.

    Raises:
        FulltuneError: One clear message; see :mod:`fulltune.errors`.
    """
    if resume is not None:
        resume, out = resuming.run_to_resume(resume, out)
        config = resuming.config_to_resume(resume, out) if config is None else config
    config = with_resolved_model(load_config(config, overrides, options=options), out)
    _check_single(config)
    progress = progress_of(progress)
    watch = Stopwatch()
    with Warnings() as warned, open_run(config, out, resume, allow_changed, progress, watch) as (job, folder):
        from fulltune.pipeline import stages  # they import torch: by now the config and the rows are known to be valid

        planned = stages.checked_plan(job)
        folder.write_json("plan.json", planned)
        for line in (*planned.chosen, *job.audit.reduced, *first_warnings(job.audit.warnings(), "in audit.json")):
            progress.note(line)

        with folder.append("predictions.jsonl") as sink:
            train_fold = partial(_train_fold, out, progress)
            known = stages.score_without_training(job, planned.data, folder, sink, train_fold, progress, watch)
            job = known.job
            folder.write_json("baselines.json", known.baseline_scores())
            with watch("base retention"):
                base_outputs = stages.collect_base_outputs(job, progress)

            finished = resuming.read_back(job, folder)
            tuned, trained = finished or stages.train_model(job, base_outputs, folder, progress, watch)

            with stages.fast_kernels(tuned.model):
                with watch("evaluate"):
                    systems = stages.with_tuned(known, tuned, sink, progress)
                with watch("retention"):
                    retention = base_outputs.compare(tuned, progress)

        record = distributed.on_main(
            lambda: stages.build_record(
                job,
                summary=known.summary,
                shots=known.shots,
                systems=systems,
                trained=trained,
                retention=retention,
                watch=watch,
                warned=warned,
                folder=folder,
                folds=known.folds,
            )
        )
        _log.info("outcome: %s. %s", record.outcome, record.headline)
        folder.write_text("record.json", record.to_json())
        resuming.clean(folder.path)
        with watch("report"):
            distributed.on_main(lambda: write_report(folder.path))
        if config.data.fold is None:  # a fold evaluates the config, and is no version of the model
            distributed.on_main(lambda: register_run(out, folder.path))
    return record.stored_in(folder.path)


def _train_fold(out: str | Path, progress: Progress, config: Config, resume: str | None) -> Record:
    return run(config, out=out, progress=progress, resume=resume)


def _check_single(config: Config) -> None:
    """Check that the config asks for a single training."""
    if config.train.seeds > 1:
        raise ConfigError(
            f"{config.train.seeds} trainings in one run",
            expected="1",
            fix="call fulltune.run_seeds, which `fulltune run` does, or set train.seeds: 1",
            field="train.seeds",
        )


def plan(
    config: ConfigSource | None = None,
    *,
    out: str | Path = "runs",
    overrides: Sequence[str] = (),
    quick: bool = False,
    **options: Any,
) -> Plan:
    """Return the plan of a run: what it does, and the memory and time that it takes.

    The data is loaded and audited, and a few steps are measured on a model that is thrown away. No run is made.

    Args:
        config, out, overrides, options: As in :func:`run`.
        quick: Load no model and measure nothing; memory is computed by a formula, and there is no time.

    Raises:
        FulltuneError: Anything that would stop the run before its first step.
    """
    watch = Stopwatch()
    config = load_config(config, overrides, options=options)
    if quick:
        return _quick_plan(config, out)
    if config.data.is_crossed:
        check_folds(config)
    job = prepare_job(config, out)
    from fulltune.pipeline import stages

    if not config.data.is_crossed:
        return stages.full_plan(job, prepared=watch.total)
    fold = prepare_job(of_fold(config, 1), out, watch)
    return stages.crossed_plan(job, stages.full_plan(fold, prepared=watch.total))


def _quick_plan(config: Config, out: str | Path) -> Plan:
    """Return a plan without measurements; models whose files do not contain their size are loaded for it."""
    inputs, files = check_inputs(config, out)
    model = stored_model.read(files)
    if model is not None:
        return quick_plan(inputs, model)
    job = prepare_job(config, out, inputs=inputs)
    from fulltune.pipeline import stages

    return stages.counted_plan(job)


def evaluate(
    name: str | Path | Record,
    config: ConfigSource | None = None,
    *,
    out: str | Path = "runs",
    overrides: Sequence[str] = (),
    progress: Progress | bool | None = None,
    **options: Any,
) -> EvaluationRecord:
    """Score a model on the evaluation rows of a config.

    Args:
        name: A run (id, record or folder) or a version, scored by its own config, or any checkpoint, which is asked
            zero-shot.
        config: Task and data; the default is the config of the run.
        out: The runs folder.
        overrides: ``a.b=value`` texts, applied last.
        progress: Where stages report: by default a terminal or a notebook; False for nothing, True to report
            everywhere.
        options: Keys of the config, merged over it as in :func:`run`.

    Raises:
        FulltuneError: The run, the model or the data cannot be loaded, or they do not fit each other.
    """
    progress = progress_of(progress)
    name, out = name_and_folder(name, out)
    if config is None:
        config = model_loading.config_path(name, out)
    config = with_chat_date_of(load_config(config, overrides, options=options), name, out)
    refuse_folds(config, "the rows of an evaluation")
    task, _ = checked_task_and_method(config)
    with Warnings() as warned:
        task, data = dataset.prepare(config, task)
        data.eval.table.complete(config.data)
        task.findings({"eval": data.eval.examples})
    task, bundle, system = model_loading.find_model(config, task, name, out)
    config = with_current_chat_date(config, task, bundle)
    from fulltune.pipeline import stages

    prompts = PromptCounter()
    with pinned_kernels(config.speed.kernels), stages.fast_kernels(bundle.model):
        evaluation = stages.score_system(task, bundle, system, data, progress, prompts)
    leaked = model_loading.left_out(name, out, data.eval.table.sha256)
    return stages.evaluation_record(config, task, data, bundle, evaluation, prompts.uses(), warned, leaked)


def compare(a: str | Path | Record, b: str | Path | Record, *, out: str | Path = "runs") -> RunComparison:
    """Compare the tuned models of two runs on the rows that both scored.

    Args:
        a, b: Runs (id, record or folder) or versions.
        out: The runs folder.

    Raises:
        IncompatibleError: The scores of the two runs do not mean the same.
    """
    return compare_folders(evidence(*name_and_folder(a, out)), evidence(*name_and_folder(b, out)))
