"""Find the model to export, its task, and the rows on which the exported model is compared with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fulltune.config import Config, ConfigSource, load_config, refuse_folds
from fulltune.errors import ConfigError, ModelError
from fulltune.models.sources import exported_folder, find
from fulltune.pipeline import model_loading
from fulltune.pipeline.job import checked_task_and_method, with_chat_date_of, with_current_chat_date
from fulltune.pipeline.named_run import NamedRun, named_run
from fulltune.tasks import dataset
from fulltune.tasks.base import Example, Task

if TYPE_CHECKING:
    from fulltune.models.bundle import Bundle
    from fulltune.tasks.dataset import Data

#: Name of a file of rows in the config of a model without rows.
_NO_ROWS = "rows.jsonl"


@dataclass(frozen=True)
class Original:
    """The model to export.

    Attributes:
        name: Its name for people.
        config: Task and data.
        task: The task, with the labels of the model.
        bundle: The model.
        data: The rows of the config; None if there are none.
        left_out: Ids of evaluation rows that do not count.
    """

    name: str
    config: Config
    task: Task
    bundle: Bundle
    data: Data | None
    left_out: frozenset[str]

    @property
    def rows(self) -> Sequence[Example]:
        """The evaluation rows."""
        return () if self.data is None else self.data.eval.examples

    @property
    def other_rows(self) -> tuple[str, Sequence[Example]]:
        """Rows that are not scored, for choices, and the name of their split: validation rows, else training rows.

        Rows that are also evaluation rows are left out.
        """
        if self.data is None:
            return "", ()
        split, name = (self.data.valid, "valid") if self.data.valid is not None else (self.data.train, "train")
        scored = {example.input for example in self.rows}
        return name, [example for example in split.examples if example.input not in scored]


def original(
    name: str,
    config: ConfigSource | None,
    data: Sequence[str],
    out: Path,
    overrides: Sequence[str],
    options: Mapping[str, Any],
) -> Original:
    """Load the model to export, and the rows to compare it on.

    Args:
        name: A run, a version of the registry, a local folder, or any other checkpoint.
        config: Task and data; by default those of the run, else inferred from the checkpoint.
        data: Files with the rows to compare on, in place of the evaluation rows of the config.
        out: Folder of the runs and the registry.
        overrides: ``a.b=value`` texts.
        options: Keys of the config.

    Raises:
        FulltuneError: The model or the rows cannot be used.
    """
    if exported_folder(name) is not None:
        raise ModelError(f"{name!r} is an exported model", expected="the model that it was made from", field="MODEL")
    run = _run(name, out)
    chosen, has_rows = config or (run.folder / "config.yaml" if run else None), True
    if data:
        options = {**options, "data": {**options.get("data", {}), "eval": list(data)}}
    if chosen is None:
        chosen, has_rows = _inferred(name, out, data), bool(data)
    settings = with_chat_date_of(load_config(chosen, overrides, options=options), name, out)
    refuse_folds(settings, "the rows of a comparison")
    task, _ = checked_task_and_method(settings)
    rows = None
    if has_rows:
        task, rows = dataset.prepare(settings, task)
        rows.eval.table.complete(settings.data)
    if run is not None:
        task, bundle, _ = model_loading.find_model(settings, task, name, out)
    else:
        bundle = model_loading.load_model(
            settings.model_copy(update={"model": name}), task, out, head=task.head, labels=()
        )
        _check_head(name, bundle, task)
        task = task.adopt(bundle)
    left_out = model_loading.left_out(name, out, rows.eval.table.sha256) if rows is not None else frozenset[str]()
    return Original(
        run.name if run else name, with_current_chat_date(settings, task, bundle), task, bundle, rows, left_out
    )


def _run(name: str, out: Path) -> NamedRun | None:
    """Return a run or a version; None for any other model."""
    try:
        return named_run(name, None, out)
    except ConfigError:
        return None


def _inferred(name: str, out: Path, data: Sequence[str]) -> dict[str, Any]:
    """Return a config for a checkpoint without one.

    Raises:
        ConfigError: The task of the checkpoint is not known.
    """
    files = find(name, out)
    from transformers import AutoConfig

    from fulltune.models.bundle import family_of
    from fulltune.models.files import errors_of

    with errors_of(name, files.folder):
        model = AutoConfig.from_pretrained(**files.kwargs)
    is_classifier = any("ForSequenceClassification" in kind for kind in model.architectures or ())
    tasks = {"decoder": "causal-lm", "encoder-decoder": "seq2seq"}
    task = "classification" if is_classifier else tasks.get(family_of(model))
    if task is None:
        raise ConfigError(
            f"{name!r} has no head for a task",
            expected="a run, or a checkpoint with a classification or language-modeling head",
            fix="name the run that tuned it, or its task with --config",
            field="MODEL",
        )
    rows = list(data) or [_NO_ROWS]
    return {"model": name, "task": task, "data": {"train": rows, "eval": rows}}


def _check_head(name: str, bundle: Bundle, task: Task) -> None:
    """Check that the head of a checkpoint was not made just now.

    Raises:
        ModelError: It was.
    """
    if bundle.fresh:
        raise ModelError(
            f"{name!r} has no trained head for {task.name}",
            expected="a tuned model",
            fix="name the run that tuned it",
            field="MODEL",
        )
