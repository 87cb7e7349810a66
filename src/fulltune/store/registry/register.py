"""Register finished runs, and models that were made from runs, as versions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from fulltune.errors import FulltuneError, Problem, StoreError
from fulltune.records.run import Record, Score, read_record
from fulltune.runtime.files import file_sha256
from fulltune.runtime.version import __version__
from fulltune.store.objects import checkpoint_sha256
from fulltune.store.registry.registry import Lineage, Registry, Version
from fulltune.store.runs import slug

#: Files of a run that are kept with its model: what is needed to compare it with another and to score it again.
_EVIDENCE = ("config.yaml", "record.json", "predictions.jsonl")


def register_run(out: str | Path, folder: Path) -> Version:
    """Register a run's result as a version of the model that is named after its task and base.

    A run that started from a version becomes the next version of the same model, if the task is the same.

    Raises:
        StoreError: The run has no record or no model, or the registry cannot be written.
    """
    registry = Registry(out)
    record = read_record(folder / "record.json")
    parent = registry.with_sha256(record.model.sha256)
    same = parent is not None and parent.lineage.task == record.task
    lineage = _lineage(record, folder, record.run_id, "run", [parent] if parent else [])
    files = {name: folder / name for name in _EVIDENCE if (folder / name).is_file()}
    files |= _files(folder / "model") | (_files(folder / "adapter") if (folder / "adapter").is_dir() else {})
    try:
        return registry.add(
            parent.name if parent and same else model_name(record.task, record.model.source),
            files,
            sha256=checkpoint_sha256(folder / "model"),
            outcome=record.outcome,
            headline=record.headline,
            lineage=lineage,
        )
    except FulltuneError as error:
        fix = f"fix this, then `fulltune models register {record.run_id}`; the run itself is complete"
        raise StoreError([Problem(p.found, p.expected, fix, p.where, p.field) for p in error.problems]) from error


def register_derived(
    out: str | Path,
    model: Path,
    *,
    of: Sequence[Path],
    kind: Literal["interpolation", "soup"],
    source: str,
    metric: str = "",
    score: Score | None = None,
) -> Version | None:
    """Register a model that was made from runs, with their versions as parents.

    Args:
        out: Folder of the registry.
        model: Folder of the new model.
        of: Folders of the runs; task and rows are those of the first one.
        kind: The operation that made it.
        source: The same in words, e.g. ``the interpolation of RUN at 0.5``.
        metric, score: Its deciding score on the evaluation rows, if it was scored.

    Returns:
        The version, or None if there is no registry or no run.
    """
    registry = Registry(out)
    runs = [folder for folder in of if (folder / "record.json").is_file()]
    if not registry.exists or not runs:
        return None
    record = read_record(runs[0] / "record.json")
    versions = [registry.with_sha256(checkpoint_sha256(folder / "model")) for folder in runs]
    parents = [version for version in versions if version is not None]
    lineage = _lineage(record, runs[0], source, kind, parents)
    name = parents[0].name if parents else model_name(record.task, record.model.source)
    files = {"config.yaml": runs[0] / "config.yaml"} | _files(model, "model")
    return registry.add(
        name,
        files,
        sha256=checkpoint_sha256(model),
        outcome="unjudged",
        lineage=lineage,
        metric=metric,
        score=score,
    )


def model_name(task: str, base: str) -> str:
    """Return a model's name from a task and the name of a base, e.g. ``causal-lm-gpt2``.

    The name begins with the task and has no slash, so that it never hides a hub id.
    """
    parts = [part for part in re.split(r"[/\\:]", base) if part not in ("", "model", ".", "..", "~")]
    kind = "starter-" if base.startswith("starter:") else ""
    return f"{slug(task)}-{kind}{slug(parts[-1] if parts else 'model')}"


def _lineage(
    record: Record, folder: Path, source: str, origin: Literal["run", "interpolation", "soup"], parents: list[Version]
) -> Lineage:
    return Lineage(
        source=source,
        kind=origin,
        task=record.task,
        method=record.method,
        base=record.model,
        train_sha256=record.data.train.sha256,
        eval_sha256=record.data.eval.sha256,
        config_sha256=file_sha256(folder / "config.yaml"),
        fulltune=__version__ if origin != "run" else record.fulltune,
        parents=tuple(dict.fromkeys(version.ref for version in parents)),
    )


def _files(folder: Path, name: str = "") -> dict[str, Path]:
    """Return every file below a folder by its path in the version."""
    inner = name or folder.name
    files = {f"{inner}/{path.relative_to(folder).as_posix()}": path for path in folder.rglob("*") if path.is_file()}
    if not files:
        raise StoreError(f"there is no {inner}", expected="files as save_pretrained writes them", where=str(folder))
    return files
