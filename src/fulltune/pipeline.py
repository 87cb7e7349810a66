"""The story of a run, top to bottom. Open this first.

    config → data → base model → audit → plan → baselines → train → evaluate tuned → verdict → record → report

Every stage takes what the stages before it returned and reaches back to nothing; each writes its file as it ends, so
that a crash leaves a readable run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fulltune import dataset, machine, model, plugins, recording
from fulltune import plan as planning
from fulltune.baselines import baseline, cache_parts, cached, choose_shots
from fulltune.compare import RunComparison
from fulltune.compare import compare as compare_folders
from fulltune.config import Config, dump_config, load_config
from fulltune.dataset import Data
from fulltune.errors import ModelError
from fulltune.evaluate import Evaluation
from fulltune.evaluate import evaluate as score
from fulltune.methods.base import Method
from fulltune.model import Bundle
from fulltune.progress import NullProgress, Progress
from fulltune.records import EvaluationRecord, Record, Step
from fulltune.report import write_report
from fulltune.store.runs import RunFolder, new_run_id, resolve
from fulltune.tasks.base import Example, Features, Predictor, Task
from fulltune.training.arguments import training_arguments
from fulltune.training.fit import TrainingResult, fit

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
    config = load_config(config if config is not None else options, overrides)
    progress, watch = progress or NullProgress(), recording.Stopwatch()
    task, method = _parts(config)
    with RunFolder.create(out, new_run_id(config.task, config.model)) as folder, recording.Warnings() as warned:
        folder.write_text("config.yaml", dump_config(config))
        with watch("data"):
            data = dataset.prepare(config, task)
        with watch("load"):
            base = _load(config, task, out)
        with watch("audit"):
            audit, features, curve = dataset.inspect(config, task, data, base)
            audit_file = folder.write_text("audit.json", audit.to_json())
            audit.raise_if_broken(config.data.allow_leaks, where=str(audit_file))
            folder.write_json("plan.json", _plan(config, task, data, base, features))
        with folder.append("predictions.jsonl") as sink:
            with watch("baselines"):
                shots = choose_shots(task, config, base.family, data.train.examples, data.eval.examples)
                systems = _baselines(config, task, data, base, shots, Path(out), sink, progress)
                folder.write_json("baselines.json", {name: e.scores(config.evaluation) for name, e in systems.items()})
            with watch("train"):
                student = base if task.head == base.head else _load(config, task, out, head=task.head)
                trained = _train(config, task, method, student, data, features, curve, folder, progress)
            with watch("save"):
                recording.save_model(student, folder.path / "model")
            with watch("evaluate"):
                systems["tuned"] = _score(task.predictor(student, "tuned"), "tuned", task, data, sink, progress)
        record = recording.build(config, task, data, base, audit, shots, systems, trained, watch, warned, folder)
        folder.write_text("record.json", record.to_json())
        with watch("report"):
            write_report(folder.path)
    return record


def plan(config: Source, *, out: str | Path = "runs", overrides: Sequence[str] = ()) -> planning.Plan:
    """What a config will do, before it does it: the data is loaded and audited, nothing is trained, no run is made.

    Raises:
        FulltuneError: All that would stop the run before its first step.
    """
    config = load_config(config, overrides)
    task, _ = _parts(config)
    data = dataset.prepare(config, task)
    base = _load(config, task, out)
    audit, features, _ = dataset.inspect(config, task, data, base)
    audit.raise_if_broken(config.data.allow_leaks)
    return _plan(config, task, data, base, features)


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
        config = resolve(name, out) / "config.yaml"
    config = load_config(config, overrides)
    task, _ = _parts(config)
    data = dataset.prepare(config, task)
    bundle, system = _find_model(config, task, name, out)
    evaluation = _score(task.predictor(bundle, system), system, task, data, lambda prediction: None, progress)
    return recording.evaluation_record(config, task, data, bundle, evaluation)


def compare(a: str, b: str, *, out: str | Path = "runs") -> RunComparison:
    """Compare two runs' tuned models on the rows that both scored; refuses runs whose scores do not mean the same
    thing.
    """
    return compare_folders(resolve(a, out), resolve(b, out))


def _parts(config: Config) -> tuple[Task, Method]:
    """The task and the method by name; options of the trainer are checked here, before anything is loaded."""
    task: Task = plugins.load("task", config.task)(config)
    method: Method = plugins.load("method", config.method)(config)
    training_arguments(config, Path("unused"), rows=1)
    return task, method


def _load(
    config: Config, task: Task, out: str | Path, *, head: model.Head = "lm", labels: Sequence[str] | None = None
) -> Bundle:
    bundle = model.load(
        config.model,
        head,
        labels=task.labels if labels is None else labels,
        multi_label=task.multi_label,
        runs=Path(out),
        seed=config.train.seed,
    )
    if bundle.family not in task.families:
        raise ModelError(
            f"{config.model!r} is of the {bundle.family} family ({bundle.info.architecture})",
            expected=f"{' or '.join(task.families)} for the task {task.name}",
            fix="choose another model or another task",
            field="model",
        )
    return bundle


def _find_model(config: Config, task: Task, name: str, out: str | Path) -> tuple[Bundle, str]:
    """A run's tuned model with the head it was trained with, or any other checkpoint, which answers zero-shot."""
    is_run = name == "latest" or any(path.parent.name.startswith(name) for path in Path(out).glob("*/model"))
    chosen = config.model_copy(update={"model": resolve(name, out).name if is_run else name})
    if not is_run:
        return _load(chosen, task, out), "zero_shot"
    bundle = _load(chosen, task, out, head=task.head, labels=())
    task.adopt(bundle)
    return bundle, "tuned"


