"""Find the run, the version or the exported model whose task and labels a model is asked with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from fulltune.config import Config
from fulltune.errors import ConfigError, FulltuneError, Problem, StoreError, did_you_mean
from fulltune.models.sources import exported_folder
from fulltune.records.export import is_export, read_export
from fulltune.records.run import read_record
from fulltune.store.objects import checkpoint_sha256
from fulltune.store.registry.registry import Registry, Version, reference
from fulltune.store.runs import resolve
from fulltune.tasks import dataset
from fulltune.tasks.base import Task

#: Names for the base and the tuned model of the other run that is named, else of the newest.
BASE, TUNED = "base", "tuned"

#: Name for the newest run.
LATEST = "latest"


@dataclass(frozen=True)
class NamedRun:
    """A run, a version or an exported model.

    Attributes:
        name: Its name in a config.
        folder: Its folder.
        out: The folder in which such names are looked up.
    """

    name: str
    folder: Path
    out: Path


def named_run(a: str, b: str | None, out: Path) -> NamedRun:
    """Return the run that the task is read from: the first name that is a run or a version, else the newest run."""
    names = [name for name in (a, b) if name not in (None, BASE, TUNED)]
    for name in map(str, names or ["latest"]):
        exported = exported_folder(name)
        if exported is not None:
            return NamedRun(str(exported), exported, out)
        version = reference(name, out)
        if version is not None:
            return NamedRun(version.ref, Registry(out).checkout(version), out)
        try:
            folder = resolve(name, out)
        except StoreError:
            if not names:
                raise
        else:
            return NamedRun(folder.name, folder, folder.parent)
    raise ConfigError([_without_task(str(name), out) for name in names])


def _without_task(name: str, out: Path) -> Problem:
    """Return the problem that a name has no task: a folder with a model, or neither a run nor a version."""
    expected = "a run or a version, whose task is used"
    fix = "name one (`fulltune models list` shows the versions), or give its task with --config CONFIG"
    if not (Path(name) / "config.json").is_file():
        known = _known(out)
        if name == LATEST and known == [LATEST]:
            return Problem(
                f"there is no run in {out}",
                expected,
                "train one (`fulltune run CONFIG`), or name its folder with --out",
            )
        near = did_you_mean(name, known)
        fix = f"{near} Otherwise {fix}" if near else fix
        return Problem(f"{name!r} is neither a run nor a version", expected, fix)
    version = _version_in(Path(name), Registry(out))
    if version is not None:
        fix = f"use its version {version.ref}, or give the task with --config CONFIG"
    return Problem(f"{name!r} is a model folder without a task", expected, fix)


def _known(out: Path) -> list[str]:
    """Return the names that runs and registered models have."""
    registry = Registry(out)
    runs = [path.parent.name for path in out.glob("*/record.json")]
    return [LATEST, *runs, *(registry.names() if registry.exists else ())]


def _version_in(folder: Path, registry: Registry) -> Version | None:
    """Return the version that a folder with a model was registered as, or None."""
    try:
        return registry.with_sha256(checkpoint_sha256(folder)) if registry.exists else None
    except FulltuneError:  # the message is about the task
        return None


def with_labels(task: Task, settings: Config, run: NamedRun | None) -> Task:
    """Return the task with its label names: from the run's record, else from the rows."""
    if task.head != "classification":
        return task
    if run is not None and is_export(run.folder):
        export = read_export(run.folder)
        task = task.with_facts(replace(task.facts, labels=export.labels, multi_label=export.multi_label))
    elif run is not None and (run.folder / "record.json").is_file():
        details = read_record(run.folder / "record.json").details
        labels, multi_label = tuple(details.get("labels", ())), bool(details.get("multi_label", False))
        task = task.with_facts(replace(task.facts, labels=labels, multi_label=multi_label))
    return task if task.labels else dataset.prepare(settings, task)[0]
