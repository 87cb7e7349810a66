"""Publish versions of the registry: a folder with a model card, a delta against the base, a hub repository."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fulltune.data.locate import locate
from fulltune.errors import FulltuneError, ModelError, StoreError
from fulltune.models import sources
from fulltune.models.adapters.files import rename_base
from fulltune.models.licenses import license_of
from fulltune.records.export import EXPORT_FILE, read_export
from fulltune.records.run import Model, Prediction, Record, read_record
from fulltune.report.card import Licenses, bare, card
from fulltune.report.worse_rows import worse_rows
from fulltune.runtime import paths
from fulltune.runtime.files import advising, atomic_text, remove, store_errors
from fulltune.runtime.json_lines import Lines
from fulltune.store import delta
from fulltune.store.delta import DeltaInfo, Restored
from fulltune.store.registry.registry import Artifact, Registry, Version


class Published(Model):
    """The places that a version was written to; a form that was not requested is empty."""

    version: str
    folder: str = ""
    delta: DeltaInfo | None = None
    pushed: str = ""


def publish(
    ref: str,
    *,
    out: str | Path = "runs",
    to: str | Path | None = None,
    artifact: str | None = None,
    delta_file: str | Path | None = None,
    push: str | None = None,
    private: bool = False,
) -> Published:
    """Write a version of the registry in one or more of three forms.

    Args:
        ref: ``NAME`` (its production), ``NAME@ALIAS`` or ``NAME@N``.
        out: Folder of the registry.
        to: A folder for ``from_pretrained``, with a model card.
        artifact: Write the version in this format, as it was exported, to that folder.
        delta_file: The bitwise difference from the base.
        push: A repository of the hub, ``owner/name``; it is created if it does not exist. Other formats that the
            registry keeps are in folders of their names.
        private: Create a private repository.

    Raises:
        StoreError: There is no such version, it is corrupt, or a target already exists.
        ModelError: The base has changed, or the hub refuses.
    """
    if not (to or delta_file or push):
        fix = "add --to DIR, --delta FILE or --push REPO"
        raise StoreError("nothing to export to", expected="a folder, a delta or a repository", fix=fix)
    registry = Registry(out)
    version = registry.version(ref)
    folder = registry.checkout(version)
    result = Published(version=version.ref)
    if to and artifact:
        _write_artifact(registry, version, artifact, Path(to))
    elif to:
        write_folder(version, folder, Path(to), Path(out))
    if to:
        result = result.model_copy(update={"folder": str(to)})
    if delta_file:
        base = _base(version, Path(out))
        result = result.model_copy(update={"delta": delta.write_delta(base, folder / "model", Path(delta_file))})
    if push:
        result = result.model_copy(update={"pushed": _push(registry, version, folder, push, private, Path(out))})
    return result


def restore(source: str, file: str | Path, to: str | Path, *, out: str | Path = "runs") -> Restored:
    """Restore the tuned checkpoint from its base and a delta, or the base from the tuned checkpoint.

    Args:
        source: Any model that a config takes.
        file: A delta that :func:`publish` wrote.
        to: Folder of the restored checkpoint.
        out: Folder of the runs and the registry.

    Raises:
        StoreError: The delta is corrupt, it does not belong to the source, or the target already exists.
        ModelError: The source cannot be loaded.
    """
    return delta.apply_delta(_source(source, Path(out)).folder, Path(file), Path(to))


@advising("choose another folder with --to")
def write_folder(version: Version, checkout: Path, to: Path, out: Path) -> None:
    """Write the model of a version and its card as a plain folder.

    Raises:
        StoreError: The folder already exists, or cannot be written.
    """
    if to.exists():
        raise StoreError("the folder already exists", where=str(to), fix="name another folder with --to")
    with store_errors(to):
        # A saved model is complete: an adapter that can be merged was merged before it was scored.
        shutil.copytree(checkout / "model", to, copy_function=shutil.copyfile)
    atomic_text(to / "README.md", _card(version, checkout, out, has_texts=True))


@advising("choose another folder with --to")
def _write_artifact(registry: Registry, version: Version, form: str, to: Path) -> None:
    """Write a version in another format as a folder.

    Raises:
        StoreError: It is not kept in this format, or the folder already exists or cannot be written.
    """
    artifact = registry.artifact(version, form)
    if to.exists():
        raise StoreError("the folder already exists", where=str(to), fix="name another folder with --to")
    with store_errors(to):
        to.mkdir(parents=True)
    try:
        registry.write_artifact(artifact, to)
    except StoreError:
        remove(to)
        raise


def _card(version: Version, checkout: Path, out: Path, *, has_texts: bool) -> str:
    """Return the card of a version; texts of evaluation rows are quoted only if they stay on this machine."""
    record = read_record(checkout / "record.json") if "record.json" in version.files else None
    worse = None
    if record is not None:
        predictions = Lines(checkout / "predictions.jsonl", Prediction)
        worse = worse_rows(record.task, predictions, record.left_out)
    licenses = _licenses(version, record, out)
    return card(version, record, is_adapter=_is_adapter(version), worse=worse, has_texts=has_texts, licenses=licenses)


def _licenses(version: Version, record: Record | None, out: Path) -> Licenses:
    """Return the licenses that the folders of the base and of the training rows state, if they are on this machine."""
    source = version.lineage.base.source
    is_here = source.startswith("package:") or paths.exists(paths.user_path(source))  # others might be downloaded
    base = data = None
    with suppress(FulltuneError):  # it was moved or deleted
        base = sources.find(source, out).folder if is_here else None
    with suppress(FulltuneError):
        data = None if record is None else locate(record.data.train.source)[0]
    folder = data if data is None or data.is_dir() else data.parent
    return Licenses(license_of(base, source), license_of(folder))


def _base(version: Version, out: Path) -> Path:
    """Return the folder of the base that a version was tuned from, after checking that it has not changed."""
    base = version.lineage.base
    source = _source(base.source, out)
    if (sha256 := source.sha256()) != base.sha256:
        raise ModelError(
            f"the base {base.source!r} has changed: its SHA-256 is {sha256[:12]}…",
            expected=f"{base.sha256[:12]}…, as when {version.ref} was tuned",
            fix="restore the original files",
            field="model",
        )
    return source.folder


def _source(name: str, out: Path) -> sources.ModelFiles:
    source = sources.find(name, out)
    if source.gguf:
        fix = "convert it to a folder with safetensors first"
        raise ModelError(
            f"{name!r} is a GGUF file", expected="a folder with safetensors weights", fix=fix, field="model"
        )
    return source


@contextmanager
def _public(version: Version, checkout: Path) -> Iterator[Path]:
    """Yield the model files of a version without paths of this machine; an adapter names its base by one."""
    folder = checkout / "model"
    if not _is_adapter(version):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="fulltune-") as place:
        copy = Path(place) / "model"
        shutil.copytree(folder, copy, copy_function=shutil.copyfile)
        rename_base(copy, bare(version.lineage.base.source))
        yield copy


def _is_adapter(version: Version) -> bool:
    return "model/adapter_config.json" in version.files


@contextmanager
def _public_artifact(registry: Registry, artifact: Artifact) -> Iterator[Path]:
    """Yield the files of an artifact without paths of this machine: without the config of its run."""
    with tempfile.TemporaryDirectory(prefix="fulltune-") as place:
        folder = Path(place)
        registry.write_artifact(artifact, folder)
        (folder / "config.yaml").unlink(missing_ok=True)
        record = read_export(folder).model_copy(update={"artifact": ""})
        (folder / EXPORT_FILE).unlink()
        atomic_text(folder / EXPORT_FILE, record.to_json())
        yield folder


def _push(registry: Registry, version: Version, checkout: Path, repository: str, private: bool, out: Path) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    text = _card(version, checkout, out, has_texts=False)
    try:
        hub = HfApi()
        made = hub.create_repo(repository, private=private, exist_ok=True)
        message = f"{version.ref}: {version.headline}".strip(": ")[:200]
        with _public(version, checkout) as folder:
            hub.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message=message)
        for artifact in registry.artifacts(version):
            with _public_artifact(registry, artifact) as folder:
                hub.upload_folder(
                    repo_id=made.repo_id,
                    folder_path=folder,
                    path_in_repo=artifact.format,
                    commit_message=f"{message} ({artifact.format})",
                )
        hub.upload_file(
            path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id=made.repo_id, commit_message="Model card"
        )
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{repository!r} could not be pushed to ({reason})",
            expected="a repository of yours, owner/name",
            fix="log in with `hf auth login` (or set HF_TOKEN), and check the name and the connection",
        ) from error
    return str(made)
