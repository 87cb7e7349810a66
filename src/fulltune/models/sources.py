"""Locate the files of a model: in a folder, a run, the registry, a starter, a package or the hub."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fulltune.errors import ModelError, Problem, abridged, did_you_mean
from fulltune.models import starters
from fulltune.records.export import Export, is_export, read_export
from fulltune.runtime import paths
from fulltune.runtime.files import file_sha256
from fulltune.store.objects import CHECKPOINT_FILES, checkpoint_sha256
from fulltune.store.registry.registry import Registry, reference
from fulltune.store.runs import resolve

#: Longest file name in bytes that file systems accept.
_LONGEST_PART = 255

#: Longest path in bytes that file systems accept.
_LONGEST_NAME = 4_000

_MISSING = (
    "a folder with config.json, a GGUF file, a hub id, a run id, a name of the registry, starter:NAME, "
    "or package:NAME/PATH"
)


@dataclass(frozen=True)
class ModelFiles:
    """Files of a model.

    Attributes:
        name: Name that the user gave.
        folder: Folder of its files.
        gguf: Name of the GGUF file, if it is one.
        export: The record of an exported model; None for any other.
    """

    name: str
    folder: Path
    gguf: str | None = None
    export: Export | None = None

    @property
    def is_adapter(self) -> bool:
        """True if the files are those of an adapter, which needs its base."""
        return not (self.folder / "config.json").is_file() and (self.folder / "adapter_config.json").is_file()

    @property
    def is_onnx(self) -> bool:
        """True if the weights are in ONNX graphs."""
        return self.export is not None and any(name.endswith(".onnx") for name in self.export.files)

    @property
    def kwargs(self) -> dict[str, Any]:
        """Arguments for ``from_pretrained``: only local files, and never code of the checkpoint."""
        arguments: dict[str, Any] = {"pretrained_model_name_or_path": str(self.folder), "trust_remote_code": False}
        return arguments | ({"gguf_file": self.gguf} if self.gguf else {"local_files_only": True})

    @property
    def settings(self) -> dict[str, Any]:
        """Return the arguments of ``from_pretrained`` for config and tokenizer: an export has both in its folder."""
        return self.kwargs if self.export is None else replace(self, gguf=None).kwargs

    def sha256(self) -> str:
        """Return one hash over the names and contents of all files of the checkpoint."""
        if self.export is not None:
            return _checked_sha256(self.folder, self.export)
        if self.gguf:
            return file_sha256(self.folder / self.gguf)
        return checkpoint_sha256(self.folder)


def check_name(name: str) -> None:
    """Check that the name of a model is valid.

    Raises:
        ModelError: It is empty, too long for any file system or hub, or contains control characters.
    """
    if not name.strip():
        problem = "an empty name"
    elif len(name.encode()) > _LONGEST_NAME or any(len(part.encode()) > _LONGEST_PART for part in name.split("/")):
        problem = f"a name of {len(name):,} characters ({name[:40]}…)"
    elif any(ord(character) < 32 or ord(character) == 127 for character in name):
        problem = f"control characters in {name[:100]!r}"
    else:
        return
    raise ModelError(problem, expected="a folder, a hub id, a run or a registered model", field="model")


def find(name: str, runs: Path | None = None) -> ModelFiles:
    """Locate the files of a source; a hub id is downloaded into the hub's cache. Nothing is loaded.

    Raises:
        ModelError: The kind of source is unknown, or the starter, package, folder or hub repository does not exist.
    """
    check_name(name)
    if name.startswith("starter:"):
        return _local(name, _starter(name))
    if name.startswith("package:"):
        package, _, inner = name.removeprefix("package:").partition("/")
        return _local(name, _package_folder(package) / inner)
    if runs and (runs / name / "model").is_dir():
        return _local(name, runs / name / "model")
    if runs and name == "latest":
        return _local(name, resolve(name, runs) / "model")
    path = paths.user_path(name)
    if (
        path.exists()
        or path.is_absolute()
        or name.startswith((".", "~"))
        or name.count("/") > 1
        or path.suffix == ".gguf"
    ):
        return _local(name, path)
    version = reference(name, runs) if runs else None
    if runs and version:
        return _local(version.ref, Registry(runs).checkout(version) / "model")
    return ModelFiles(name, _fetch(name))


def _local(name: str, path: Path) -> ModelFiles:
    if path.is_file() and path.suffix == ".gguf":
        return ModelFiles(name, path.parent, path.name)
    if is_export(path):
        return _exported(name, path)
    if not path.exists():
        raise ModelError(f"{name!r} does not exist", expected=_MISSING, fix="check the path", field="model")
    if not ((path / "config.json").is_file() or (path / "adapter_config.json").is_file()):
        raise ModelError(
            f"{name!r} has no config.json",
            expected="a checkpoint as save_pretrained writes it",
            fix=_inside(path),
            field="model",
        )
    return ModelFiles(name, path)


def _inside(path: Path) -> str:
    """Return advice if the folder has GGUF files, or its folders are checkpoints: epochs, or ``0_Transformer``."""
    single = sorted(file.name for file in path.glob("*.gguf")) if path.is_dir() else []
    if single:
        return f"name the GGUF file in it: {abridged(single)}"
    configs = sorted(path.glob("*/config.json")) if path.is_dir() else []
    inner = [config.parent.name for config in configs if any(config.parent.glob("*.safetensors"))]
    return f"name the checkpoint below it: {abridged(inner)}" if inner else ""


def exported_folder(name: str) -> Path | None:
    """Return the folder of an exported model; None if the name is another one."""
    path = paths.user_path(name)
    return path if is_export(path) else None


def _exported(name: str, folder: Path) -> ModelFiles:
    """Return the files of an exported model.

    Raises:
        StoreError: Its record cannot be read.
    """
    export = read_export(folder)
    gguf = next((file for file in export.files if file.endswith(".gguf")), None)
    return ModelFiles(name, folder, gguf, export)


def _checked_sha256(folder: Path, export: Export) -> str:
    """Return the hash of an exported model.

    Raises:
        ModelError: Its files are not those that were compared with the original model; lists all of them.
    """
    problems = []
    for name, file in export.files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != file.bytes or file_sha256(path) != file.sha256:
            state = "has changed since it was exported" if path.is_file() else "is missing"
            problems.append(Problem(f"{name} {state}", "the file as exported", "export it again", str(folder), "model"))
    if problems:
        raise ModelError(problems)
    return export.sha256


def _starter(name: str) -> Path:
    known = [f"starter:{starter}" for starter in starters.NAMES]
    if name not in known:
        raise ModelError(
            f"{name!r} does not exist",
            expected=f"one of {', '.join(known)}",
            fix=did_you_mean(name, known) or "choose one of these",
            field="model",
        )
    return starters.folder(name.removeprefix("starter:"))


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"the Python package {package!r} is not installed",
            expected="an installed package that contains a checkpoint",
            fix="install it with pip, or choose another model",
            field="model",
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _fetch(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(name, allow_patterns=list(CHECKPOINT_FILES), ignore_patterns=["*/*"]))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{name!r} is not a local folder and could not be downloaded from the hub ({reason})",
            expected=_MISSING,
            fix="check the name and the connection, or download it first and use its folder",
            field="model",
        ) from error