def _plan(config: Config, task: Task, data: Data, base: Bundle, features: Sequence[Features]) -> planning.Plan:
    return planning.build_plan(
        config,
        train_rows=len(data.train.examples),
        eval_rows=len(data.eval.examples),
        valid_rows=len(data.valid.examples) if data.valid else 0,
        sequences=len(features),
        tokens=sum(len(item.input_ids) for item in features),
        parameters=base.model.num_parameters(),
        machine_memory=machine.memory_bytes(),
        baselines=task.baselines,
    )


def _baselines(
    config: Config,
    task: Task,
    data: Data,
    base: Bundle,
    shots: Sequence[Example],
    out: Path,
    sink: Any,
    progress: Progress,
) -> dict[str, Evaluation]:
    """Every baseline of the task, from the cache where the same was asked before."""
    key = cache_parts(task, config, base, data.train.table, data.eval.table)
    systems = {}
    for name in task.baselines:
        with progress.stage(name, total=len(data.eval.examples), unit="row") as bar:
            predict = baseline(name, task, base, data.train.examples, shots)
            predict = cached(predict, name, key, out, bar.advance)
            systems[name] = score(predict, data.eval.examples, task.metrics, system=name, sink=sink)
    return systems


def _train(
    config: Config,
    task: Task,
    method: Method,
    student: Bundle,
    data: Data,
    features: Sequence[Features],
    curve: Sequence[Features],
    folder: RunFolder,
    progress: Progress,
) -> TrainingResult:
    total, seen = planning.total_steps(config, len(features)), 0
    with folder.append("steps.jsonl") as log, progress.stage("train", total=total, unit="step") as bar:

        def on_step(step: Step, steps: int) -> None:
            nonlocal seen
            log(step)
            bar.advance(step.step - seen, note="" if step.loss is None else f"loss {step.loss:.4g}")
            seen = step.step

        weights = task.class_weights(data.train.examples)
        return fit(
            student, method, features, curve, config, output_dir=folder.path, class_weights=weights, on_step=on_step
        )


def _score(predict: Predictor, system: str, task: Task, data: Data, sink: Any, progress: Progress) -> Evaluation:
    with progress.stage(system, total=len(data.eval.examples), unit="row") as bar:
        return score(predict, data.eval.examples, task.metrics, system=system, sink=sink, advance=bar.advance)
