"""The stages that :mod:`fulltune.pipeline` tells the story with, one function each."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fulltune import distributed, machine, model, plugins
from fulltune import plan as planning
from fulltune.baselines import baseline, cache_parts, cached
from fulltune.config import Config, load_config
from fulltune.dataset import Data
from fulltune.errors import ConfigError, ModelError, Problem, StoreError, did_you_mean
from fulltune.evaluate import Evaluation
from fulltune.evaluate import evaluate as score
from fulltune.fast_paths import require_trainable
from fulltune.guards.forgetting import ForgettingGuard
from fulltune.guards.overfitting import OverfittingGuard
from fulltune.kernels.active import fixed
from fulltune.kernels.paths import fast_paths, training_device
from fulltune.methods.base import Method
from fulltune.metrics.base import Metric
from fulltune.model import Bundle
from fulltune.models import reconcile
from fulltune.models.causality import check_causality
from fulltune.models.files import check_config, check_name
from fulltune.progress import Progress
from fulltune.records import Prediction, Step
from fulltune.retention import Memory, check_sets
from fulltune.store.registry import Registry, reference
from fulltune.store.runs import RunFolder, resolve
from fulltune.tasks.base import Example, Features, Task
from fulltune.tasks.chat import check_template, content_fact, reads_clock
from fulltune.training import buckets, checkpoints, costs, engines, general_text
from fulltune.training.fit import TrainingResult, fit
from fulltune.training.option_check import check_options
from fulltune.training.regularize import regularizers

if TYPE_CHECKING:
    from transformers import TrainerCallback

#: Positions that must be left for a text: the smallest ``data.max_length``.
_SHORTEST_WINDOW = 8

Sink = Callable[[Prediction], object]


def parts(config: Config) -> tuple[Task, Method]:
    """The task and the method by name; options of the trainer are checked here, before anything is loaded."""
    task, method, *_ = _all_or_problems(
        lambda: plugins.load("task", config.task)(config),
        lambda: plugins.load("method", config.method)(config),
        lambda: check_options(config),
        lambda: engines.check(config),
        lambda: _check_r_drop(config),
        lambda: _check_class_weights(config),
        lambda: check_sets(config),
    )
    return task, method


def _check_r_drop(config: Config) -> None:
    """R-Drop compares two predictions of a class under two dropout masks, so it needs classes and dropout."""
    if not config.regularize.r_drop:
        return
    field, found = "regularize.r_drop", f"R-Drop for the task {config.task}"
    if plugins.load("task", config.task).head != "classification":
        raise ConfigError(found, expected="a task with classes", fix="remove it", field=field)
    if config.regularize.dropout == 0:
        raise ConfigError(
            "R-Drop without dropout", expected="a dropout above 0", fix="remove regularize.dropout: 0", field=field
        )


def _check_class_weights(config: Config) -> None:
    """Check that the task has classes where they are to be weighted."""
    if config.train.class_weights == "none" or plugins.load("task", config.task).head == "classification":
        return
    raise ConfigError(
        f"class weights for the task {config.task}, which has no classes",
        expected="a task with classes",
        fix="remove it",
        field="train.class_weights",
    )


def _all_or_problems(*makers: Callable[[], Any]) -> list[Any]:
    """What each of them makes, or the config's problems with all of them in one error."""
    made, problems = list[Any](), list[Problem]()
    for make in makers:
        try:
            made.append(make())
        except ConfigError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    if problems:
        raise ConfigError(problems)
    return made


