"""The parts of a job: its task, its method, its base model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fulltune.config import Config, load_config
from fulltune.errors import ConfigError, ModelError, Problem, StoreError, did_you_mean
from fulltune.evaluation.retention import check_sets
from fulltune.metrics.base import Metric
from fulltune.models import load as model
from fulltune.models import reconcile
from fulltune.models.bundle import Bundle
from fulltune.models.causality import check_causality
from fulltune.models.fast_paths import require_trainable
from fulltune.models.files import check_config, check_name
from fulltune.models.likelihoods import answer_window
from fulltune.models.load import load_own_head
from fulltune.runtime import distributed, plugins
from fulltune.store.registry.registry import Registry, reference
from fulltune.store.runs import resolve
from fulltune.tasks.base import Features, Task
from fulltune.tasks.chat import check_template, content_fact, reads_clock
from fulltune.tasks.prompts import prompt_room
from fulltune.training import engines
from fulltune.training.batches import buckets
from fulltune.training.methods.base import Method
from fulltune.training.option_check import check_options

if TYPE_CHECKING:
    pass

from collections.abc import Callable
from datetime import date
from typing import Any

from fulltune.models.bundle import Head

#: Positions that must be left for a text: the smallest ``data.max_length``.
_SHORTEST_WINDOW = 8


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
    config: Config, task: Task, out: str | Path, *, head: Head = "lm", labels: Sequence[str] | None = None
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
    bundle = _limited(bundle, config, task)
    return _with_own_head(bundle, config, task, out) if task.head != head else bundle


def _limited(bundle: Bundle, config: Config, task: Task) -> Bundle:
    """Return a bundle whose saved folder ends an answer at the model's last position, as the report does."""
    cap, window, longest = config.evaluation.max_new_tokens, bundle.window, task.longest_input(bundle)
    if task.head != "lm" or bundle.family == "encoder":
        reconcile.set_limits(bundle.model, bundle.tokenizer, longest=longest, max_new_tokens=cap)
        return bundle
    if bundle.family == "encoder-decoder":
        most = min(cap, answer_window(bundle))
        reconcile.set_limits(bundle.model, bundle.tokenizer, longest=longest, max_new_tokens=most)
        fact = f"an answer has {most} positions: max_new_tokens of the saved model is {most}, not {cap}"
        return _noting(bundle, fact if most < cap else "")
    # After the longest prompt that is trained on, so many positions are left; the last token needs none.
    if cap <= window - prompt_room(window, config.data.max_target_length) + 1:
        reconcile.set_limits(bundle.model, bundle.tokenizer, longest=longest, max_new_tokens=cap)
        return bundle
    reconcile.set_limits(bundle.model, bundle.tokenizer, longest=longest, max_new_tokens=cap, max_length=window + 1)
    return _noting(
        bundle,
        f"{cap} new tokens do not fit behind every prompt in {window} positions: the saved model has max_length "
        f"{window + 1} in place of max_new_tokens",
    )


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


def _micro_batches(config: Config, features: Sequence[Features], bundle: Bundle) -> int | None:
    reserved = plugins.load("method", config.method).reserved(config)
    is_encoder_decoder = bundle.family == "encoder-decoder"
    return buckets.micro_batches(config, features, is_encoder_decoder=is_encoder_decoder, reserved=reserved)


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
        found = load_own_head(config.model, task.labels, runs=Path(out), seed=config.train.seed)
        return replace(found, window=base.window)

    return replace(_noting(base, fact), with_own_head=None if obstacle else own)


def _noting(bundle: Bundle, fact: str) -> Bundle:
    """Return a bundle whose record has one more sentence, unless that is empty."""
    if not fact:
        return bundle
    info = bundle.info.model_copy(update={"reconciled": (*bundle.info.reconciled, fact)})
    return replace(bundle, info=info)


def _under_own_head(base: Bundle) -> Bundle:
    """Return the base under the head that it was stored with, if that has the task's labels."""
    return base if base.with_own_head is None else replace(base.with_own_head(), info=base.info)
