"""Load the models that a job names: its base, a tuned model of a run or of the registry, any other checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fulltune.config import Config
from fulltune.data.findings import SHORT_ANSWERS_KIND, Audit
from fulltune.errors import ConfigError, ModelError, StoreError
from fulltune.models.sources import check_name, exported_folder, find
from fulltune.records.export import read_export
from fulltune.records.run import left_out as recorded_left_out
from fulltune.runtime import distributed, plugins
from fulltune.store.registry.registry import Registry, evidence, reference
from fulltune.store.runs import name_and_folder, resolve
from fulltune.tasks.base import Task
from fulltune.tasks.chat import check_template, clock_fact, content_fact
from fulltune.tasks.prompts import prompt_room

if TYPE_CHECKING:
    from fulltune.models.bundle import Bundle, Head

#: Positions that must be left for a text: the smallest ``data.max_length``.
_SHORTEST_WINDOW = 8


def load_model(
    config: Config, task: Task, out: str | Path, *, head: Head = "lm", labels: Sequence[str] | None = None
) -> Bundle:
    """Load the model of a config, with the given head for the labels of the task.

    Args:
        config: Names the model, its languages and the method.
        task: The task that the model is loaded for.
        out: The runs folder; ``model`` may name one of its runs.
        head: ``lm`` (the checkpoint's own head) or ``classification``.
        labels: Label names; the default is those of the task.

    Raises:
        ModelError: The model cannot be loaded, its family does not fit the task, or its chat template fails.
        ConfigError: The tokens that the method puts before every input leave no room for a text.
    """
    distributed.main_first(lambda: find(config.model, Path(out)))  # a wrong name is reported before torch is imported
    from fulltune.models import load as models
    from fulltune.models.fast_paths import require_trainable
    from fulltune.models.files import check_config

    bundle = distributed.main_first(
        lambda: models.load(
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
    bundle = for_task(bundle, config, task)
    if head == task.head and exported_folder(config.model) is None:  # this head will be trained
        require_trainable(bundle.model)
    if task.head == "classification":  # a head that cannot be trained is refused before the baselines run
        check_config(config.model, bundle.model.config, task.head)
    return _with_own_head(bundle, config, task, out) if task.head != head else bundle


def for_task(bundle: Bundle, config: Config, task: Task) -> Bundle:
    """Return a loaded model with the limits of a config, once it is known to fit a task.

    Raises:
        ModelError: Its family does not fit the task, it attends to later tokens, or its chat template fails.
        ConfigError: The tokens that the method puts before every input leave no room for a text.
    """
    from fulltune.models.causality import check_causality

    if bundle.family not in task.families:
        raise ModelError(
            f"{config.model!r} is of the {bundle.family} family ({bundle.info.architecture})",
            expected=f"{' or '.join(task.families)} for the task {task.name}",
            fix="choose another model or another task",
            field="model",
        )
    if task.head == bundle.head == "lm" and bundle.family == "decoder":
        check_causality(config.model, bundle.model)
    check_template(bundle, config.data.chat, task.day)
    bundle = _noting(bundle, content_fact(bundle, config.data.chat, task.day))
    bundle = _noting(bundle, clock_fact(bundle, config.data.chat))
    return _limited(_without_reserved(bundle, config), config, task)


def _without_reserved(bundle: Bundle, config: Config) -> Bundle:
    """Return the bundle with a window that leaves room for the tokens that the method puts before every input.

    The base gets the same window as the tuned model, so that both read the same texts.
    """
    reserved = plugins.load("method", config.method).reserved(config.adapter) - len(bundle.prompt_ids)
    if reserved <= 0:
        return bundle
    window = bundle.window - reserved
    if window < _SHORTEST_WINDOW:
        raise ConfigError(
            f"{reserved} tokens of a model with {bundle.window} positions",
            expected=f"at most {bundle.window - _SHORTEST_WINDOW}, so that a text has room",
            fix="lower adapter.prompt_tokens, or choose a model with more positions",
            field="adapter.prompt_tokens",
        )
    return replace(bundle, window=window)


def _limited(bundle: Bundle, config: Config, task: Task) -> Bundle:
    """Return a bundle whose saved folder ends an answer at the model's last position, as the report does."""
    from fulltune.models import reconcile

    cap, window, longest = config.evaluation.max_new_tokens, bundle.window, task.longest_input(bundle)
    if task.head != "lm" or bundle.family == "encoder":
        reconcile.set_limits(bundle.model, bundle.tokenizer, longest=longest, max_new_tokens=cap)
        return bundle
    if bundle.family == "encoder-decoder":
        most = min(cap, bundle.answer_window)
        reconcile.set_limits(bundle.model, bundle.tokenizer, longest=longest, max_new_tokens=most)
        fact = f"an answer has {most} positions: max_new_tokens of the saved model is {most}, not {cap}"
        return _noting(bundle, fact if most < cap else "")
    # These positions are left after the longest prompt of training; the last token needs none.
    if cap <= window - prompt_room(window, config.data.max_target_length) + 1:
        reconcile.set_limits(bundle.model, bundle.tokenizer, longest=longest, max_new_tokens=cap)
        return bundle
    reconcile.set_limits(bundle.model, bundle.tokenizer, longest=longest, max_new_tokens=cap, max_length=window + 1)
    return _noting(bundle, _in_place(cap, window))


def _in_place(cap: int, window: int) -> str:
    """Return the fact that the saved model limits prompt and answer together."""
    return (
        f"{cap} new tokens do not fit behind every prompt in {window} positions: the saved model has max_length "
        f"{window + 1} in place of max_new_tokens"
    )


def with_limits_of_rows(bundle: Bundle, config: Config, task: Task, audit: Audit) -> Bundle:
    """Return a bundle whose saved folder limits the new tokens alone if they fit behind every prompt of eval.

    Args:
        bundle: The base model; its generation settings are changed in place.
        config: The config.
        task: The task.
        audit: The audit of the rows as the model reads them.
    """
    from fulltune.models import reconcile

    cap = config.evaluation.max_new_tokens
    fact = _in_place(cap, bundle.window)
    if fact not in bundle.info.reconciled or any(finding.kind == SHORT_ANSWERS_KIND for finding in audit.findings):
        return bundle
    reconcile.set_limits(bundle.model, bundle.tokenizer, longest=task.longest_input(bundle), max_new_tokens=cap)
    facts = tuple(other for other in bundle.info.reconciled if other != fact)
    return replace(bundle, info=bundle.info.model_copy(update={"reconciled": facts}))


def find_model(config: Config, task: Task, name: str, out: str | Path) -> tuple[Task, Bundle, str]:
    """Find a tuned model with the head that it was trained with, or any other checkpoint to ask zero-shot.

    Args:
        config: The config whose rows the model is asked.
        task: The task, fitted to those rows.
        name: A run, a version of the registry, the folder of an exported model, or any checkpoint.
        out: The runs folder.

    Returns:
        The task with the labels of the model, the model, and its system: ``tuned`` or ``zero_shot``.
    """
    check_name(name)
    if exported_folder(name) is not None:
        return _tuned(config, task, name, out)
    version = reference(name, out)
    name, out = name_and_folder(name, out)
    is_run = name == "latest" or any(path.parent.name.startswith(name) for path in Path(out).glob("*/model"))
    if version is None and not is_run:
        base = load_model(_with_model(config, name), task, out)
        return task, _under_own_head(base), "zero_shot"
    return _tuned(config, task, version.ref if version else resolve(name, out).name, out)


def _tuned(config: Config, task: Task, name: str, out: str | Path) -> tuple[Task, Bundle, str]:
    """Return a tuned model with the head that it was trained with, and the task with its labels."""
    tuned = load_model(_with_model(config, name), task, out, head=task.head, labels=())
    return task.adopt(tuned), tuned, "tuned"


def _with_model(config: Config, model: str) -> Config:
    return config.model_copy(update={"model": model})


def config_path(run: str, out: str | Path) -> Path:
    """Return the path of the config of a run, of a version of the registry, or of an exported model.

    Raises:
        StoreError: There is no such run or version.
    """
    check_name(run)
    exported = exported_folder(run)
    if exported is not None:
        return exported / "config.yaml"
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


def _with_own_head(base: Bundle, config: Config, task: Task, out: str | Path) -> Bundle:
    """Return a base that can also be loaded with the classification head that it was stored with."""
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
        from fulltune.models.load import load_own_head

        own_head = load_own_head(config.model, task.labels, runs=Path(out), seed=config.train.seed)
        return replace(own_head, window=base.window)

    return replace(_noting(base, fact), with_own_head=None if obstacle else own)


def _noting(bundle: Bundle, fact: str) -> Bundle:
    """Return a bundle with one more fact in its record, unless the fact is empty."""
    if not fact:
        return bundle
    info = bundle.info.model_copy(update={"reconciled": (*bundle.info.reconciled, fact)})
    return replace(bundle, info=info)


def _under_own_head(base: Bundle) -> Bundle:
    """Return the base under the head that it was stored with, if that has the task's labels."""
    return base if base.with_own_head is None else replace(base.with_own_head(), info=base.info)


def left_out(name: str, out: str | Path, eval_sha256: str) -> frozenset[str]:
    """Return the ids of the evaluation rows that the run of a model leaves out of its scores; empty without a run.

    Args:
        name: Run, version, folder of an exported model, or any other model.
        out: The runs folder.
        eval_sha256: Hash of the rows that are scored now.
    """
    folder = exported_folder(name)
    if folder is not None:
        export = read_export(folder)
        return frozenset(export.left_out if export.eval_sha256 == eval_sha256 else ())
    try:
        return recorded_left_out(evidence(name, out), eval_sha256)
    except StoreError:  # any other checkpoint
        return frozenset()