def load(
    config: Config, task: Task, out: str | Path, *, head: model.Head = "lm", labels: Sequence[str] | None = None
) -> Bundle:
    """The config's model, with a head for this task's labels where one is asked for.

    Raises:
        ModelError: It cannot be loaded, is of a family that the task does not take, or its chat template fails.
        ConfigError: What the method puts before every input leaves no room for a text.
    """
    bundle = distributed.main_first(
        lambda: model.load(
            config.model,
            head,
            labels=task.labels if labels is None else labels,
            multi_label=task.multi_label,
            runs=Path(out),
            seed=config.train.seed,
            source_language=config.data.source_language,
            target_language=config.data.target_language,
        )
    )
    if bundle.family not in task.families:
        raise ModelError(
            f"{config.model!r} is of the {bundle.family} family ({bundle.info.architecture})",
            expected=f"{' or '.join(task.families)} for the task {task.name}",
            fix="choose another model or another task",
            field="model",
        )
    if task.head == head == "lm" and bundle.family == "decoder":
        check_causality(config.model, bundle.model)
    if head == task.head:  # this head will be trained
        require_trainable(bundle.model)
    if task.head == "classification":  # the head that will be trained, said before the baselines are asked
        check_config(config.model, bundle.model.config, task.head)
    check_template(bundle, config.data.chat, task.day)
    bundle = _noting(bundle, content_fact(bundle, config.data.chat, task.day))
    # What the method puts before every input has no room for text; base and student read the same texts.
    reserved = plugins.load("method", config.method).reserved(config) - len(bundle.prompt_ids)
    if reserved > 0 and bundle.window - reserved < _SHORTEST_WINDOW:
        raise ConfigError(
            f"{reserved} tokens of a model with {bundle.window} positions",
            expected=f"at most {bundle.window - _SHORTEST_WINDOW}, so that a text has room",
            fix="lower adapter.prompt_tokens, or choose a model with more positions",
            field="adapter.prompt_tokens",
        )
    bundle = replace(bundle, window=bundle.window - max(0, reserved))
    cap = config.evaluation.max_new_tokens
    reconcile.set_limits(bundle.model, bundle.tokenizer, longest=task.longest_input(bundle), max_new_tokens=cap)
    return _with_own_head(bundle, config, task, out) if task.head != head else bundle


def _with_own_head(base: Bundle, config: Config, task: Task, out: str | Path) -> Bundle:
    """Return a base without a head for the task's labels that can be loaded under the head that it was stored with."""
    stored = base.stored_head
    if stored is None or not task.labels:
        return base
    obstacle = stored.obstacle(task.labels, task.multi_label)
    fact = (
        f"zero_shot asks by the names of the labels: the checkpoint's classification head {obstacle}"
        if obstacle
        else "zero_shot asks the checkpoint's own classification head, its classes matched to the labels by name"
    )

    def own() -> Bundle:
        found = model.load_own_head(config.model, task.labels, runs=Path(out), seed=config.train.seed)
        return replace(found, window=base.window)

    return replace(_noting(base, fact), with_own_head=None if obstacle else own)


def _noting(bundle: Bundle, fact: str) -> Bundle:
    """Return a bundle whose record has one more sentence, unless that is empty."""
    if not fact:
        return bundle
    info = bundle.info.model_copy(update={"reconciled": (*bundle.info.reconciled, fact)})
    return replace(bundle, info=info)


def pinned(config: Config, out: str | Path) -> Config:
    """The config with an alias of the registry made a version: a run never changes its base midway.

    Raises:
        StoreError: ``model: NAME@…`` names what the registry has not.
    """
    check_name(config.model)
    version = reference(config.model, out)
    return config if version is None else config.model_copy(update={"model": version.ref})


def dated(config: Config, task: Task, bundle: Bundle) -> Config:
    """Return the config with the day that chat templates are told, where this model's asks for one."""
    if config.data.chat_date is not None or not reads_clock(bundle):
        return config
    return _on_day(config, task.day)


def dated_as(config: Config, name: str, out: str | Path) -> Config:
    """Return the config with the day on which a run or a version was asked, unless it names one itself."""
    if config.data.chat_date is not None:
        return config
    try:
        day = load_config(config_of(name, out)).data.chat_date
    except StoreError:  # any other checkpoint
        return config
    return config if day is None else _on_day(config, day)


def _on_day(config: Config, day: date) -> Config:
    return config.model_copy(update={"data": config.data.model_copy(update={"chat_date": day})})


def config_of(run: str, out: str | Path) -> Path:
    """The config that a run left in its folder, or that a version of the registry was made with."""
    check_name(run)
    version = reference(run, out)
    if version is not None:
        return Registry(out).checkout(version) / "config.yaml"
    try:
        return resolve(run, out) / "config.yaml"
    except StoreError as error:
        fix = "name a run, or give a config (--config) to score any other model"
        raise StoreError(
            error.problems[0].found, expected=error.problems[0].expected, where=str(out), fix=fix
        ) from None


def find_model(config: Config, task: Task, name: str, out: str | Path) -> tuple[Bundle, str]:
    """A run's or version's tuned model with the head it was trained with, or any other checkpoint, zero-shot."""
    check_name(name)
    version = reference(name, out)
    is_run = name == "latest" or any(path.parent.name.startswith(name) for path in Path(out).glob("*/model"))
    known = version.ref if version else resolve(name, out).name if is_run else name
    chosen = config.model_copy(update={"model": known})
    if version is None and not is_run:
        base = load(chosen, task, out)
        return _under_own_head(base), "zero_shot"
    bundle = load(chosen, task, out, head=task.head, labels=())
    task.adopt(bundle)
    return bundle, "tuned"


