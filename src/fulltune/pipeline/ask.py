"""Ask a base model and its tuned model the same: ``fulltune compare base tuned --ask "text"``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fulltune.config import Config, load_config
from fulltune.data.values import clean_text
from fulltune.errors import ConfigError, Problem
from fulltune.pipeline.job import checked_task_and_method
from fulltune.pipeline.model_loading import find_model
from fulltune.pipeline.named_run import BASE, TUNED, NamedRun, named_run, with_labels
from fulltune.records.run import Model, Prediction, Record
from fulltune.store.runs import name_and_folder


class Asked(Model):
    """The input and the answer of each model, in the order in which they were asked."""

    task: str
    input: str
    answers: dict[str, Prediction]


def ask(
    text: str,
    a: str | Path | Record,
    b: str | Path | Record | None = None,
    *,
    place: str = "",
    config: str | Path | None = None,
    out: str | Path = "runs",
    overrides: Sequence[str] = (),
) -> Asked:
    """Ask two models the same, one after the other; the same question has the same answer, also with a temperature.

    Args:
        text: The input: a text to classify or to continue, a source, a question.
        a: A run, a version of the registry, any model, or ``base`` or ``tuned`` of the other run that is named, else of
            the newest run.
        b: Likewise; with a run alone, its base and its tuned model are asked.
        place: text2sql: the database.
        config: Task and options if neither model is a run.
        out: Folder of the runs and the registry.
        overrides: ``a.b=value`` texts, applied last.

    Raises:
        FulltuneError: A model, the config or the database cannot be loaded.
    """
    text = _checked(text)
    first, out = name_and_folder(a, out)
    second = None if b is None else name_and_folder(b, out)[0]
    run = named_run(first, second, out) if config is None else None
    settings = load_config(run.folder / "config.yaml" if run else str(config), overrides)
    task = with_labels(checked_task_and_method(settings)[0], settings, run)
    answers = {}
    for name, source in _sides(first, second, settings, run):
        own, bundle, system = find_model(settings, task, source, run.out if run else out)
        answers[name] = own.ask(bundle, system, text, place)
    return Asked(task=task.name, input=text, answers=answers)


def _checked(text: str) -> str:
    """Return the text as rows are read.

    Raises:
        ConfigError: It has bytes that are not UTF-8, as terminals with another encoding send, or is no text.
    """
    cleaned = clean_text(text, may_be_empty=True)
    if isinstance(cleaned, Problem):
        raise ConfigError(cleaned.found, expected=cleaned.expected, fix="write it in UTF-8", field="--ask")
    return cleaned


def _sides(a: str, b: str | None, settings: Config, run: NamedRun | None) -> list[tuple[str, str]]:
    """Return the names to show and the models to load."""
    wanted = (BASE, TUNED) if b is None else (a, b)
    if run is None:
        if {BASE, TUNED} & set(wanted):
            raise ConfigError("one model with --config", expected="two", fix="name both, or leave --config out")
        return [(name, name) for name in wanted]
    known = {BASE: settings.model, TUNED: run.name}
    return [(name, known.get(name, name)) for name in wanted]
