"""The story of a run, top to bottom. Open this first.

    config → data → base model → audit → plan → baselines → train (guards watching) → evaluate tuned → retention
           → verdict → record → report → registry

Every stage takes what the stages before it returned and reaches back to nothing; each writes its file as it ends, so
that a crash leaves a readable run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fulltune import dataset, recording, stages
from fulltune.baselines import choose_shots
from fulltune.compare import RunComparison
from fulltune.compare import compare as compare_folders
from fulltune.config import Config, dump_config, load_config
from fulltune.plan import Plan
from fulltune.progress import NullProgress, Progress
from fulltune.records import EvaluationRecord, Record
from fulltune.report import write_report
from fulltune.retention import Memory
from fulltune.store.register import register_run
from fulltune.store.runs import RunFolder, new_run_id, resolve

Source = Config | Mapping[str, Any] | str | Path


def run(
    config: Source | None = None,
    *,
    out: str | Path = "runs",
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
    **options: Any,
) -> Record:
    """Tune a model and prove whether that helped.

    Args:
        config: A :class:`Config`, a mapping, or the path of a YAML or JSON file; or nothing, with the same names as
            ``options``.
        out: Where run folders lie.
        overrides: ``a.b=value`` texts, applied last.
        progress: Where stages report; nothing by default.

    Returns:
        The record, as it stands in ``record.json`` of the run folder.

    Raises:
        FulltuneError: One clear message; see :mod:`fulltune.errors`.
    """
    config = stages.pinned(load_config(config if config is not None else options, overrides), out)
    progress, watch = progress or NullProgress(), recording.Stopwatch()
    task, method = stages.parts(config)
    with recording.Warnings() as warned, contextlib.ExitStack() as held:
        with watch("data"):
            data = dataset.prepare(config, task)
        with watch("load"):
            base = stages.load(config, task, out)
        with watch("audit"):
            audit, features, curve = dataset.inspect(config, task, data, base)
        folder = held.enter_context(RunFolder.create(out, new_run_id(config.task, config.model)))
        folder.write_text("config.yaml", dump_config(config))
        audit_file = folder.write_text("audit.json", audit.to_json())
        audit.raise_if_broken(config.data.allow_leaks, where=str(audit_file))
        folder.write_json("plan.json", stages.make_plan(config, task, data, base, features))
        with folder.append("predictions.jsonl") as sink:
            with watch("baselines"):
                shots = choose_shots(task, config, base.family, data.train.examples, data.eval.examples)
                systems = stages.score_baselines(config, task, data, base, shots, Path(out), sink, progress)
                folder.write_json("baselines.json", {name: e.scores(config.evaluation) for name, e in systems.items()})
            with watch("remember"):
                memory = Memory.of(config, base, Path(out), progress)
            with watch("train"):
                student = base if task.head == base.head else stages.load(config, task, out, head=task.head)
                trained = stages.train(config, task, method, student, data, features, curve, memory, folder, progress)
            with watch("save"):
                recording.save_model(student, folder.path / "model")
            with watch("evaluate"):
                systems["tuned"] = stages.score_system(task, student, "tuned", data, progress, sink)
            with watch("retention"):
                kept = memory.compare(student, progress)
        record = recording.build(config, task, data, base, audit, shots, systems, trained, kept, watch, warned, folder)
        folder.write_text("record.json", record.to_json())
        with watch("report"):
            write_report(folder.path)
        register_run(out, folder.path)
    return record


def plan(config: Source, *, out: str | Path = "runs", overrides: Sequence[str] = ()) -> Plan:
    """What a config will do, before it does it: the data is loaded and audited, nothing is trained, no run is made.

    Raises:
        FulltuneError: All that would stop the run before its first step.
    """
    config = load_config(config, overrides)
    task, _ = stages.parts(config)
    data = dataset.prepare(config, task)
    base = stages.load(config, task, out)
    audit, features, _ = dataset.inspect(config, task, data, base)
    audit.raise_if_broken(config.data.allow_leaks)
    return stages.make_plan(config, task, data, base, features)


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
        config = stages.config_of(name, out)
    config = load_config(config, overrides)
    task, _ = stages.parts(config)
    data = dataset.prepare(config, task)
    bundle, system = stages.find_model(config, task, name, out)
    evaluation = stages.score_system(task, bundle, system, data, progress)
    return recording.evaluation_record(config, task, data, bundle, evaluation)


def compare(a: str, b: str, *, out: str | Path = "runs") -> RunComparison:
    """Compare two runs' tuned models on the rows that both scored; refuses runs whose scores do not mean the same
    thing.
    """
    return compare_folders(resolve(a, out), resolve(b, out))
