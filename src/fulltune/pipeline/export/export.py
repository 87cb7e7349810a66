"""Export a model: write it, load it back, compare it with the original, and keep it if it is not worse."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fulltune.config import ConfigSource, dump_config
from fulltune.errors import ConfigError, ExportRefused, ModelError, StoreError
from fulltune.evaluation.verdict import MARGIN
from fulltune.metrics import wording
from fulltune.pipeline.export.formats import Form, form_of
from fulltune.records.export import EXPORT_FILE, Export, ExportedFile, Parent
from fulltune.records.run import Record
from fulltune.runtime import paths
from fulltune.runtime.clock import now
from fulltune.runtime.files import (
    advising,
    atomic_text,
    file_sha256,
    files_sha256,
    remove,
    remove_abandoned,
    store_errors,
    sync_folder,
    unfinished_path,
)
from fulltune.runtime.progress import Progress, progress_of
from fulltune.runtime.version import __version__
from fulltune.store.registry.registry import Registry, reference
from fulltune.store.runs import name_and_folder

if TYPE_CHECKING:
    from fulltune.models.bundle import Bundle
    from fulltune.pipeline.export.original import Original

#: Endings of files with weights.
_WEIGHTS = (".safetensors", ".onnx", ".data", ".gguf")


def export(
    name: str | Path | Record,
    folder: str | Path,
    *,
    format: str,
    margin: float | None = None,
    force: str = "",
    data: str | Path | Sequence[str | Path] = (),
    config: ConfigSource | None = None,
    out: str | Path = "runs",
    overrides: Sequence[str] = (),
    progress: Progress | bool | None = None,
    **options: Any,
) -> Export:
    """Write a model in another format, and compare it with the original on the run's evaluation rows.

    The folder can be used wherever a command takes a model. ``export.json`` in it has the comparison. The registry
    keeps the files under the version of the original, if it is one.

    Args:
        name: A run, a version of the registry, a local folder, or any other checkpoint.
        folder: The folder to write; it must be empty or not exist.
        format: ``safetensors-bf16``, ``onnx``, ``onnx-int8``, ``gguf-f16`` or ``gguf-q8_0``.
        margin: Smallest loss that matters: 0.01, the default, is a point of a score between 0 and 1, and 1% of any
            other. A model that loses as much is refused.
        force: A reason to write the model although it loses more; it is recorded.
        data: Files with the rows to compare on, in place of the evaluation rows of the run.
        config: Task and columns; by default those of the run.
        out: The runs folder.
        overrides: ``a.b=value`` texts, applied last.
        progress: Where stages report: by default a terminal or a notebook; False for nothing.
        options: Keys of the config.

    Raises:
        ExportRefused: The exported model is worse than the margin allows; nothing was written.
        FulltuneError: The model cannot be loaded or has no exporter, or the folder cannot be written.
    """
    form = form_of(format)
    _check_margin(margin)
    folder = _checked_target(paths.user_path(folder))
    reports = progress_of(progress)
    name, out = name_and_folder(name, out)
    from fulltune.pipeline.export.original import original

    files = [str(data)] if isinstance(data, str | Path) else list(map(str, data))
    source = original(name, config, files, Path(out), overrides, options)
    _check_plain(source)
    with advising("name another folder"), _unfinished(folder) as place:
        with reports.stage("write"), store_errors(folder):
            quantization = form.write(source, place, MARGIN if margin is None else margin, reports)
            (place / "config.yaml").write_text(dump_config(source.config), encoding="utf-8")
        described = _described(source, form, place).model_copy(update={"quantization": quantization})
        record = _compared(source, form, place, described, margin, reports)
        if record.verdict == "worse" and not force:
            raise _refusal(record, source)
        record = record.model_copy(
            update={"artifact": str(folder), "forced": force if record.verdict == "worse" else ""}
        )
        with store_errors(folder):
            atomic_text(place / EXPORT_FILE, record.to_json())
            _move(place, folder)
    _keep(record, source, Path(out))
    return record


def _compared(
    source: Original, form: Form, place: Path, record: Export, margin: float | None, progress: Progress
) -> Export:
    """Return the record of a folder that was just written, with its comparison."""
    from fulltune.pipeline.export.scoring import Comparer

    # The folder is loaded as any exported model is, which needs its record.
    atomic_text(place / EXPORT_FILE, record.to_json())
    artifact = _loaded(source, place)
    comparer = Comparer(source.task, source.config, source.rows, source.left_out, progress)
    logits = comparer.logits(source.bundle, artifact)
    if form.tolerance is not None and not logits.relative <= form.tolerance:
        raise ModelError(
            f"the exported {type(source.bundle.model).__name__} computes other logits (by {logits.relative:.2g})",
            expected=f"a relative difference of at most {form.tolerance}",
            fix="choose another format",
            field="MODEL",
        )
    found: dict[str, Any] = {"logits": logits}
    notes = [form.note] if form.note else []
    if not source.rows:
        notes.append("There are no rows to compare the answers on: name some with --data FILE.")
        return record.model_copy(update={**found, "notes": tuple(notes)})
    compared = comparer.compare(source.bundle, artifact, form.name, margin)
    assert compared.pair.not_worse is not None
    found |= {
        "rows": compared.rows,
        "equal_answers": compared.equal,
        "scores": compared.scores,
        "parent_scores": compared.parent_scores,
        "comparison": compared.pair,
        "margin": compared.pair.not_worse.margin,
        "verdict": compared.verdict,
        "latency": comparer.latency(source.bundle, artifact),
        "notes": (*notes, *compared.pair.notes),
    }
    return record.model_copy(update=found)


def _described(source: Original, form: Form, place: Path) -> Export:
    """Return the record of a folder before it is compared."""
    written = sorted(path for path in place.rglob("*") if path.is_file())
    names = {str(path.relative_to(place)): path for path in written}
    files = {name: ExportedFile(bytes=path.stat().st_size, sha256=file_sha256(path)) for name, path in names.items()}
    parameters = sum(value.numel() * value.element_size() for value in source.bundle.model.parameters())
    return Export.model_validate(
        {
            "format": form.name,
            "task": source.task.name,
            "parent": Parent(name=source.name, sha256=source.bundle.info.sha256, bytes=parameters),
            "bytes": sum(file.bytes for name, file in files.items() if name.endswith(_WEIGHTS)),
            "sha256": files_sha256(written),
            "files": files,
            "labels": source.task.labels,
            "multi_label": source.task.multi_label,
            "eval_sha256": "" if source.data is None else source.data.eval.table.sha256,
            "left_out": sorted(source.left_out),
            "verdict": "not compared",
            "logits": {"rows": 0, "largest": 0.0, "relative": 0.0, "source": "random tokens"},
            "fulltune": __version__,
            "created": now(),
        }
    )


def _loaded(source: Original, place: Path) -> Bundle:
    """Load the exported model as every command does."""
    from fulltune.pipeline.model_loading import find_model

    _, bundle, _ = find_model(source.config, source.task, str(place), place.parent)
    return replace(bundle, window=source.bundle.window)


def _refusal(record: Export, source: Original) -> ExportRefused:
    """Return the error for a model that is worse than the margin allows."""
    pair = record.comparison
    assert pair is not None
    assert record.margin is not None
    metric = source.task.metrics[0]
    loss = wording.amount(abs(pair.difference.value), metric)
    return ExportRefused(
        f"{record.format} loses {loss} of {pair.label} ({wording.change(pair.a.value, pair.b.value)}) "
        f"on {wording.rows(record.rows)}",
        expected=f"a loss below {wording.amount(record.margin, metric)}",
        fix="choose another format, allow more with --margin, or write it anyway with --force REASON",
        export=record.to_json(),
    )


def _check_margin(margin: float | None) -> None:
    if margin is not None and not 0 < margin < 1:
        raise ConfigError(
            f"margin is {margin}", expected="a number between 0 and 1, e.g. 0.01 for a point", field="--margin"
        )


def _check_plain(source: Original) -> None:
    """Check that the weights are all of the model.

    Raises:
        ModelError: A trained prompt comes before every input.
    """
    if source.bundle.prompt_ids:
        raise ModelError(
            f"{source.name} is a soft prompt, which only its own library can put before an input",
            expected="a model whose weights are all of it",
            fix="tune it with another method",
            field="MODEL",
        )


def _checked_target(folder: Path) -> Path:
    """Return the folder to write.

    Raises:
        StoreError: It is a file, or has files.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        return folder
    if paths.exists(folder):
        what = "the folder is not empty" if folder.is_dir() else "a file of this name exists"
        raise StoreError(what, expected="a new or empty folder", fix="name another folder", where=str(folder))
    return folder


@contextmanager
def _unfinished(folder: Path) -> Iterator[Path]:
    """Yield an empty folder next to the one to write; it is removed unless it was moved."""
    place = unfinished_path(folder)
    with store_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(folder)
        place.mkdir()
    try:
        yield place
    finally:
        remove(place)


def _keep(record: Export, source: Original, out: Path) -> None:
    """Keep the exported model in the registry, if its original is a version."""
    version = reference(source.name, out) or Registry(out).of_run(source.name)
    if version is not None and version.ref not in Registry(out).collected():
        folder = Path(record.artifact)
        Registry(out).keep(version, folder, form=record.format, verdict=record.verdict, forced=record.forced)


def _move(place: Path, folder: Path) -> None:
    """Move a complete folder to its place."""
    if folder.is_dir():
        folder.rmdir()
    place.rename(folder)
    sync_folder(folder.parent)