def _under_own_head(base: Bundle) -> Bundle:
    """Return the base under the head that it was stored with, if that has the task's labels."""
    return base if base.with_own_head is None else replace(base.with_own_head(), info=base.info)


def make_plan(
    config: Config, task: Task, data: Data, base: Bundle, features: Sequence[Features], unscored: int = 0
) -> planning.Plan:
    """The plan of a job whose data and base are known, where ``unscored`` evaluation rows cannot be scored.

    Raises:
        ConfigError: The job cannot work.
    """
    _check_base(base)
    _all_or_problems(lambda: choosing_metric(config, task), lambda: general_text.check(config, task.head, base))
    replayed = costs.replayed(config, len(features))
    _check_drop_last(config, len(features) + replayed)
    sequences = [*features, *general_text.stand_ins(replayed)]
    mean = sum(len(item.input_ids) for item in features) / max(1, len(features))
    plan = planning.build_plan(
        config,
        train_rows=len(data.train.examples),
        eval_rows=len(data.eval.examples),
        valid_rows=len(data.valid.examples) if data.valid else 0,
        sequences=len(features) + replayed,
        tokens=round(mean * (len(features) + replayed)),
        parameters=base.model.num_parameters(),
        machine_memory=machine.memory_bytes(),
        baselines=task.baselines,
        batches=_micro_batches(config, sequences, base),
        padding=buckets.padding_shares(config, sequences),
        unscored=unscored,
    )
    with fixed(config.speed.kernels) as choices:
        return plan.model_copy(update={"fast_paths": fast_paths(training_device(config), config, choices)})


def _check_drop_last(config: Config, rows: int) -> None:
    """Check that an epoch has a batch where batches that are not full are dropped."""
    batch = config.train.batch_size
    if config.trainer.get("dataloader_drop_last") and rows < batch:
        raise ConfigError(
            f"{rows} training sequences, which are no full batch of {batch}, and all others are dropped",
            expected="at least one batch per epoch",
            fix="remove it, or lower train.batch_size",
            field="trainer.dataloader_drop_last",
        )


def _micro_batches(config: Config, features: Sequence[Features], bundle: Bundle) -> int | None:
    reserved = plugins.load("method", config.method).reserved(config)
    is_encoder_decoder = bundle.family == "encoder-decoder"
    return buckets.micro_batches(config, features, is_encoder_decoder=is_encoder_decoder, reserved=reserved)


def _check_base(base: Bundle) -> None:
    """A soft prompt would learn along, and is no part of what is saved."""
    if base.prompt_ids:
        raise ModelError(
            f"{base.info.source!r} is a base with a soft prompt",
            expected="a model whose weights are all that it is",
            fix="train its base, or evaluate it as it is",
            field="model",
        )


def score_baselines(
    config: Config,
    task: Task,
    data: Data,
    base: Bundle,
    shots: Sequence[Example],
    out: Path,
    sink: Sink,
    progress: Progress,
) -> dict[str, Evaluation]:
    """Every baseline of the task, from the cache where the same was asked before."""
    key = cache_parts(task, config, base, data.train.table, data.eval.table)
    systems = {}
    for name in task.baselines:
        with progress.stage(name, total=len(data.eval.examples), unit="row") as bar:
            predict = baseline(name, task, base, data.train.examples, shots)
            if name in ("zero_shot", "few_shot"):
                predict = distributed.together(predict)
            predict = cached(predict, name, key, out, bar.advance)
            systems[name] = score(predict, data.eval.examples, task.metrics, system=name, sink=sink)
    return systems


