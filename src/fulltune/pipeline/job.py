"""A job: a config with its task, method, data and base model. Everything that trains starts from one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fulltune.config import Config, load_config
from fulltune.data.audit import Audit
from fulltune.errors import ConfigError, ModelError, Problem, StoreError, did_you_mean
from fulltune.evaluation.retention_sets import check_sets
from fulltune.models.sources import ModelFiles, check_name, exported_folder, find
from fulltune.pipeline.model_loading import config_path, load_model, with_limits_of_rows
from fulltune.runtime import distributed, plugins
from fulltune.runtime.stopwatch import Stopwatch
from fulltune.store.registry.registry import reference
from fulltune.store.runs import resolve
from fulltune.tasks import dataset
from fulltune.tasks.base import Facts, Features, Task
from fulltune.tasks.chat import reads_clock
from fulltune.tasks.dataset import Data
from fulltune.training import defaults, engine_check
from fulltune.training.methods.base import Method
from fulltune.training.option_check import check_options

if TYPE_CHECKING:
    from fulltune.models.bundle import Bundle


@dataclass(frozen=True)
class Inputs:
    """All of a job that needs no model: what can be checked within a second.

    Attributes:
        config: The config; in a job, with the day that its chat template is given, and with the learning rate and the
            epochs that it leaves out.
        task: The task, fitted to the data.
        method: The method, which has not trained anything yet.
        data: All splits, as examples.
        audit: The findings about the rows; in a job, about the training sequences too.
        out: The runs folder.
    """

    config: Config
    task: Task
    method: Method
    data: Data
    audit: Audit
    out: Path


@dataclass(frozen=True)
class Job(Inputs):
    """Everything that is known before the first step of a training.

    Attributes:
        base: The base model. A run trains it in place if it already has the head of the task, so its outputs are
            collected before.
        features: Training sequences.
        curve: Sequences of the evaluation curve.
        chosen: Sentences for the options that were chosen by model and rows, because the config leaves them out.
    """

    base: Bundle
    features: Sequence[Features]
    curve: Sequence[Features]
    chosen: tuple[str, ...] = ()

    def check_audit(self, where: str = "") -> None:
        """Check that the audit reports no error.

        Args:
            where: The file that holds the whole audit.

        Raises:
            DataError: Rows contradict each other, or too many rows of eval also occur in train.
        """
        self.audit.raise_if_broken(where)

    @property
    def left_out(self) -> frozenset[str]:
        """Ids of evaluation rows that do not count in the deciding scores, because they also occur in train."""
        return frozenset() if self.config.data.allow_leaks else frozenset(self.audit.leaked_ids)

    @property
    def kind(self) -> defaults.ModelKind:
        """Family and size of the base."""
        return defaults.ModelKind(self.base.family, self.base.model.num_parameters())

    def with_leaks(self, ids: Iterable[str]) -> Job:
        """Return the job with the ids of evaluation rows that also occur in train, as the folds report them."""
        return replace(self, audit=self.audit.model_copy(update={"leaked_ids": tuple(ids)}))

    def model_to_train(self) -> Bundle:
        """Return the base itself if it has the head of the task, else the checkpoint loaded again with a new head."""
        if self.task.head == self.base.head:
            return self.base
        return self.another_model()

    def another_model(self) -> Bundle:
        """Load the checkpoint again, with the head that is trained."""
        return load_model(self.config, self.task, self.out, head=self.task.head)

    def with_new_base(self) -> Job:
        """Return the job with the base loaded again, for another training of it in place."""
        base = load_model(self.config, self.task, self.out)
        base = with_limits_of_rows(base, self.config, self.task, self.audit)
        return replace(self.with_config(self.config), base=base)

    def with_config(self, config: Config) -> Job:
        """Return the job with another config for the same rows and the same base: only the training differs."""
        config = with_chat_date(config, self.config.data.chat_date)
        task, method = _task(config).with_facts(self.task.facts), _method(config)
        return replace(self, config=config, task=task, method=method).with_defaults()

    def with_defaults(self) -> Job:
        """Return the job with a learning rate and epochs, where the config leaves them out."""
        count = len(self.features)
        batches = self.micro_batches(self.features) if self.config.train.epochs is None else None
        config = defaults.with_defaults(self.config, self.kind, count, batches)
        chosen = defaults.reasons(self.config.train, config.train, self.kind, count)
        return replace(self, config=config, chosen=chosen)

    def micro_batches(self, features: Sequence[Features]) -> int | None:
        """Count the micro-batches of an epoch; None if that is simply rows divided by ``train.batch_size``."""
        from fulltune.training.batches import buckets

        return buckets.micro_batches(
            self.config.speed.batch_tokens,
            features,
            is_encoder_decoder=self.base.family == "encoder-decoder",
            reserved=self.method.reserved(self.config.adapter),
        )


def prepare_job(
    config: Config,
    out: str | Path,
    watch: Stopwatch | None = None,
    *,
    inputs: Inputs | None = None,
    checks_audit: bool = True,
    refuse: Callable[[Audit], object] = Audit.raise_if_broken,
) -> Job:
    """Load, audit and encode the data of a config, and load its base model.

    Several processes share the work: the first one reads and encodes the rows, all load the model. torch is imported
    with the model, after options, files, columns and rows were checked.

    Args:
        config: The config.
        out: The runs folder.
        watch: Records the seconds of the stages ``data``, ``load`` and ``audit``.
        inputs: The inputs of this config, if they were read already.
        checks_audit: Raise the errors of the complete audit; if False, call :meth:`Job.check_audit`.
        refuse: Called with the audit of the rows if it has errors, before the model is loaded. Usually it raises them;
            if it returns, the model is loaded nevertheless.

    Raises:
        FulltuneError: The config, the data or the model cannot be used.
    """
    watch = watch or Stopwatch()
    _refuse_graph(config.model)
    inputs = inputs or _read(config, out, watch)
    task = inputs.task
    data = inputs.data
    rows = inputs.audit
    if rows.is_broken:
        refuse(rows)
    with watch("load"):
        base = load_model(config, task, out)
        config = with_current_chat_date(config, task, base)
    with watch("audit"):
        reader = base.as_read_with(task.head)
        audit, features, curve = distributed.on_main(
            lambda: dataset.inspect(config, task, data, reader, rows, Path(out))
        )
    if checks_audit:
        audit.raise_if_broken()
    base = with_limits_of_rows(base, config, task, audit)
    job = Job(config, task, inputs.method, data, audit, Path(out), base, features, curve)
    return job.with_defaults()


def check_inputs(config: Config, out: str | Path) -> tuple[Inputs, ModelFiles]:
    """Check options, files, columns, rows, and the name of the model, and return them; torch is not imported.

    Commands that import torch at once call this before, so that a mistake is reported within a second.

    Raises:
        FulltuneError: The config, the data or the model cannot be used.
    """
    inputs = _read(config, out, Stopwatch())
    inputs.audit.raise_if_broken()
    return inputs, find(with_resolved_model(config, out).model, Path(out))


def _read(config: Config, out: str | Path, watch: Stopwatch) -> Inputs:
    """Check the options of a config, and read its rows in the first process."""
    task, method = checked_task_and_method(config)
    with watch("data"):
        facts, data, audit = distributed.on_main(lambda: _plain(config, task))
    return Inputs(config, task.with_facts(facts), method, data, audit, Path(out))


def check_rows(config: Config, task: Task) -> None:
    """Check the rows of a config.

    Raises:
        DataError: They cannot be used.
    """
    _plain(config, task)[2].raise_if_broken()


def _plain(config: Config, task: Task) -> tuple[Facts, Data, Audit]:
    """Return plain data only: a task holds what no other process can use, such as open databases."""
    fitted, data = dataset.prepare(config, task)
    return fitted.facts, data, dataset.audit_rows(config, fitted, data)


def checked_task_and_method(config: Config) -> tuple[Task, Method]:
    """Return the task and the method of a config, once its options are checked; nothing is loaded yet.

    Raises:
        ConfigError: Options contradict each other or would be refused later; all problems at once.
    """
    task, method, *_ = all_or_problems(
        lambda: _task(config),
        lambda: _method(config),
        lambda: check_options(config),
        lambda: engine_check.check(config),
        lambda: _check_r_drop(config),
        lambda: _check_class_weights(config),
        lambda: _check_head(config),
        lambda: _check_baselines(config),
        lambda: _check_generation(config),
        lambda: check_sets(config),
    )
    return task, method


def _task(config: Config) -> Task:
    task: Task = plugins.load("task", config.task)(config)
    return task


def _method(config: Config) -> Method:
    method: Method = plugins.load("method", config.method)(config)
    return method


def _check_generation(config: Config) -> None:
    """Check that a temperature is set for texts that are continued, not for answers.

    Raises:
        ConfigError: The task answers.
    """
    if config.generation.temperature > 0 and config.task != "causal-lm":
        raise ConfigError(
            f"{config.generation.temperature:g}, while the task is {config.task}",
            expected="0: only texts are continued by chance (causal-lm)",
            fix="remove it",
            field="generation.temperature",
        )


def _check_r_drop(config: Config) -> None:
    """Check that the task has classes and dropout is on: R-Drop compares two predictions under two dropout masks."""
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
    """Check that the task has classes if they are weighted."""
    if config.train.class_weights == "none" or plugins.load("task", config.task).head == "classification":
        return
    raise ConfigError(
        f"class weights for the task {config.task}, which has no classes",
        expected="a task with classes",
        fix="remove it",
        field="train.class_weights",
    )


def _check_head(config: Config) -> None:
    """Check that the task has a classification head if it is to start in a certain way."""
    if config.head.start == "auto" or plugins.load("task", config.task).head == "classification":
        return
    raise ConfigError(
        f"head.start: {config.head.start} for the task {config.task}, which trains the checkpoint's own head",
        expected="a task with classes",
        fix="remove it",
        field="head.start",
    )


def _check_baselines(config: Config) -> None:
    """Check that the task has the baselines that are switched off."""
    known = plugins.load("task", config.task).baselines
    problems = [
        Problem(
            f"{config.task} has no baseline {name!r}",
            expected=f"some of {', '.join(known)}",
            fix=did_you_mean(name, known) or "remove it",
            field="baselines.skip",
        )
        for name in config.baselines.skip
        if name not in known
    ]
    if problems:
        raise ConfigError(problems)


def all_or_problems(*makers: Callable[[], Any]) -> list[Any]:
    """Call all functions and return their results.

    Raises:
        ConfigError: The problems of all functions that raised one.
    """
    made, problems = list[Any](), list[Problem]()
    for make in makers:
        try:
            made.append(make())
        except ConfigError as error:
            known = {problem.field for problem in problems if problem.field.startswith("trainer.")}
            # A later check of the same option has no other cause.
            problems += [one for one in error.problems if one not in problems and one.field not in known]
    if problems:
        raise ConfigError(problems)
    return made


def with_resolved_model(config: Config, out: str | Path) -> Config:
    """Return the config with an alias of the registry, or ``latest``, replaced by what it names: a base never changes.

    Raises:
        StoreError: ``model: NAME@…`` names a version that does not exist, or there is no run for ``latest``.
        ModelError: The model cannot be trained.
    """
    check_name(config.model)
    _refuse_graph(config.model)
    if config.model == "latest":
        return config.model_copy(update={"model": resolve("latest", out).name})
    version = reference(config.model, out)
    return config if version is None else config.model_copy(update={"model": version.ref})


def _refuse_graph(name: str) -> None:
    """Check that a model can be trained.

    Raises:
        ModelError: It is an ONNX graph.
    """
    if exported_folder(name) is not None and find(name).is_onnx:
        raise ModelError(
            f"{name!r} is an ONNX graph, which cannot be trained",
            expected="a checkpoint",
            fix="name the model that it was exported from",
            field="model",
        )


def with_current_chat_date(config: Config, task: Task, bundle: Bundle) -> Config:
    """Return the config with the current day if the chat template of the model asks for it."""
    if config.data.chat_date is not None or not reads_clock(bundle):
        return config
    return with_chat_date(config, task.day)


def with_chat_date_of(config: Config, name: str, out: str | Path) -> Config:
    """Return the config with the day that a run or a version used, unless the config has one."""
    if config.data.chat_date is not None:
        return config
    try:
        path = config_path(name, out)
    except StoreError:  # any other checkpoint
        return config
    # A run that stopped at its beginning has no config yet.
    return with_chat_date(config, load_config(path).data.chat_date if path.exists() else None)


def with_chat_date(config: Config, day: date | None) -> Config:
    """Return the config with a day for its chat template, unless it has one or the day is None."""
    if day is None or config.data.chat_date is not None:
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"chat_date": day})})