def train(
    config: Config,
    task: Task,
    method: Method,
    student: Bundle,
    data: Data,
    features: Sequence[Features],
    curve: Sequence[Features],
    memory: Memory,
    folder: RunFolder,
    progress: Progress,
    callbacks: Sequence[TrainerCallback] = (),
) -> TrainingResult:
    """Train the student in place, from the newest checkpoint in the folder where there is one; every logged step goes
    to ``steps.jsonl`` and moves the bar.
    """
    resume = distributed.once(lambda: checkpoints.newest(folder.path))
    if distributed.is_main():
        _cut_steps(folder.path / "steps.jsonl", resume)
    general = general_features(config, memory.base, folder.path.parent)
    features = general_text.mixed(features, general, costs.replayed(config, len(features)))
    total, seen = planning.total_steps(config, len(features), _micro_batches(config, features, student)), 0
    with folder.append("steps.jsonl") as log, progress.stage("train", total=total, unit="step") as bar:

        def on_step(step: Step, steps: int) -> None:
            nonlocal seen
            log(step)
            bar.advance(step.step - seen, note="" if step.loss is None else f"loss {step.loss:.4g}")
            seen = step.step

        task.begin(student, data.train.examples)
        weights = task.class_weights(data.train.examples)
        trained = fit(
            student,
            method,
            features,
            curve,
            config,
            output_dir=folder.path,
            class_weights=weights,
            on_step=on_step,
            callbacks=[*guards(config, task, student, data, memory), *callbacks],
            regularize=lambda prepared: regularizers(config, memory.base, prepared, general),
            checkpoints=config.checkpoints,
            resume=resume,
        )
    known = memory.base.info.reconciled
    return replace(trained, reconciled=tuple(fact for fact in student.info.reconciled if fact not in known))


def _cut_steps(file: Path, resume: Path | None) -> None:
    """What was logged after the checkpoint comes again."""
    if not file.exists():
        return
    written = 0
    if resume is not None:
        state = json.loads((resume / "trainer_state.json").read_text(encoding="utf-8"))
        written = state["stateful_callbacks"]["StepLog"]["attributes"]["written"]
    with file.open("r+b") as lines:
        lines.truncate(sum(len(line) for line, _ in zip(lines, range(written), strict=False)))


def general_features(config: Config, base: Bundle, out: Path) -> list[Features]:
    """General text as training sequences, where a regularizer needs any."""
    if not costs.needs_general_text(config):
        return []
    return general_text.encode(base, general_text.general_text(config, base, out))


def guards(config: Config, task: Task, student: Bundle, data: Data, memory: Memory) -> list[TrainerCallback]:
    """What watches this training."""
    watching = (overfitting_guard(config, task, student, data), forgetting_guard(config, student, memory))
    return [guard for guard in watching if guard is not None]


def forgetting_guard(config: Config, student: Bundle, memory: Memory) -> ForgettingGuard | None:
    """Stops training that forgets; otherwise retention is scored once, at the end."""
    settings = config.guards.forgetting
    if settings is None or settings.action != "stop":
        return None
    return ForgettingGuard(lambda: memory.compare(student), settings.budget)


def overfitting_guard(config: Config, task: Task, student: Bundle, data: Data) -> OverfittingGuard | None:
    """Chooses the best step on the validation rows that the curve is drawn on; none where there are no such rows."""
    settings = config.guards.overfitting
    if settings is None or data.valid is None or not config.train.evaluations:
        return None
    metric = choosing_metric(config, task)
    if metric is None:
        return OverfittingGuard("loss", settings.patience, settings.min_delta)

    def scorer() -> dict[str, float]:
        predict = distributed.together(task.predictor(student, "tuned"))
        found = score(predict, data.shown, (metric,), system="tuned")
        return {metric.name: found.value(metric.name)}

    higher = metric.direction == "higher"
    return OverfittingGuard(metric.name, settings.patience, settings.min_delta, higher, scorer)


def choosing_metric(config: Config, task: Task) -> Metric | None:
    """The task's metric that the best step is chosen by; None for the evaluation loss.

    Raises:
        ConfigError: ``guards.overfitting.metric`` is neither a metric of the task nor ``loss``.
    """
    asked = config.guards.overfitting.metric if config.guards.overfitting else None
    if asked is None:
        return task.metrics[0] if task.head == "classification" else None
    known = {metric.name: metric for metric in task.metrics}
    name = asked.removeprefix("eval_")
    if name != "loss" and name not in known:
        raise ConfigError(
            f"{asked!r} is no metric of {task.name}",
            expected=f"one of loss, {', '.join(known)}",
            fix=did_you_mean(name, ["loss", *known]) or "choose one of these",
            field="guards.overfitting.metric",
        )
    return known.get(name)


def score_system(
    task: Task, bundle: Bundle, system: str, data: Data, progress: Progress, sink: Sink = lambda prediction: None
) -> Evaluation:
    """A model on the evaluation rows, without shots."""
    with progress.stage(system, total=len(data.eval.examples), unit="row") as bar:
        predict = distributed.together(task.predictor(bundle, system))
        return score(predict, data.eval.examples, task.metrics, system=system, sink=sink, advance=bar.advance)
